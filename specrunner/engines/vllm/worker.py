"""The capture extension: what runs inside vLLM's worker processes, next to the model.

vLLM mixes `CaptureExtension` into its worker class (`worker_extension_cls`), and the adapter calls its methods on every
rank through `collective_rpc`. Tensors leave other processes as safetensors files: an RPC does not keep their types.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specrunner.engines.hooks import Geometry, Recorder
from specrunner.engines.module_index import ModuleIndex
from specrunner.engines.name_maps import HookPoint, load_maps
from specrunner.engines.served_routers import describe_routers, read_biases
from specrunner.errors import CaptureIncomplete, FaultInapplicable, ModelUnsupported

if TYPE_CHECKING:
    import torch

    from specrunner.engines.planters.served import PlantedFault

LOGITS = "logits"
FINAL_NORM = "final_norm"


HELD: dict[str, dict[str, torch.Tensor]] = {}
"""Tensors, by the file they would be in, of workers that live in the adapter's own process."""


def hand_over(tensors: Mapping[str, torch.Tensor], path: str, caller: int) -> None:
    """Give tensors to the adapter: through memory where it is this process (`caller`), else through the file `path`.

    What goes through memory is as good as a file: what is part of a larger buffer, or made for inference, is copied.
    """
    if os.getpid() != caller:
        from safetensors.torch import save_file

        save_file(dict(tensors), path)
        return
    HELD[path] = {
        name: tensor.clone() if tensor.is_inference() or tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
        for name, tensor in tensors.items()
    }


def take_tensors(path: str) -> dict[str, torch.Tensor]:
    """Return what `hand_over` gave under this path, once."""
    if path in HELD:
        return HELD.pop(path)
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = load_file(path)
    Path(path).unlink()
    return tensors


class QuietRecorder(Recorder):
    """A recorder that remembers the first error instead of raising it: a raising hook kills vLLM's engine core.

    Its copies are no tensors of inference mode, under which vLLM computes, so that they can be handed over as they are.
    """

    error: str | None = None
    layout: Callable[[], dict[str, int]] | None = None
    layouts: list[dict[str, int]]
    """Of each forward, the rows of each request in it, in their order; only where `layout` can tell."""

    def _record(self, point: HookPoint, inputs: Sequence[Any], outputs: Any) -> None:
        import torch

        try:
            with torch.inference_mode(False):
                super()._record(point, inputs, outputs)
            if self.layout is not None and len(self._records[point.name]) > len(self.layouts):
                self.layouts.append(self.layout())
        except Exception as error:  # noqa: BLE001
            self.error = self.error or f"{point.name}: {error}"


