"""Waiting for what another process or thread brings about: until it is so, and never for a guessed time."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE = 240.0
"""Seconds after which something never comes: many times what a loaded machine needs. A test that passes waits less."""


def wait_for(condition: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"never came true: {what}"
        time.sleep(0.01)


def press(pid: int) -> None:
    """Send SIGINT to a process, as Ctrl-C does, and wait until it was taken: two that come at once are one."""
    os.kill(pid, signal.SIGINT)
    wait_for(lambda: not is_pending(pid, signal.SIGINT), "the signal is taken")


def is_pending(pid: int, number: int) -> bool:
    """Tell whether a signal to a process waits to be delivered; to one that has ended, none does."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    masks = (line.split()[1] for line in lines if line.startswith(("ShdPnd:", "SigPnd:")))
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)
