"""Faults in the LLaDA2 of vLLM and of SGLang, planted in the process that holds the model: both name its parts alike.

Weights are edited in place, since kernels and routers keep hold of the tensors, and get their old values back bit for
bit. Where a kernel may have packed a weight away, the module's method is replaced instead, and has to be called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch

from specrunner.engines.planters.patching import replaced
from specrunner.errors import FaultInapplicable

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class NewValues:
    """Other values of a parameter or buffer, of its shape."""

    tensor: Tensor
    values: Tensor


@dataclass(frozen=True, slots=True)
class NewMethod:
    """Another method of one object: `make(original)`."""

    owner: Any
    name: str
    make: Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True, slots=True)
class NewAttribute:
    """Another value of one attribute."""

    owner: Any
    name: str
    value: Any


Change = NewValues | NewMethod | NewAttribute


class PlantedFault:
    """A fault that sits in a live model until `remove`.

    Args:
        model: the causal language model.
        name: one of `CHANGES`.

    Raises:
        FaultInapplicable: no such fault, no such part in the model, or a part that the fault would leave as it is.
    """

    def __init__(self, model: torch.nn.Module, name: str) -> None:
        if name not in CHANGES:
            raise FaultInapplicable(f"the fault {name} cannot be planted in {type(model).__name__}")
        self._name = name
        self._uncalled: list[str] = []
        self._stack = ExitStack()
        try:
            with torch.inference_mode():
                changes = list(CHANGES[name](model))
            if not changes:
                raise FaultInapplicable(f"{name} changes nothing: {type(model).__name__} has no such part")
            for change in changes:
                self._make(change)
        except BaseException:
            self.remove()
            raise

    def _make(self, change: Change) -> None:
        if isinstance(change, NewMethod):
            self._replace_method(change)
        elif isinstance(change, NewAttribute):
            if getattr(change.owner, change.name) == change.value:
                raise FaultInapplicable(f"{self._name} changes nothing: {change.name} is {change.value} already")
            self._stack.enter_context(replaced(change.owner, change.name, change.value))
        else:
            before = change.tensor.detach().clone()
            if torch.equal(before, change.values):
                raise FaultInapplicable(f"{self._name} changes nothing: a tensor keeps its values")
            self._stack.callback(write_values, change.tensor, before)
            write_values(change.tensor, change.values)

    def _replace_method(self, change: NewMethod) -> None:
        changed = change.make(getattr(change.owner, change.name))
        label = f"{change.name} of {type(change.owner).__name__} {len(self._uncalled)}"
        self._uncalled.append(label)

        def call(*args: Any, **kwargs: Any) -> Any:
            if label in self._uncalled:
                self._uncalled.remove(label)
            return changed(*args, **kwargs)

        self._stack.enter_context(replaced(change.owner, change.name, call))

    def check(self) -> None:
        """Make sure, after a forward, that the forward went through every method replaced.

        Raises:
            FaultInapplicable: it went round one of them, as compiled and fused code does.
        """
        if self._uncalled:
            raise FaultInapplicable(f"{self._name} was not reached: nothing called {self._uncalled[0]}")

    def remove(self) -> None:
        """Put everything back as it was."""
        self._stack.close()


def write_values(tensor: Tensor, values: Tensor) -> None:
    """Overwrite a tensor in its own memory and dtype, one that was made in inference mode, too."""
    with torch.inference_mode():
        tensor.detach().copy_(values)


def find_modules(model: torch.nn.Module, pattern: str) -> list[Any]:
    """Return the modules whose path matches, each once.

    Raises:
        FaultInapplicable: there is none.
    """
    found = [module for path, module in model.named_modules() if fnmatchcase(path, pattern)]
    if not found:
        raise FaultInapplicable(f"{type(model).__name__} has no module {pattern}")
    return found


def find_parameters(model: torch.nn.Module, pattern: str) -> list[Tensor]:
    """Return the parameters whose path matches, each once.

    Raises:
        FaultInapplicable: there is none.
    """
    found = [parameter.data for path, parameter in model.named_parameters() if fnmatchcase(path, pattern)]
    if not found:
        raise FaultInapplicable(f"{type(model).__name__} has no parameter {pattern}")
    return found


def _norms(model: Any) -> list[Tensor]:
    patterns = ("model.layers.*.input_layernorm.weight", "model.layers.*.post_attention_layernorm.weight")
    return [weight for pattern in (*patterns, "model.norm.weight") for weight in find_parameters(model, pattern)]


def _exchange(first: str, second: str) -> Callable[[Any], Iterator[Change]]:
    def changes(model: Any) -> Iterator[Change]:
        for one, other in zip(find_parameters(model, first), find_parameters(model, second), strict=True):
            yield NewValues(one, other.clone())
            yield NewValues(other, one.clone())

    return changes


def _methods(pattern: str, name: str, make: Callable[[Any], Any]) -> Callable[[Any], Iterable[Change]]:
    return lambda model: [NewMethod(module, name, make) for module in find_modules(model, pattern)]


def _scaled(factor: float) -> Callable[[Any], Any]:
    return lambda original: lambda *args, **kwargs: original(*args, **kwargs) * factor


def _bare(_original: Any) -> Any:
    """Stand for a norm that does nothing; the fused form still adds the residual, and returns it beside."""

    def forward(hidden: Tensor, residual: Tensor | None = None, *_: Any, **__: Any) -> Any:
        if residual is None:
            return hidden.clone()
        total = hidden + residual
        return total, total.clone()

    return forward


def _sine_negated(model: Any) -> Iterator[Change]:
    for module in find_modules(model, "model.layers.*.attention.rotary_emb"):
        cosine, sine = module.cos_sin_cache.chunk(2, dim=-1)
        yield NewValues(module.cos_sin_cache, torch.cat([cosine, -sine], dim=-1))


def _bias_zero(model: Any) -> Iterator[Change]:
    for bias in find_parameters(model, "model.layers.*.mlp.gate.expert_bias"):
        yield NewValues(bias, torch.zeros_like(bias))


def _neighbours(model: Any) -> Iterator[Change]:
    for name in ("w13_weight", "w2_weight"):
        for weight in find_parameters(model, f"model.layers.*.mlp.experts.*{name}"):
            yield NewValues(weight, weight[torch.arange(len(weight), device=weight.device) ^ 1])


def _shard_zero(model: Any) -> Iterator[Change]:
    for weight in find_parameters(model, "model.layers.*.mlp.experts.*w2_weight"):
        values = weight.clone()
        values[-len(weight) // 8 :] = 0
        yield NewValues(weight, values)


def _other_eps(model: Any) -> Iterator[Change]:
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            yield NewAttribute(module, "variance_epsilon", 1e-5)


def _by_root_of_width(original: Any) -> Any:
    def forward(*args: Any, **kwargs: Any) -> Any:
        embedded = original(*args, **kwargs)
        return embedded * embedded.shape[-1] ** 0.5

    return forward


def _instead(method: Any) -> Any:
    return lambda _original: method


def _attention_exchanged(model: Any) -> Iterator[Change]:
    *_, one, other = (layer.attention for layer in model.model.layers)
    yield NewMethod(one, "forward", _instead(other.forward))
    yield NewMethod(other, "forward", _instead(one.forward))


def _rolled(original: Any) -> Any:
    return lambda *args, **kwargs: original(*args, **kwargs).roll(1, -1)


CHANGES: dict[str, Callable[[Any], Iterable[Change]]] = {
    "embeddings-scaled": _methods("model.word_embeddings", "forward", _by_root_of_width),
    "rope-reversed": _sine_negated,
    "qk_norm-dropped": _methods("model.layers.*.attention.[qk]*_layernorm", "forward", _bare),
    "qk_norm-queries-bare": _methods("model.layers.*.attention.query_layernorm", "forward", _bare),
    "qk_norm-swapped": _exchange(
        "model.layers.*.attention.query_layernorm.weight", "model.layers.*.attention.key_layernorm.weight"
    ),
    "routing-bias-ignored": _bias_zero,
    "experts-neighbours-exchanged": _neighbours,
    "experts-shard-missing": _shard_zero,
    "shared_expert-dropped": _methods("model.layers.*.mlp.shared_experts", "forward", _scaled(0.0)),
    "shared_expert-doubled": _methods("model.layers.*.mlp.shared_experts", "forward", _scaled(2.0)),
    "norms-other-eps": _other_eps,
    "norms-plus-one": lambda model: [NewValues(weight, weight + 1) for weight in _norms(model)],
    "norms-exchanged": _exchange(
        "model.layers.*.input_layernorm.weight", "model.layers.*.post_attention_layernorm.weight"
    ),
    "norms-final-dropped": _methods("model.norm", "forward", _bare),
    "layers-attention-exchanged": _attention_exchanged,
    "head-one-row-off": _methods("logits_processor", "_get_logits", _rolled),
    "head-rescaled": _methods("logits_processor", "_get_logits", _scaled(0.5)),
}
"""By the fault's name: what it changes in a model, all of it worked out before the first change."""
