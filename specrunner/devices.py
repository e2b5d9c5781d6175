"""What this machine offers, found out without importing torch."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path


@lru_cache
def has_cuda() -> bool:
    """Tell whether an NVIDIA driver is loaded and at least one GPU is visible to us."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1", "none"):
        return False
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidiactl").exists()


def resolve_device(device: str) -> str:
    """Turn `auto` into `cuda` or `cpu`; leave the others as they are."""
    return ("cuda" if has_cuda() else "cpu") if device == "auto" else device


def memory_gb() -> float:
    """Return the machine's total memory in gigabytes (10**9 bytes)."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
