"""The capture extension: what runs inside vLLM's worker processes, next to the model.

vLLM mixes `CaptureExtension` into its worker class (`worker_extension_cls`), and the adapter calls its methods on every
rank through `collective_rpc`. Tensors leave as safetensors files, since an RPC does not keep their types.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from specrunner.engines.hooks import Geometry, Recorder, select_points
from specrunner.engines.name_maps import HookPoint, NameMap, load_maps
from specrunner.errors import CaptureIncomplete, FaultInapplicable, ModelUnsupported

if TYPE_CHECKING:
    import torch

    from specrunner.faults.planters.served import PlantedFault

LOGITS = "logits"
FINAL_NORM = "final_norm"


class QuietRecorder(Recorder):
    """A recorder that remembers the first error instead of raising it: a raising hook kills vLLM's engine core."""

    error: str | None = None

    def _record(self, point: HookPoint, inputs: Sequence[Any], outputs: Any) -> None:
        try:
            super()._record(point, inputs, outputs)
        except Exception as error:  # noqa: BLE001
            self.error = self.error or f"{point.name}: {error}"


class CaptureExtension:
    """Methods that every vLLM worker gets; `specrunner_` keeps them apart from vLLM's own."""

    model_runner: Any
    rank: int
    _specrunner_fault: PlantedFault | None = None

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

    def specrunner_begin(self, architecture: str, patterns: list[str], last_rows: int | None = None) -> list[str]:
        """Install hooks for the tensors that `patterns` select; return their names in model order.

        Args:
            architecture: key of the name map.
            patterns: tensor patterns.
            last_rows: compute the logits of this many rows only, the last ones; None is all.

        Raises:
            CaptureIncomplete: a pattern matches nothing, or a module of the map is not there.
        """
        model = self.model_runner.get_model()
        name_map = load_maps("vllm")[architecture]
        points = available_points(name_map, model, self._specrunner_layers(name_map))
        chosen = select_points(points, patterns)
        self._specrunner_names = [point.name for point in chosen]
        self._specrunner_last_rows = last_rows
        hooked = [point for point in chosen if point.name != LOGITS]
        if LOGITS in self._specrunner_names and FINAL_NORM not in self._specrunner_names:
            hooked += [point for point in points if point.name == FINAL_NORM]
        self._specrunner_recorder = QuietRecorder(model, hooked, self._specrunner_geometry())
        return self._specrunner_names

    def specrunner_end(self, path: str, gathered: list[str]) -> dict[str, Any]:
        """Take the hooks off and write what they recorded to `path` + `.` + this rank.

        Args:
            path: prefix of the files, in a directory that every rank can write.
            gathered: names that every rank has to write; the others come from rank 0 alone.

        Returns:
            `rows`: by name, the rows of each forward; `error`: the first error in a hook, or None.
        """
        import torch
        from safetensors.torch import save_file

        recorder = self._specrunner_recorder
        recorder.remove()
        records = recorder.take()
        wanted = {
            name: join_chunks(records[name])
            for name in self._specrunner_names
            if name in records and (self.rank == 0 or name in gathered)
        }
        if LOGITS in self._specrunner_names and FINAL_NORM in records:
            hidden = join_chunks(records[FINAL_NORM])
            if self._specrunner_last_rows is not None:
                hidden = hidden[-self._specrunner_last_rows :]
            with torch.inference_mode():
                # Tensor parallel: every rank takes part, rank 0 holds the result.
                logits = self.model_runner.get_model().compute_logits(hidden)
            if self.rank == 0:
                wanted[LOGITS] = logits
        save_file({name: tensor.contiguous().cpu() for name, tensor in wanted.items()}, f"{path}.{self.rank}")
        rows = {name: [int(chunk.shape[0]) for chunk in chunks] for name, chunks in records.items()}
        return {"rows": rows, "error": recorder.error}

    def specrunner_plant(self, name: str) -> str | None:
        """Plant a fault in the model; return why that cannot be, or None."""
        from specrunner.faults.planters.served import PlantedFault

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

    def _specrunner_layers(self, name_map: NameMap) -> int:
        return int(getattr(self.model_runner.model_config.hf_text_config, name_map.layers_key))

    def _specrunner_geometry(self) -> Geometry:
        config, parallel = self.model_runner.model_config, self.model_runner.vllm_config.parallel_config
        return Geometry(
            heads=config.get_num_attention_heads(parallel),
            kv_heads=config.get_num_kv_heads(parallel),
            head_dim=config.get_head_size(),
        )


def available_points(name_map: NameMap, model: torch.nn.Module, layers: int) -> list[HookPoint]:
    """List the hook points of a model; optional ones only where their module exists."""
    modules = {name for name, _ in model.named_modules()}
    return [point for point in name_map.hook_points(layers) if point.module in modules or not point.entry.optional]


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


def gather_ranks(parts: Sequence[torch.Tensor], gather: str | None, kv_replicas: int) -> torch.Tensor:
    """Put the slices of the tensor-parallel ranks together.

    Args:
        parts: [tokens, features of the rank], in the order of ranks; with `gather` None only the first counts.
        gather: `columns`, or None when every rank holds everything.
        kv_replicas: how many neighbouring ranks hold the same key and value heads; 1 for other tensors.
    """
    import torch

    if gather is None or len(parts) == 1:
        return parts[0]
    if gather != "columns":
        raise CaptureIncomplete(f"a name map says gather: {gather}, which no adapter knows")
    return torch.cat(list(parts[::kv_replicas]), dim=-1)
