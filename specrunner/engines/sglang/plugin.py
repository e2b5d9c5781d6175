"""What specrunner does inside the process that holds SGLang's model: it watches forwards and denoising steps.

SGLang loads this as one of its plugins (entry point group `sglang.srt.plugins`) in each of its processes; `register`
wraps a few functions through SGLang's hook registry. An order, put down by the adapter before it sends a request, says
what to note; each note is a set of tensors with facts. In the one-process mode both stay in memory, else they are files
in the session's workspace.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specrunner.engines.hooks import Geometry, Recorder
from specrunner.engines.module_index import ModuleIndex
from specrunner.engines.name_maps import Entry, HookPoint, NameMap, load_maps
from specrunner.engines.served_routers import describe_routers, read_biases
from specrunner.engines.sglang.notes import Mailbox, Note, Order, failure_note, write_json
from specrunner.errors import CaptureIncomplete, EngineError, FaultInapplicable, ModelUnsupported

if TYPE_CHECKING:
    from specrunner.engines.planters.served import PlantedFault

PLUGIN_VARIABLE = "SPECRUNNER_SGLANG"
"""Environment variable with the plugin's settings, a JSON object: `workspace`, `mask_id`, `diffusion`."""

LOGITS = Entry(module="logits_processor", method="_get_logits")
"""Where every model of SGLang computes its logits."""

MODEL_FILE = "model.json"
FAILURE_FILE = "failure.json"


