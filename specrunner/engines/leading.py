"""Feeding a live torch model with a reference's tensors: each module then shows its own error, not what it inherits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from specrunner.engines.module_index import ModuleIndex
from specrunner.engines.name_maps import HookPoint

if TYPE_CHECKING:
    import torch


@contextmanager
def lead_inputs(index: ModuleIndex, reference: Mapping[str, Any]) -> Iterator[None]:
    """Feed each layer, the final norm and the head with the reference's input while the context is open.

    Args:
        index: of the model.
        reference: the reference's tensors by name; what is missing is not fed.
    """
    undo = []
    for name, module in _find_fed(index.points, index.modules):
        value = reference.get(name)
        if value is not None:
            undo.append(module.register_forward_pre_hook(_feed(value), with_kwargs=True))
    try:
        yield
    finally:
        for handle in undo:
            handle.remove()


@contextmanager
def lead_routing(index: ModuleIndex, reference: Mapping[str, Any]) -> Iterator[None]:
    """Replay the reference's experts and their weights while the context is open.

    It reaches every router that returns its choice: ids and weights stand in one tuple (see the name map).
    """
    by_name = {point.name: point for point in index.points}
    undo = []
    for name, point in by_name.items():
        weights = by_name.get(name.removesuffix("expert_ids") + "expert_weights")
        if not name.endswith(".router.expert_ids") or weights is None or weights.module != point.module:
            continue
        if name in reference and weights.name in reference and point.entry.index is not None:
            places = {point.entry.index: reference[name], weights.entry.index: reference[weights.name]}
            undo.append(index.modules[point.module].register_forward_hook(_replace(places)))
    try:
        yield
    finally:
        for handle in undo:
            handle.remove()


def _find_fed(points: list[HookPoint], modules: Mapping[str, torch.nn.Module]) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield the tensor that feeds a module, with that module: each layer, the final norm, the head."""
    by_name = {point.name: point for point in points}
    layers = [point for point in points if point.name.startswith("layers.") and point.name.count(".") == 2]
    for point in layers:
        number = int(point.name.split(".")[1])
        yield ("embeddings" if number == 0 else f"layers.{number - 1}.output"), modules[point.module]
    if layers and "final_norm" in by_name:
        yield layers[-1].name, modules[by_name["final_norm"].module]
    head = by_name["logits"].module if "logits" in by_name else ""
    if "final_norm" in by_name and head:
        yield "final_norm", modules[head]


def _feed(value: Any) -> Any:
    def before(_module: Any, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if inputs:
            fed = _shape_like(value, inputs[0])
            return (fed, *inputs[1:]), kwargs
        name = next(iter(kwargs))
        return inputs, {**kwargs, name: _shape_like(value, kwargs[name])}

    return before


def _replace(places: Mapping[int | None, Any]) -> Any:
    def after(_module: Any, _inputs: Any, outputs: Any) -> Any:
        return tuple(
            _shape_like(places[index], output) if index in places else output for index, output in enumerate(outputs)
        )

    return after


def _shape_like(value: Any, like: Any) -> Any:
    return value.to(dtype=like.dtype, device=like.device).reshape(like.shape)
