"""The progress of one installation on standard error: a live line on a terminal, a few lines anywhere else."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TextIO

from specrunner.config import is_ci
from specrunner.reporters.console import Console, fit_cells
from specrunner.reporters.progress import format_clock
from specrunner.reporters.style import is_terminal

SPARSE_SECONDS = 10.0
"""Least time between two lines where nobody watches."""


class Meter:
    """Shows `label: done/total packages` and what is being done.

    Args:
        label: what is being installed.
        stream: where to show it.
        environment: tells whether a person watches.
    """

    def __init__(self, label: str, stream: TextIO, environment: Mapping[str, str] = os.environ) -> None:
        self._label = label
        self._console = Console(stream)
        self._live = is_terminal(stream) and not is_ci(environment) and environment.get("TERM") != "dumb"
        self._began = time.monotonic()
        self._said = float("-inf")
        self._state = (0, 0, "")
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Meter:
        if self._live:
            self._thread = threading.Thread(target=self._keep_drawing, name="specrunner-meter", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._console.write("\r\x1b[2K")
        elif self._said > float("-inf") and error is None:
            self._console.print(f"{self._label}: done in {format_clock(time.monotonic() - self._began)}")

    def show(self, done: int, total: int, what: str) -> None:
        """Take in how far it is; without a terminal, say it now and then."""
        self._state = (done, total, what)
        now = time.monotonic()
        if not self._live and now - self._said >= SPARSE_SECONDS:
            self._said = now
            self._console.print(self._describe(now))

    def _describe(self, now: float) -> str:
        done, total, what = self._state
        return f"{self._label}: {done}/{total} packages, {format_clock(now - self._began)}, {what}"

    def _keep_drawing(self) -> None:
        while not self._stop.wait(0.2):
            if self._state[1]:
                line = fit_cells(self._describe(time.monotonic()), max(self._console.width - 1, 20))
                self._console.write("\r\x1b[2K" + line)
