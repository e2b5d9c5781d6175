"""What of this machine may change an engine's numbers, without torch."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from specrunner.engines.stamp import describe_processor

PATIENCE = 60.0
"""Seconds for which the driver's program is waited for; without persistence mode it wakes every GPU up."""


def describe_hardware(device: str) -> list[Any]:
    """Return the processor's kind, and the GPUs' where one is used."""
    facts: list[Any] = [platform.machine(), *platform.libc_ver(), os.cpu_count(), *describe_processor()]
    if device == "cuda":
        facts += [*describe_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES")]
    return facts


def describe_gpus(root: Path = Path("/")) -> tuple[str, ...]:
    """Return the version of the driver, and the name of each GPU of this machine; nothing where neither can be told.

    What else the driver's files state differs between machines of one kind, or until a GPU has been woken up.

    Args:
        root: of the file system.
    """
    driver = root / "proc/driver/nvidia"
    try:
        models = [
            line
            for file in sorted(driver.glob("gpus/*/information"))
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines()
            if line.startswith("Model:")
        ]
        version = (driver / "version").read_text(encoding="utf-8", errors="replace").splitlines()[:1]
    except OSError:
        models, version = [], []
    return (*version, *models) if models and version else ask_driver()


@cache
def ask_driver() -> tuple[str, ...]:
    """Return the same from the driver's own program, for where its files are not shown, as in some containers."""
    command = ["nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(done.stdout.splitlines()) if done.returncode == 0 else ()
