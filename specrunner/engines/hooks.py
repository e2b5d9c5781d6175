"""Forward hooks over a live torch model: capture named tensors, prove that every hook fired."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from specrunner.engines.module_index import ModuleIndex
from specrunner.engines.name_maps import Entry, HookPoint
from specrunner.errors import CaptureIncomplete
from specrunner.spec.tensor_names import match_name

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
        index: of the model.
        points: what to read where, as the index chose them.
        geometry: sizes for fused projections.

    Raises:
        CaptureIncomplete: a module lacks the method that its entry names; no hook stays.
    """

    def __init__(self, index: ModuleIndex, points: Iterable[HookPoint], geometry: Geometry) -> None:
        self._geometry = geometry
        self._records: dict[str, list[torch.Tensor]] = {}
        self._undo: list[Callable[[], None]] = []
        try:
            for point in points:
                if point.entry.parameter is None:
                    self._install(index, point)
        except BaseException:
            self.remove()
            raise

    def _install(self, index: ModuleIndex, point: HookPoint) -> None:
        module = index.modules[point.module]
        if point.entry.method is not None:
            self._wrap_method(module, point)
            return
        turn = take_turns(index.find_layers(point), point.module)

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
        method = point.entry.method or ""
        *path, name = method.split(".")
        try:
            owner = functools.reduce(getattr, path, module)
            original = getattr(owner, name)
        except AttributeError:
            raise CaptureIncomplete(
                f"module {point.module} has no method {method}, where the name map looks for {point.name}"
            ) from None

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


def take_turns(paths: Sequence[str], path: str) -> Callable[[], bool]:
    """Return a function that tells, call after call of a module, which calls are those of the layer at `path`.

    One instance may stand in all layers (a rotary embedding); a forward then calls it once a layer, in their order.

    Args:
        paths: where the module stands, in the order of layers.
        path: one of them.
    """
    turns = itertools.cycle([other == path for other in paths])
    return lambda: next(turns)


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


def gather_ranks(shards: Sequence[torch.Tensor], gather: str | None, replicas: int) -> torch.Tensor:
    """Put what the tensor-parallel ranks hold together.

    Args:
        shards: [tokens, features of the rank], in the order of ranks.
        gather: `columns` (slices of the last axis), `sum` (partial sums), or None when every rank holds everything.
        replicas: how many neighbouring ranks hold the same key and value heads; 1 for other tensors.
    """
    import torch

    if gather is None or len(shards) == 1:
        return shards[0]
    if gather == "sum":
        return torch.stack([shard.float() for shard in shards]).sum(0).to(shards[0].dtype)
    if gather != "columns":
        raise CaptureIncomplete(f"a name map says gather: {gather}, which no adapter knows")
    return torch.cat(list(shards[::replicas]), dim=-1)
