"""Random kills: of workers, of their children and, where it is asked for, of the run itself."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

from tests.workplace import find_processes

BURST, CALM = 8.0, 3.0
"""Seconds of kills, and seconds without any, in turns: something has to live long enough to load."""


class Storm(threading.Thread):
    """Kills with SIGKILL, at random moments, processes that carry a marker.

    Args:
        marker: in the environment of the processes.
        run: process id of the command, which is killed rarely or never.
        seed: of moments and choices.
        pause: mean seconds between kills.
        most: kills after which it is over.
        run_share: how often the command itself is killed.

    Attributes:
        kills: by what was killed, how many.
    """

    def __init__(
        self, marker: str, run: int, *, seed: int, pause: float = 0.3, most: int = 1_000_000, run_share: float = 0.0
    ) -> None:
        super().__init__(daemon=True)
        self.kills = {"worker": 0, "child": 0, "run": 0}
        self._marker, self._run, self._pause, self._most, self._run_share = marker, run, pause, most, run_share
        self._random = random.Random(seed)
        self._over = threading.Event()

    @property
    def total(self) -> int:
        """All kills."""
        return sum(self.kills.values())

    def run(self) -> None:
        """Kill until there were enough or `stop` is called."""
        begun = time.monotonic()
        while self.total < self._most and not self._over.wait(self._random.expovariate(1 / self._pause)):
            if (time.monotonic() - begun) % (BURST + CALM) < BURST:
                self._kill_one()

    def stop(self) -> int:
        """End, and return the number of kills."""
        self._over.set()
        self.join()
        return self.total

    def _kill_one(self) -> None:
        victims = sorted(set(find_processes(self._marker)) - {self._run})
        if self._random.random() < self._run_share:
            victims = [self._run]
        if not victims:
            return
        victim = self._random.choice(victims)
        with suppress(OSError):
            command = Path(f"/proc/{victim}/cmdline").read_bytes()
            if not command:  # dead already
                return
            leads = os.getsid(victim) == victim
            os.kill(victim, signal.SIGKILL)
            kind = "run" if victim == self._run else "worker" if b"sessions.worker" in command and leads else "child"
            self.kills[kind] += 1
