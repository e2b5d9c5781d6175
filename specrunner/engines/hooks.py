"""Forward hooks over a live torch model: capture named tensors, prove that every hook fired."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from specrunner.engines.name_maps import Entry, HookPoint, NameMap
from specrunner.errors import CaptureIncomplete
from specrunner.spec.diagnostics import suggest
from specrunner.spec.tensor_names import match_name, model_order, select_names

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes needed to undo a fused projection: heads on this rank, key/value heads on this rank, and their width."""

    heads: int
    kv_heads: int
    head_dim: int


def extract_tensor(entry: Entry, inputs: Sequence[Any], outputs: Any, geometry: Geometry) -> torch.Tensor:
    """Read one tensor off a module call as [tokens, ...]: pick, add, cut; always a clone.

    Raises:
        CaptureIncomplete: the call's values do not have the shape that the name map says.
    """
    source: Any = tuple(inputs) if entry.of == "input" else outputs
    if entry.sum:
        parts = [source[index] for index in entry.sum if source[index] is not None]
        value = functools.reduce(lambda left, right: left + right, parts)
    elif entry.index is not None:
        value = source[entry.index]
    else:
        value = source[0] if isinstance(source, tuple | list) else source
    if not hasattr(value, "detach"):
        raise CaptureIncomplete(f"module {entry.module} gave {type(value).__name__} where a tensor was expected")
    if entry.part is not None:
        value = cut_part(value, entry.part, geometry)
    if entry.heads_first:
        value = value.transpose(1, 2)
    copy: torch.Tensor = value.detach().clone()
    return copy


def cut_part(fused: torch.Tensor, part: str, geometry: Geometry) -> torch.Tensor:
    """Cut `query`, `key` or `value` out of a fused projection [..., (heads + 2 * kv_heads) * head_dim]."""
    sizes = [geometry.heads * geometry.head_dim] + 2 * [geometry.kv_heads * geometry.head_dim]
    if fused.shape[-1] != sum(sizes):
        raise CaptureIncomplete(f"a fused projection has {fused.shape[-1]} columns, expected {sum(sizes)}")
    parts: tuple[torch.Tensor, ...] = fused.split(sizes, dim=-1)
    return parts[("query", "key", "value").index(part)]


def flatten_tokens(tensor: torch.Tensor, name: str, tokens: int) -> torch.Tensor:
    """Bring a captured tensor into the layout [tokens, features]: batch axis of one dropped, heads joined.

    Raises:
        CaptureIncomplete: the number of rows is not the prompt's.
    """
    if tensor.ndim >= 2 and tensor.shape[0] == 1 and (tensor.ndim > 2 or tokens == 1) and tensor.shape[1] == tokens:
        tensor = tensor[0] if tensor.ndim > 2 else tensor
    if tensor.shape[0] != tokens:
        raise CaptureIncomplete(f"{name} has {tensor.shape[0]} rows for a prompt of {tokens} tokens")
    return tensor.reshape(tokens, -1).contiguous()


def sort_experts(tensors: dict[str, torch.Tensor]) -> None:
    """Bring router.expert_ids and router.expert_weights into ascending order of expert within each token, in place."""
    for name in [name for name in tensors if name.endswith(".router.expert_ids")]:
        ids, order = tensors[name].long().sort(dim=-1)
        tensors[name] = ids.contiguous()
        weights = name.removesuffix("expert_ids") + "expert_weights"
        if weights in tensors:
            tensors[weights] = tensors[weights].gather(-1, order).contiguous()


