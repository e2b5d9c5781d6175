"""The desk of a run: which requests wait for which session, and which of them can be answered now.

A request may follow another session's capture, and a session may be given more requests while it runs. So a session is
over when nothing waits for it and nobody will add to it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from specrunner.requests import Evidence, Request


@dataclass(slots=True)
class _Tray:
    waiting: list[Request] = field(default_factory=list)
    open: bool = False


class Desk:
    """Requests by session, shared by the run's thread and those of the pool."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._trays: dict[str, _Tray] = {}
        self._answered: set[Evidence] = set()
        self._stopped = False

    def open(self, session: str, requests: Iterable[Request], *, stays_open: bool) -> None:
        """Lay out a session's requests; `stays_open` says that more may be added until `close`."""
        with self._changed:
            self._trays[session] = _Tray(list(requests), stays_open)

    def add(self, session: str, request: Request) -> bool:
        """Add a request; False when the session takes none any more."""
        with self._changed:
            tray = self._trays.get(session)
            if tray is None or not tray.open or self._stopped:
                return False
            tray.waiting.append(request)
            self._changed.notify_all()
            return True

    def close(self, session: str) -> None:
        """Say that no request will be added to a session."""
        with self._changed:
            if session in self._trays:
                self._trays[session].open = False
            self._changed.notify_all()

    def answer(self, evidence: Evidence) -> None:
        """Note that a request has its answer, be it an error: what follows it can go on."""
        with self._changed:
            self._answered.add(evidence)
            self._changed.notify_all()

    def stop(self) -> None:
        """Let everyone who waits go; nothing more is handed out."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def count(self, session: str) -> int:
        """Return how many requests wait for a session."""
        with self._changed:
            return len(self._trays[session].waiting)

    def take(self, session: str) -> Request | None:
        """Take the first request of a session that can be answered now, or None."""
        with self._changed:
            found = None if self._stopped else self._find_ready(session)
            if found is not None:
                self._trays[session].waiting.remove(found)
            return found

    def put_back(self, session: str, request: Request, *, last: bool = False) -> None:
        """Lay a request that was taken, and not answered, before the others or behind them."""
        with self._changed:
            waiting = self._trays[session].waiting
            waiting.insert(len(waiting) if last else 0, request)
            self._changed.notify_all()

    def is_ready(self, session: str) -> bool:
        """Tell whether a session has a request that can be answered now."""
        with self._changed:
            return self._find_ready(session) is not None

    def is_over(self, session: str) -> bool:
        """Tell whether nothing waits for a session and nobody will add to it."""
        with self._changed:
            return self._is_over(session)

    def take_all(self, session: str) -> list[Request]:
        """Take every request of a session, and let none be added."""
        with self._changed:
            tray = self._trays[session]
            taken, tray.waiting, tray.open = tray.waiting, [], False
            return taken

    def wait(self, session: str, seconds: float | None = None) -> bool:
        """Wait until a session has a request that can be answered.

        Args:
            session: its key.
            seconds: how long at most; None is for ever.

        Returns:
            True when there is one; False when the session is over, the run is stopped, or the time is up.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopped or self._is_over(session) or self._find_ready(session) is not None, seconds
            )
            return not self._stopped and self._find_ready(session) is not None

    def _is_over(self, session: str) -> bool:
        tray = self._trays[session]
        return not tray.waiting and not tray.open

    def _find_ready(self, session: str) -> Request | None:
        for request in self._trays[session].waiting:
            if request.follow is None or request.follow in self._answered:
                return request
        return None