class CaptureExtension:
    """Methods that every vLLM worker gets; `specrunner_` keeps them apart from vLLM's own."""

    model_runner: Any
    rank: int
    _specrunner_fault: PlantedFault | None = None
    _specrunner_index: ModuleIndex | None = None

    def specrunner_describe(self) -> dict[str, Any]:
        """Return what this worker really runs, JSON values only."""
        model = self.model_runner.get_model()
        config = self.model_runner.vllm_config
        groups = attention_groups(self.model_runner)
        return {
            "model_class": f"{type(model).__module__}.{type(model).__name__}",
            "bases": [f"{base.__module__}.{base.__name__}" for base in type(model).__mro__],
            "attention_backends": sorted({group.backend.get_name() for group in groups}),
            "attention_windows": attention_windows(config),
            "runner": f"{type(self.model_runner).__module__}.{type(self.model_runner).__name__}",
            "worker": f"{type(self).__module__}.{type(self).__name__}",
            "parameter_dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in model.parameters()}),
        }

    def specrunner_describe_router(self, architecture: str) -> dict[str, Any] | None:
        """Return how the routers of the model choose (see `describe_routers`); `architecture` is the map's key."""
        index = self._specrunner_modules(architecture)
        return describe_routers(index.model, index.points)

    def specrunner_make_bidirectional(self) -> list[str]:
        """Let every query see all keys written so far, its own chunk included; return the backends patched.

        Raises:
            ModelUnsupported: an attention backend that cannot do without the causal mask.
        """
        groups = attention_groups(self.model_runner)
        for group in groups:
            if not group.backend.supports_non_causal():
                raise ModelUnsupported(f"attention backend {group.backend.get_name()} is causal only")
        for group in groups:
            for builder in group.metadata_builders:
                drop_causality(builder)
        return sorted({group.backend.get_name() for group in groups})

    def specrunner_begin(
        self, architecture: str, patterns: list[str], last_rows: int | None = None, prompts: int = 1
    ) -> list[str]:
        """Install hooks for the tensors that `patterns` select; return their names in model order.

        Args:
            architecture: key of the name map.
            patterns: tensor patterns.
            last_rows: compute the logits of this many rows only, the last ones; None is all.
            prompts: how many are to come in one batch.

        Raises:
            CaptureIncomplete: a pattern matches nothing, or a module of the map is not there.
        """
        index = self._specrunner_modules(architecture)
        chosen = index.choose(patterns)
        self._specrunner_names = [point.name for point in chosen]
        self._specrunner_biases = read_biases(index.model, index.points, self._specrunner_names)
        self._specrunner_last_rows = last_rows
        hooked = [point for point in chosen if point.name != LOGITS]
        if LOGITS in self._specrunner_names and FINAL_NORM not in self._specrunner_names:
            hooked += index.choose([FINAL_NORM])
        recorder = QuietRecorder(index, hooked, self._specrunner_geometry())
        recorder.layouts = []
        recorder.layout = self._specrunner_layout if prompts > 1 else None
        self._specrunner_recorder = recorder
        return self._specrunner_names

    def specrunner_end(self, path: str, gathered: list[str], caller: int) -> dict[str, Any]:
        """Take the hooks off and hand over what they recorded, see `take_tensors`.

        Args:
            path: prefix of the files, in a directory that every rank can write.
            gathered: names that every rank has to hand over; the others come from rank 0 alone.
            caller: process id of the adapter.

        Returns:
            `rows`: by name, the rows of each forward; `error`: the first error in a hook, or None. Of a batch, rows and
            tensors are those of the first prompt; the last logits of the others stand under `companions.{i}.logits`,
            and `together` counts the forwards that had several prompts.
        """
        import torch

        recorder = self._specrunner_recorder
        recorder.remove()
        together = sum(len(layout) > 1 for layout in recorder.layouts)
        batch = recorder.take()
        records = keep_request(batch, recorder.layouts, 0) if recorder.layout is not None else batch
        wanted = {
            name: join_chunks(records[name])
            for name in self._specrunner_names
            if name in records and (self.rank == 0 or name in gathered)
        }
        if LOGITS in self._specrunner_names and FINAL_NORM in records:
            hidden = join_chunks(records[FINAL_NORM])
            last = self._specrunner_last_rows
            hiddens = {LOGITS: hidden if last is None else hidden[-last:]}
            for number in range(1, len(list_requests(recorder.layouts)) if last is not None else 0):
                own = keep_request({FINAL_NORM: batch[FINAL_NORM]}, recorder.layouts, number)
                hiddens[f"companions.{number - 1}.{LOGITS}"] = join_chunks(own[FINAL_NORM])[-int(last or 0) :]
            for name, value in hiddens.items():
                with torch.no_grad():
                    # Tensor parallel: every rank takes part, rank 0 holds the result.
                    logits = self.model_runner.get_model().compute_logits(value)
                if self.rank == 0:
                    wanted[name] = logits
        if self.rank == 0:
            wanted |= self._specrunner_biases
        hand_over({name: tensor.contiguous().cpu() for name, tensor in wanted.items()}, f"{path}.{self.rank}", caller)
        rows = {name: [int(chunk.shape[0]) for chunk in chunks] for name, chunks in records.items()}
        return {"rows": rows, "error": recorder.error, "together": together}

    def specrunner_plant(self, name: str) -> str | None:
        """Plant a fault in the model; return why that cannot be, or None."""
        from specrunner.engines.planters.served import PlantedFault

        self._specrunner_fault = None
        try:
            self._specrunner_fault = PlantedFault(self.model_runner.get_model(), name)
        except FaultInapplicable as error:
            return error.message
        return None

    def specrunner_unplant(self) -> str | None:
        """Take the fault out again; return why the forwards since cannot have had it, or None."""
        fault, self._specrunner_fault = self._specrunner_fault, None
        if fault is None:
            return None
        fault.remove()
        try:
            fault.check()
        except FaultInapplicable as error:
            return error.message
        return None

    def _specrunner_layout(self) -> dict[str, int]:
        """Return how many rows each request has in the forward that runs, in the order of packing."""
        runner = self.model_runner
        names = [name for name in runner.input_batch.req_ids if name is not None]
        starts = runner.query_start_loc.np[: len(names) + 1].tolist()
        return {name: starts[place + 1] - starts[place] for place, name in enumerate(names)}

    def _specrunner_modules(self, architecture: str) -> ModuleIndex:
        """Return the index of the model's modules, as they are now; `architecture` is the map's key."""
        if self._specrunner_index is None:
            name_map = load_maps("vllm")[architecture]
            layers = int(getattr(self.model_runner.model_config.hf_text_config, name_map.layers_key))
            self._specrunner_index = ModuleIndex(self.model_runner.get_model(), name_map, layers)
        return self._specrunner_index.refresh()

    def _specrunner_geometry(self) -> Geometry:
        config, parallel = self.model_runner.model_config, self.model_runner.vllm_config.parallel_config
        return Geometry(
            heads=config.get_num_attention_heads(parallel),
            kv_heads=config.get_num_kv_heads(parallel),
            head_dim=config.get_head_size(),
        )


