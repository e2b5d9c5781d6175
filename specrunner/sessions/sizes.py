"""How much of a machine a session takes, estimated before it is loaded, and how much there is. Without torch."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from specrunner.catalogue.recipes import RECIPES
from specrunner.engines.base import GPU_OPTIONS
from specrunner.engines.checkpoint_files import WEIGHTS, list_weights
from specrunner.folders import hub_folder
from specrunner.models.recipes import find_built
from specrunner.requests import DTYPE_BYTES, Session
from specrunner.sessions.places import Need
from specrunner.spec.model import Model

PROCESS_BYTES = 3 << 29
"""1.5 GiB: a worker with its libraries and no weights. Measured on a CPU with a model of 0.8 million parameters, after
its first request (PSS of all processes): hf 0.3, SGLang 0.5, vLLM 1.5 GiB."""

WEIGHTS_MARGIN = 1.2
"""Bytes taken for each byte of weights: activations, buffers, and shards that are read while others are converted."""


def estimate_need(session: Session) -> Need:
    """Estimate what a session takes up."""
    return Need(estimate_memory(session), count_needed_gpus(session) if session.device == "cuda" else 0)


def estimate_memory(session: Session) -> int:
    """Estimate the host's memory that a session takes, in bytes.

    PROCESS_BYTES + WEIGHTS_MARGIN · (bytes of weights on disk) · (bytes of the session's dtype / of the checkpoint's)
    + the option `kv_cache_memory_bytes` on a CPU. Weights that are not on this machine yet count as 0.
    """
    total = float(PROCESS_BYTES)
    folder = find_checkpoint(session.model)
    if folder is not None:
        stored = DTYPE_BYTES.get(read_dtype(folder), 0)
        ratio = DTYPE_BYTES.get(session.dtype, stored) / stored if stored else 1.0
        total += WEIGHTS_MARGIN * measure_weights(folder) * ratio
    cache = session.options.get("kv_cache_memory_bytes", 0)
    if session.device == "cpu" and isinstance(cache, int):
        total += cache
    return int(total)


def count_needed_gpus(session: Session) -> int:
    """Return how many GPUs a session's options ask for; 1 when they say nothing of it."""
    counts = [
        math.prod(value for name in names if isinstance(value := session.options.get(name, 1), int) and value > 0)
        for names in GPU_OPTIONS
    ]
    return max(counts)


def find_checkpoint(model: Model) -> Path | None:
    """Return the folder of a checkpoint that is on this machine, or None; nothing is fetched or built."""
    if model.recipe is not None:
        return find_built(RECIPES[model.recipe]) if model.recipe in RECIPES else None
    if model.path is not None:
        folder = Path(model.path)
        return folder if folder.is_dir() else None
    if model.id is None:
        return None
    repository = find_repository(model.id)
    snapshots = repository / "snapshots"
    commit = model.revision or "main"
    with suppress(OSError, ValueError):
        commit = (repository / "refs" / commit).read_text(encoding="utf-8").strip()
    if (snapshots / commit).is_dir():
        return snapshots / commit
    if model.revision is not None:
        return None
    with suppress(OSError):
        return max(snapshots.iterdir(), key=lambda entry: entry.stat().st_mtime, default=None)
    return None


def find_repository(name: str) -> Path:
    """Return where the hub's client keeps all that it has fetched of a model, which need not be there."""
    return hub_folder(os.environ) / f"models--{name.replace('/', '--')}"


def read_dtype(folder: Path) -> str:
    """Return the dtype that a checkpoint's config.json states, or ""."""
    try:
        config: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    found = config.get("dtype", config.get("torch_dtype")) if isinstance(config, dict) else None
    return found if isinstance(found, str) else ""


def measure_weights(folder: Path) -> int:
    """Return the bytes of a checkpoint's weight files; of one kind of file only, when several hold the same weights."""
    with suppress(OSError):
        files = list_weights(folder)
        for extension in WEIGHTS:
            if size := sum(file.stat().st_size for file in files if file.suffix == extension):
                return size
    return 0


def list_gpus(environ: Mapping[str, str] = os.environ, root: Path = Path("/")) -> tuple[str, ...]:
    """Return the entries of CUDA_VISIBLE_DEVICES that stand for the GPUs we may use, one each.

    Args:
        environ: the caller's environment. What it states is taken as it is, up to the first entry that CUDA would not
            take; else all GPUs of the machine are counted by their files.
        root: of the file system.
    """
    stated = environ.get("CUDA_VISIBLE_DEVICES")
    if stated is not None:
        entries = [entry.strip() for entry in stated.split(",")]
        return tuple(itertools.takewhile(re.compile(r"\d+|(GPU|MIG)-[\w/-]+").fullmatch, entries))
    listed = root / "proc/driver/nvidia/gpus"
    count = len(list(listed.iterdir())) if listed.is_dir() else 0
    devices = [entry for entry in root.glob("dev/nvidia*") if re.fullmatch(r"nvidia\d+", entry.name)]
    # A container may see the files of more GPUs than it was given devices, or the other way round.
    return tuple(str(index) for index in range(min(filter(None, (count, len(devices))), default=0)))


def measure_available_memory(root: Path = Path("/")) -> int:
    """Return the bytes of memory that can be taken without swapping: of the machine, and of our control group."""
    limits = []
    with suppress(OSError, ValueError, IndexError):
        text = (root / "proc/meminfo").read_text(encoding="ascii")
        limits.append(int(text.split("MemAvailable:")[1].split()[0]) * 1024)
    with suppress(OSError, ValueError):
        group = root / "sys/fs/cgroup"
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        limits.append(limit - int((group / "memory.current").read_text(encoding="ascii")))
    return max(0, min(limits)) if limits else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
