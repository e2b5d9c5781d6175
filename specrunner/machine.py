"""The machine that a run is made on, as its reports state it."""

from __future__ import annotations

import os
import platform
from typing import Any

import specrunner


def share_cores(jobs: int) -> int:
    """Return the threads that each of `jobs` sessions computes with."""
    return max(1, (os.cpu_count() or 1) // jobs)


def describe_machine() -> dict[str, Any]:
    """Return the facts of this machine and of specrunner that a report should hold."""
    return {
        "specrunner": specrunner.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "hostname": platform.node(),
    }
