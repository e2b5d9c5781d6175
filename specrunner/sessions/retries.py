"""Which requests are asked again after an error; wrong numbers are not, they are an answer."""

from __future__ import annotations

import threading
from collections import defaultdict

from specrunner.errors import CapabilityMissing, EngineError, EngineMissing, WorkerDied
from specrunner.requests import Evidence

CRASHES = 1
"""How often a request that ended its process is asked again when no retries were asked for: a request may have been
the victim of another process on the machine, and one that ends the process twice is its cause."""

HOPELESS = (CapabilityMissing, EngineMissing)
"""Errors that the same machine gives again."""


class Retries:
    """Counts the errors of requests; executors share one.

    Args:
        most: how often a request is asked again.
    """

    def __init__(self, most: int = 0) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._failures: defaultdict[Evidence, list[EngineError]] = defaultdict(list)

    def allow(self, evidence: Evidence, error: EngineError) -> bool:
        """Tell whether a request is to be asked again after an error, and note it if so."""
        most = max(self._most, CRASHES) if isinstance(error, WorkerDied) else self._most
        with self._lock:
            if isinstance(error, HOPELESS) or len(self._failures[evidence]) >= most:
                return False
            self._failures[evidence].append(error)
            return True

    def failures(self, evidence: Evidence) -> tuple[EngineError, ...]:
        """Return the errors after which a request was asked again, oldest first."""
        with self._lock:
            return tuple(self._failures.get(evidence, ()))
