"""Interleaved timings of whole commands: A B A B, so that a drifting machine cancels out of the ratio."""

from __future__ import annotations

import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


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


class Cost(NamedTuple):
    """What a command took.

    Attributes:
        wall: seconds from start to end.
        cpu: seconds of all processors, in the command and all processes it has waited for.
    """

    wall: float
    cpu: float


def time_processes(
    command: Sequence[str], environment: Mapping[str, str] | None = None, folder: Path | None = None, status: int = 0
) -> tuple[Cost, str]:
    """Run a command; return its cost and what it printed. One of another status ends us with the end of its output."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != status:
        raise SystemExit(f"{' '.join(command)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return Cost(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime), done.stdout