class Observer:
    """Watches one model.

    Args:
        read_order: returns the order in force, or None.
        write_note: takes a note.
    """

    def __init__(self, read_order: Callable[[], Order | None], write_note: Callable[[Note], None]) -> None:
        self._read_order = read_order
        self._write_note = write_note
        self._tail_of = -1
        self._threshold: float | None = None
        self._fault_of = -1
        self._fault: PlantedFault | None = None
        self._index: ModuleIndex | None = None

    def forward(self, original: Callable[..., Any], runner: Any, batch: Any, *rest: Any, **keywords: Any) -> Any:
        """Stand around `ModelRunner.forward`: plant the order's fault, and read tensors off the prompt's forwards."""
        order = self._read_order()
        if order is None or runner.is_draft_worker or order.number == self._fault_of:
            return self._watch(order, original, runner, batch, *rest, **keywords)
        self._fault_of = order.number
        with self._noting_inapplicable():
            self._change_fault(order.fault, runner.model)
        output = self._watch(order, original, runner, batch, *rest, **keywords)
        with self._noting_inapplicable():
            if self._fault is not None:
                self._fault.check()
        return output

    @contextmanager
    def _noting_inapplicable(self) -> Iterator[None]:
        try:
            yield
        except FaultInapplicable as error:
            self._write_note(failure_note(error))

    def _change_fault(self, name: str | None, model: Any) -> None:
        """Take out the fault of the order before, and plant this one's."""
        from specrunner.engines.planters.sampling import SGLANG
        from specrunner.engines.planters.served import PlantedFault

        fault, self._fault = self._fault, None
        if fault is not None:
            fault.remove()
        if name is not None and name not in SGLANG:
            self._fault = PlantedFault(model, name)

    def _watch(
        self, order: Order | None, original: Callable[..., Any], runner: Any, batch: Any, *rest: Any, **keywords: Any
    ) -> Any:
        if order is None or not order.patterns or runner.is_draft_worker or not is_prompt_forward(batch):
            return original(runner, batch, *rest, **keywords)
        part = find_rows(order, batch)
        if part is None:
            return original(runner, batch, *rest, **keywords)
        if not batch.forward_mode.is_dllm_extend():
            return self._record(order, original, runner, batch, *rest, **keywords)
        start, rows = int(batch.positions[part.start]), part.stop - part.start
        if start + rows <= order.prompt_length:
            return self._record(order, original, runner, batch, *rest, **keywords)
        if start < order.prompt_length and self._tail_of != order.number:
            # The block goes on with masks, which the prompt's own tokens would see. A forward over those alone comes
            # first; the block's own forward then writes their keys and values anew.
            self._tail_of = order.number
            try:
                if rows < len(batch.input_ids):
                    raise ModelUnsupported(
                        "the prompt ends inside a block, and in a batch its tail cannot be forwarded alone",
                        help="give a prompt whose length is a multiple of the block length",
                    )
                self._record(order, original, runner, trim_block(runner, batch, order.prompt_length - start))
            except ModelUnsupported as error:
                self._write_note(failure_note(error))
        return original(runner, batch, *rest, **keywords)

    def _record(
        self, order: Order, original: Callable[..., Any], runner: Any, batch: Any, *rest: Any, **kw: Any
    ) -> Any:
        import torch

        try:
            index = self._index_modules(runner)
            points = index.choose(order.patterns)
            recorder = Recorder(index, points, rank_geometry(runner))
        except EngineError as error:
            self._write_note(failure_note(error))
            return original(runner, batch, *rest, **kw)
        try:
            output = original(runner, batch, *rest, **kw)
            records = recorder.take()
        except (EngineError, AttributeError, IndexError, TypeError) as error:
            # A name map that does not fit must not cost the scheduler its life: the forward is done again, unwatched.
            recorder.remove()
            self._write_note(failure_note(explain_misfit(error)))
            return original(runner, batch, *rest, **kw)
        finally:
            recorder.remove()
        tensors = {
            name: torch.cat([chunk.reshape(-1, chunk.shape[-1]) for chunk in chunks]) if len(chunks) > 1 else chunks[0]
            for name, chunks in records.items()
        }
        scale_expert_weights(runner.model, points, tensors)
        part = find_rows(order, batch) or slice(0, len(batch.input_ids))
        if part.stop - part.start < len(batch.input_ids):
            tensors = {name: tensor[part] for name, tensor in tensors.items()}
        tensors |= read_biases(runner.model, index.points, tensors)
        facts = {
            "start": int(batch.positions[part.start]),
            "rows": part.stop - part.start,
            "requests": batch.batch_size,
            "points": [[point.name, point.module, point.entry.gather] for point in points],
        }
        self._write_note(Note("prompt", facts, {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}))
        return output

    def _index_modules(self, runner: Any) -> ModuleIndex:
        """Return the index of the runner's model, as it is now."""
        if self._index is None or self._index.model is not runner.model:
            self._index = index_modules(runner)
        return self._index.refresh()

    def step(self, original: Callable[..., Any], algorithm: Any, batch: Any, logits: Any, states: Any) -> Any:
        """Stand around a diffusion algorithm's `step`: note what it saw and filled."""
        order = self._read_order()
        if order is None:
            return original(algorithm, batch, logits, states)
        if self._threshold is None:
            self._threshold = algorithm.threshold
        algorithm.threshold = self._threshold if order.threshold is None else order.threshold
        part = find_rows(order, batch)
        if part is None:
            return original(algorithm, batch, logits, states)
        before = batch.input_ids[part].clone()
        masked = before == algorithm.mask_id
        if batch.dllm_prompt_mask is not None:
            masked &= ~batch.dllm_prompt_mask.view(-1)[part]
        start = int(batch.positions[part.start])
        kept = {"logits": logits[part].detach().cpu().clone()} if order.keep_logits and bool(masked.any()) else {}
        done = plant_step(order.fault, original)(algorithm, batch, logits, states)
        facts = {
            "block_start": start,
            "tokens_before": before.tolist(),
            "tokens_after": batch.input_ids[part].tolist(),
            "accepted": (masked & (batch.input_ids[part] != before)).tolist(),
            "requests": batch.batch_size,
        }
        if bool(masked.any()):
            self._write_note(Note("pass", facts, kept))
        elif start + len(before) > order.prompt_length:
            self._write_note(Note("refresh", {"block_start": start}))
        return done


