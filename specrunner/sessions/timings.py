"""How long sessions took in earlier runs, so that the longest are started first."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from specrunner.files import write_whole
from specrunner.folders import cache_folder, hold_lock
from specrunner.plan.model import PlannedSession
from specrunner.sessions.sizes import estimate_memory

MOST_KEPT = 2000
"""Sessions whose times are kept; the ones not used for longest go first."""

LOAD_SECONDS = 5.0
"""A load of nothing; measured with hf on a CPU."""

READ_BYTES = 200e6
"""Bytes of a session's memory that a load fills each second, where nothing was recorded."""

REQUEST_SECONDS = 1.0
"""A request of which nothing was recorded."""


class Timings:
    """Recorded times, by the keys of sessions and requests. Whatever cannot be read or written counts as nothing.

    Args:
        file: where they are kept; None keeps none.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._recorded = read_timings(file)
        self._new: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def estimate(self, planned: PlannedSession) -> float:
        """Return the seconds that a session is expected to take: as recorded, else by its size."""
        recorded = self._recorded.get(planned.session.key, {})
        load = recorded.get("load", LOAD_SECONDS + estimate_memory(planned.session) / READ_BYTES)
        known = recorded.get("requests", {})
        usual = sum(known.values()) / len(known) if known else REQUEST_SECONDS
        return float(load + sum(known.get(request.key, usual) for request in planned.requests))

    def record_load(self, session: str, seconds: float) -> None:
        """Note how long a session's engine took to load."""
        with self._lock:
            self._entry(session)["load"] = round(seconds, 3)

    def record_request(self, session: str, request: str, seconds: float) -> None:
        """Note how long a request took."""
        with self._lock:
            self._entry(session)["requests"][request] = round(seconds, 3)

    def _entry(self, session: str) -> dict[str, Any]:
        return self._new.setdefault(session, {"requests": {}})

    def write(self) -> None:
        """Add what was recorded to the file, beside what other runs have added since it was read."""
        with self._lock:
            if self._file is None or not self._new:
                return
            with suppress(OSError), hold_lock(self._file.with_suffix(".lock")):
                kept = read_timings(self._file)
                for session, entry in self._new.items():
                    old = kept.pop(session, {})
                    requests = {**old.get("requests", {}), **entry["requests"]}
                    kept[session] = {**old, **entry, "requests": requests, "used": int(time.time())}
                newest = sorted(kept.items(), key=lambda item: item[1].get("used", 0))[-MOST_KEPT:]
                write_whole(self._file, json.dumps(dict(newest)).encode())


def timings_file() -> Path:
    """Return where times are kept on this machine."""
    return cache_folder() / "timings.json"


def read_timings(file: Path | None) -> dict[str, dict[str, Any]]:
    """Return the recorded times; entries that are not what we write are passed over."""
    if file is None:
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {key: entry for key, entry in found.items() if _is_entry(entry)} if isinstance(found, dict) else {}


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("requests"), Mapping):
        return False
    numbers = [*entry["requests"].values(), entry.get("load", 0.0), entry.get("used", 0)]
    return all(isinstance(number, int | float) and not isinstance(number, bool) and number >= 0 for number in numbers)
