"""Interleaved timings of whole commands: A B A B, so that a drifting machine cancels out of the ratio."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence


def time_command(command: Sequence[str], environment: Mapping[str, str] | None = None) -> float:
    """Return the wall seconds of one run of `command`; a failing command is an error."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - started


def compare(first: Callable[[], float], second: Callable[[], float], rounds: int) -> tuple[float, float, float]:
    """Run both in turn after one warm-up each.

    Returns:
        The median seconds of the first, of the second, and the median of the per-round ratios first / second.
    """
    first(), second()
    pairs = [(first(), second()) for _ in range(rounds)]
    ratios = [a / b for a, b in pairs]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), statistics.median(ratios)