def find_rows(order: Order, batch: Any) -> slice | None:
    """Return the rows that the judged request has in a forward, or None where it has none."""
    if order.judged is None:
        return slice(0, len(batch.input_ids))
    requests = list(batch.rids or ())
    if order.judged not in requests:
        return None
    place = requests.index(order.judged)
    lengths = [int(length) for length in batch.extend_seq_lens_cpu]
    start = sum(lengths[:place])
    return slice(start, start + lengths[place])


def plant_step(fault: str | None, original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a diffusion algorithm's step with a fault of the sampler, where the order names one."""
    if fault is None:
        return original
    from specrunner.engines.planters.sampling import SGLANG

    return SGLANG[fault](original) if fault in SGLANG else original


def explain_misfit(error: Exception) -> EngineError:
    """Say that a hook could not read what its name map speaks of."""
    if isinstance(error, EngineError):
        return error
    return CaptureIncomplete(f"a hook could not read its module: {type(error).__name__}: {error}")


def is_prompt_forward(batch: Any) -> bool:
    """Tell whether a forward takes prompt tokens, or a block of a diffusion model."""
    return bool(batch.forward_mode.is_extend_without_speculative())


def choose_map(architecture: str) -> NameMap:
    """Return the architecture's name map; without one, a map that knows the logits alone."""
    fallback = NameMap("sglang", "none", (architecture,), "num_hidden_layers", {"logits": LOGITS})
    return load_maps("sglang").get(architecture, fallback)


def index_modules(runner: Any) -> ModuleIndex:
    """Return where the tensors of a runner's model are read."""
    name_map = choose_map(type(runner.model).__name__)
    return ModuleIndex(runner.model, name_map, getattr(runner.model_config.hf_text_config, name_map.layers_key, 0))


def rank_geometry(runner: Any) -> Geometry:
    """Return the attention's sizes on this tensor-parallel rank."""
    from sglang.srt.runtime_context import get_parallel

    config, ranks = runner.model_config, get_parallel().tp_size
    return Geometry(
        heads=config.num_attention_heads // ranks,
        kv_heads=max(1, config.get_total_num_kv_heads() // ranks),
        head_dim=config.head_dim,
    )


def scale_expert_weights(model: Any, points: Sequence[HookPoint], tensors: dict[str, Any]) -> None:
    """Multiply expert weights by the routed scaling factor where SGLang leaves that to the experts, in place."""
    for point in points:
        if not point.name.endswith("router.expert_weights") or point.name not in tensors:
            continue
        config: Any = getattr(model.get_submodule(point.module), "topk_config", None)
        factor = getattr(config, "routed_scaling_factor", None)
        if factor is not None and not config.apply_routed_scaling_factor_on_output:
            tensors[point.name] = tensors[point.name] * factor


def trim_block(runner: Any, batch: Any, rows: int) -> Any:
    """Return a copy of a one-block batch that holds the first `rows` tokens of its block.

    Raises:
        ModelUnsupported: the attention backend takes whole blocks only.
    """
    backend = type(runner.attn_backend).__name__
    if backend != "TorchNativeAttnBackend":
        raise ModelUnsupported(
            f"{backend} computes whole blocks of {len(batch.input_ids)} tokens, and the prompt ends inside one",
            help="give a prompt whose length is a multiple of the block length",
        )
    cut = len(batch.input_ids) - rows
    part = copy.copy(batch)
    for name in ("input_ids", "positions", "out_cache_loc"):
        setattr(part, name, getattr(batch, name)[:rows].clone())
    for name in ("seq_lens", "seq_lens_cpu", "orig_seq_lens", "extend_seq_lens"):
        value = getattr(batch, name)
        setattr(part, name, None if value is None else value - cut)
    part.seq_lens_sum = batch.seq_lens_sum - cut
    part.extend_num_tokens = rows
    part.extend_seq_lens_cpu = [rows]
    part.dllm_prompt_mask = None
    return part


def describe_model(runner: Any) -> dict[str, Any]:
    """Say what SGLang really loaded, JSON values only."""
    import torch
    from sglang.srt.runtime_context import get_parallel

    model = runner.model
    dtypes: dict[str, int] = {}
    for parameter in model.parameters():
        name = str(parameter.dtype).removeprefix("torch.")
        dtypes[name] = dtypes.get(name, 0) + parameter.numel()
    eos = runner.model_config.hf_eos_token_id
    return {
        "model_class": f"{type(model).__module__}.{type(model).__name__}",
        "class_name": type(model).__name__,
        "attention_backend": type(runner.attn_backend).__name__,
        "runner": f"{type(runner).__module__}.{type(runner).__name__}",
        "dtypes": dtypes,
        "parameters": sum(dtypes.values()),
        "vocabulary": runner.model_config.vocab_size,
        "context_length": runner.model_config.context_len,
        "max_total_tokens": runner.max_total_num_tokens,
        "page_size": runner.token_to_kv_pool_allocator.page_size,
        "eos_token_ids": sorted(eos or ()),
        "kv_cache_dtype": str(runner.kv_cache_dtype).removeprefix("torch."),
        "kv_heads": runner.model_config.get_total_num_kv_heads(),
        "tensor_parallel_size": get_parallel().tp_size,
        "threads": torch.get_num_threads(),
        "router": describe_routers(model, index_modules(runner).points),
    }


def register() -> None:
    """Wrap what has to be watched; called by SGLang's `load_plugins` in each of its processes."""
    settings = json.loads(os.environ[PLUGIN_VARIABLE])
    if "sglang.srt.managers.scheduler" not in sys.modules:
        return  # the detokenizer
    mailbox = Mailbox(Path(settings["workspace"]))
    ranks: list[int] = []
    observer = Observer(mailbox.read_order, lambda note: mailbox.write_note(note, ranks[0]))

    def after_load(_result: None, scheduler: Any, *_arguments: Any, **_keywords: Any) -> None:
        from sglang.srt.runtime_context import get_parallel

        runner = scheduler.tp_worker.model_runner
        ranks.append(get_parallel().tp_rank)
        if ranks[0] == 0:
            write_json(Path(settings["workspace"]) / MODEL_FILE, describe_model(runner))

    def reporting(original: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        try:
            return original(*arguments, **keywords)
        except Exception as error:
            lines = str(error).strip().splitlines()
            failure = {"type": type(error).__name__, "message": lines[0] if lines else "", "text": str(error)[:2000]}
            write_json(Path(settings["workspace"]) / FAILURE_FILE, failure)
            traceback.print_exc()
            raise

    scheduler_class = "sglang.srt.managers.scheduler.Scheduler"
    install_hooks(observer, settings.get("mask_id"), settings["diffusion"])
    wrap(f"{scheduler_class}.__init__", reporting, "AROUND")
    wrap(f"{scheduler_class}.__init__", after_load, "AFTER")
    wrap(f"{scheduler_class}.run_event_loop", reporting, "AROUND")


def install_hooks(observer: Observer, mask_id: int | None, diffusion: bool) -> None:
    """Register the observer with SGLang's hook registry, and the checkpoint's mask id where it has one."""
    wrap("sglang.srt.model_executor.model_runner.ModelRunner.forward", observer.forward, "AROUND")
    if not diffusion:
        return
    wrap("sglang.srt.dllm.algorithm.low_confidence.LowConfidence.step", observer.step, "AROUND")

    def set_mask(config: Any, *_arguments: Any, **_keywords: Any) -> None:
        if config is not None and mask_id is not None:
            config.mask_id = mask_id

    wrap("sglang.srt.dllm.config.DllmConfig.from_server_args", set_mask, "AFTER")


def wrap(target: str, hook: Callable[..., Any], kind: str) -> None:
    """Register one hook, `AROUND` or `AFTER` a function."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(target, hook, HookType[kind])
