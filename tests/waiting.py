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
    """Send SIGINT to a process, as Ctrl-C does, and wait until its main thread has come to it: two at once are one.

    The kernel hands a signal over before Python's own handler runs, which is when the main thread goes on. That it has
    gone on shows in how often it has gone to rest since: a run's main thread rests ten times a second.
    """
    before = count_rests(pid)
    os.kill(pid, signal.SIGINT)
    wait_for(lambda: not is_pending(pid, signal.SIGINT), "the signal is taken")
    last = time.monotonic() + 1.0  # one that does nothing but wait rests once

    def has_gone_on() -> bool:
        rests = count_rests(pid)
        return rests is None or before is None or rests >= before + 5 or time.monotonic() > last

    wait_for(has_gone_on, "the main thread goes on")


def count_rests(pid: int) -> int | None:
    """Return how often the main thread of a process has gone to rest, or None when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches:")), None)


def is_pending(pid: int, number: int) -> bool:
    """Tell whether a signal to a process waits to be delivered; to one that has ended, none does."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    masks = (line.split()[1] for line in lines if line.startswith(("ShdPnd:", "SigPnd:")))
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)
