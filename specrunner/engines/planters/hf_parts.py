"""The parts of the LLaDA2 that Transformers runs, as the planters of `hf` need them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch

from specrunner.engines.base import Engine
from specrunner.engines.planters.patching import Planter, all_of, replaced
from specrunner.errors import FaultInapplicable


def find_model(engine: Engine) -> Any:
    """Return the live model.

    Raises:
        FaultInapplicable: it is not the LLaDA2 whose modeling file is ours.
    """
    model = getattr(engine, "_model", None)
    if not hasattr(sys.modules.get(type(model).__module__), "block_causal_mask"):
        raise FaultInapplicable(f"the planters of hf know our own LLaDA2, not {type(model).__name__}")
    return model


def find_code(engine: Engine) -> Any:
    """Return the Python module of the model's code, whose functions the model looks up at each call."""
    return sys.modules[type(find_model(engine)).__module__]


def find_class(engine: Engine, name: str) -> Any:
    """Return a class of the modeling file; for the model's own, the subclass that Transformers makes of it."""
    model = find_model(engine)
    own = next((kind for kind in type(model).__mro__ if kind.__name__ == name), None)
    return own or getattr(find_code(engine), name)


def change_code(name: str, make: Callable[[Any, Any], Any]) -> Planter:
    """Replace a function of the modeling file by `make(code, original)`."""

    def plant(engine: Engine) -> AbstractContextManager[None]:
        code = find_code(engine)
        return replaced(code, name, make(code, getattr(code, name)))

    return plant


def change_method(class_name: str, method: str, make: Callable[[Any], Any]) -> Planter:
    """Replace a method of one of the modeling file's classes by `make(original)`."""

    def plant(engine: Engine) -> AbstractContextManager[None]:
        owner = find_class(engine, class_name)
        return replaced(owner, method, make(getattr(owner, method)))

    return plant


def change_modules(find: Callable[[Any], Iterable[Any]], make: Callable[[Any, Any], Any]) -> Planter:
    """Shadow `forward` of some modules by `make(module, original)`."""

    def plant(engine: Engine) -> AbstractContextManager[None]:
        modules = list(find(find_model(engine)))
        return all_of(replaced(module, "forward", make(module, module.forward)) for module in modules)

    return plant


def change_weights(find: Callable[[Any], Iterable[tuple[Any, torch.Tensor]]]) -> Planter:
    """Exchange tensors: `find` yields (parameter or buffer, its new values), computed before the first exchange."""

    def plant(engine: Engine) -> AbstractContextManager[None]:
        pairs = list(find(find_model(engine)))
        return all_of(replaced_data(tensor, values) for tensor, values in pairs)

    return plant


class replaced_data(AbstractContextManager[None]):
    """Give a tensor other values for a while, in its own dtype."""

    def __init__(self, tensor: Any, values: torch.Tensor) -> None:
        self._tensor, self._values = tensor, values.to(tensor.dtype).clone()

    def __enter__(self) -> None:
        """Put the new values in."""
        self._before = self._tensor.data
        self._tensor.data = self._values

    def __exit__(self, *_: object) -> None:
        """Put the old ones back."""
        self._tensor.data = self._before


def layers(model: Any) -> Iterable[Any]:
    """Return the decoder layers."""
    found: Iterable[Any] = model.model.layers
    return found


def mixtures(model: Any) -> list[Any]:
    """Return the mixtures of experts."""
    return [layer.mlp for layer in layers(model) if hasattr(layer.mlp, "gate")]


def linears(model: Any) -> list[Any]:
    """Return every linear layer of the stack and the head."""
    return [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