class Recorder:
    """Hooks on a model that record the wanted tensors of one forward.

    Args:
        model: the causal language model whose modules the map's paths start from.
        points: what to read where.
        geometry: sizes for fused projections.

    Raises:
        CaptureIncomplete: a module that is not optional does not exist.
    """

    def __init__(self, model: torch.nn.Module, points: Iterable[HookPoint], geometry: Geometry) -> None:
        modules = list_modules(model)
        self._geometry = geometry
        self._records: dict[str, list[torch.Tensor]] = {}
        self._undo: list[Callable[[], None]] = []
        for point in points:
            module = modules.get(point.module)
            if module is not None and point.entry.parameter is not None:
                continue
            if module is None:
                if point.entry.optional:
                    continue
                raise CaptureIncomplete(f"the model has no module {point.module} to read {point.name} from")
            self._install(module, point, find_turn(modules, module, point))

    def _install(self, module: torch.nn.Module, point: HookPoint, turn: Callable[[], bool]) -> None:
        if point.entry.method is not None:
            self._wrap_method(module, point)
            return

        def before(_module: Any, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if turn():
                self._record(point, inputs or tuple(kwargs.values()), None)

        def after(_module: Any, inputs: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
            if turn():
                self._record(point, inputs or tuple(kwargs.values()), outputs)

        if point.entry.of == "input":  # read before the call, which may overwrite its arguments
            self._undo.append(module.register_forward_pre_hook(before, with_kwargs=True).remove)
        else:
            self._undo.append(module.register_forward_hook(after, with_kwargs=True).remove)

    def _wrap_method(self, module: Any, point: HookPoint) -> None:
        *path, name = (point.entry.method or "").split(".")
        owner = functools.reduce(getattr, path, module)
        original = getattr(owner, name)

        @functools.wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            outputs = original(*args, **kwargs)
            self._record(point, args or tuple(kwargs.values()), outputs)
            return outputs

        setattr(owner, name, wrapped)
        self._undo.append(lambda: setattr(owner, name, original))

    def _record(self, point: HookPoint, inputs: Sequence[Any], outputs: Any) -> None:
        tensor = extract_tensor(point.entry, inputs, outputs, self._geometry)
        self._records.setdefault(point.name, []).append(tensor)

    def take(self) -> dict[str, list[torch.Tensor]]:
        """Return everything recorded since the last call, by name, one tensor a call of the module."""
        records, self._records = self._records, {}
        return records

    def remove(self) -> None:
        """Take all hooks off."""
        while self._undo:
            self._undo.pop()()


def list_modules(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Return the modules by path; one that stands at several places has several paths."""
    return dict(model.named_modules(remove_duplicate=False))


def find_turn(modules: Mapping[str, torch.nn.Module], module: torch.nn.Module, point: HookPoint) -> Callable[[], bool]:
    """Return a function that tells, call after call of `module`, which calls are those of the point's layer.

    One instance may stand in all layers (a rotary embedding); a forward then calls it once a layer, in their order.
    """
    layer = re.compile(re.escape(point.entry.module).replace(re.escape("{i}"), r"\d+"))
    owners = [path for path, other in modules.items() if other is module and layer.fullmatch(path)]
    turns = itertools.cycle([path == point.module for path in owners])
    return lambda: next(turns)


def available_points(name_map: NameMap, model: torch.nn.Module, layers: int) -> list[HookPoint]:
    """List the hook points whose modules exist in `model`."""
    modules = list_modules(model)
    return [point for point in name_map.hook_points(layers) if point.module in modules]


def select_points(points: Sequence[HookPoint], patterns: Iterable[str]) -> list[HookPoint]:
    """Choose the points that `patterns` ask for, in model order; expert weights bring the ids they are ordered by.

    Raises:
        CaptureIncomplete: a pattern (other than `passes.*`) matches nothing.
    """
    patterns = [pattern for pattern in patterns if not pattern.startswith("passes.")]
    by_name = {point.name: point for point in points}
    for pattern in patterns:
        if not any(match_name(pattern, name) for name in by_name):
            raise CaptureIncomplete(f"no tensor of this model matches {pattern!r}")
    wanted = set(select_names(patterns, by_name))
    wanted |= {
        name.removesuffix("expert_weights") + "expert_ids" for name in wanted if name.endswith("router.expert_weights")
    }
    wanted |= {name.removesuffix("logits") + "expert_bias" for name in wanted if name.endswith("router.logits")}
    return [by_name[name] for name in sorted(wanted & set(by_name), key=model_order)]


def choose_points(name_map: NameMap, model: torch.nn.Module, layers: int, patterns: Iterable[str]) -> list[HookPoint]:
    """Choose the points of a model that `patterns` ask for, as `select_points` does.

    Raises:
        CaptureIncomplete: a pattern matches nothing; where that is because the map names a module that the model does
            not have, the message says which.
    """
    try:
        return select_points(available_points(name_map, model, layers), patterns)
    except CaptureIncomplete as error:
        modules = list_modules(model)
        for point in name_map.hook_points(layers):
            named = any(match_name(pattern, point.name) for pattern in patterns)
            if named and not point.entry.optional and point.module not in modules:
                where = f"the name map {name_map.engine}/{name_map.family}.yaml"
                near = suggest_module(point.module, modules)
                raise CaptureIncomplete(
                    f"the model has no module `{point.module}`, where {where} looks for {point.name}",
                    help=f"did you mean `{near}`?" if near else "print the model to see its modules",
                ) from error
        raise


def suggest_module(path: str, modules: Iterable[str]) -> str | None:
    """Return the module that `path` was probably meant to be, of those of the same layer and expert; or None."""
    numbers = list_numbers(path)
    return suggest(path, (module for module in modules if list_numbers(module) == numbers))


def list_numbers(path: str) -> list[str]:
    """Return the parts of a module's path that count layers, experts and the like."""
    return [part for part in path.split(".") if part.isdecimal()]


def read_constants(model: torch.nn.Module, points: Iterable[HookPoint]) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers that `points` name, copied to the CPU."""
    modules = list_modules(model)
    return {
        point.name: getattr(modules[point.module], point.entry.parameter).detach().cpu().clone()
        for point in points
        if point.entry.parameter is not None
    }


def finish_tensors(
    records: Mapping[str, Sequence[torch.Tensor]], points: Sequence[HookPoint], patterns: Iterable[str], tokens: int
) -> dict[str, torch.Tensor]:
    """Turn one forward's records into capture tensors: one row a prompt token, canonical expert order, on the CPU.

    Several records of one name (chunks of a chunked prefill) are joined along the token axis.

    Raises:
        CaptureIncomplete: a hook did not fire, or rows differ from `tokens`.
    """
    import torch

    tensors: dict[str, torch.Tensor] = {}
    for point in points:
        if point.entry.parameter is not None:
            continue
        chunks = records.get(point.name)
        if not chunks:
            raise CaptureIncomplete(f"the hook on {point.module} for {point.name} did not fire")
        if len(chunks) > 1:
            chunks = [chunk.reshape(-1, chunk.shape[-1]) for chunk in chunks]
        tensor = torch.cat(list(chunks)) if len(chunks) > 1 else chunks[0]
        tensors[point.name] = flatten_tokens(tensor, point.name, tokens).cpu()
    sort_experts(tensors)
    patterns = list(patterns)
    return {name: tensor for name, tensor in tensors.items() if any(match_name(p, name) for p in patterns)}