def list_requests(layouts: Sequence[Mapping[str, int]]) -> list[str]:
    """Return the requests of a batch in the order in which they came."""
    return list(dict.fromkeys(name for layout in layouts for name in layout))


def keep_request(
    records: Mapping[str, Sequence[torch.Tensor]], layouts: Sequence[Mapping[str, int]], number: int
) -> dict[str, list[torch.Tensor]]:
    """Cut one request's rows out of packed forwards, [rows of all requests, ...] each.

    Args:
        records: by tensor name, one tensor a forward.
        layouts: of each forward, the rows of its requests in the order of packing.
        number: which request, in the order in which they came.

    Raises:
        CaptureIncomplete: a tensor has other rows than the requests together.
    """
    request = (list_requests(layouts) or [""])[number]
    kept: dict[str, list[torch.Tensor]] = {}
    for name, chunks in records.items():
        kept[name] = []
        for chunk, layout in zip(chunks, layouts, strict=True):
            if chunk.shape[0] != sum(layout.values()):
                raise CaptureIncomplete(
                    f"{name} has {chunk.shape[0]} rows for {sum(layout.values())} tokens of a batch"
                )
            if request in layout:
                start = sum(rows for other, rows in list(layout.items())[: list(layout).index(request)])
                kept[name].append(chunk[start : start + layout[request]])
    return kept


def join_chunks(chunks: Sequence[torch.Tensor]) -> torch.Tensor:
    """Join the forwards of a chunked prefill into [tokens, features]; vLLM packs tokens along the first axis."""
    import torch

    rows = [chunk.reshape(chunk.shape[0], -1) for chunk in chunks]
    return torch.cat(rows) if len(rows) > 1 else rows[0]


def attention_groups(runner: Any) -> list[Any]:
    """Return the runner's attention groups (layers that share a backend and its metadata builder)."""
    return [group for groups in runner.attn_groups for group in groups]


def attention_windows(config: Any) -> dict[str, int]:
    """Return the sliding window of each attention layer that has one, by the layer's name."""
    layers = config.compilation_config.static_forward_context
    windows = {name: getattr(getattr(layer, "impl", None), "sliding_window", None) for name, layer in layers.items()}
    sizes = {name: window[0] if isinstance(window, tuple | list) else window for name, window in windows.items()}
    return {name: int(size) for name, size in sizes.items() if size is not None and size > 0}


def drop_causality(builder: Any) -> None:
    """Make a metadata builder state that its batches are not causal."""
    original = builder.build

    def build(common_prefix_len: int, common_attn_metadata: Any, *args: Any, **kwargs: Any) -> Any:
        common_attn_metadata.causal = False
        return original(common_prefix_len, common_attn_metadata, *args, **kwargs)

    builder.build = build
