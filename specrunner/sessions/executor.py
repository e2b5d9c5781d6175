"""What runs a plan's sessions: the interface that the run, the diagnoser and the capture cache know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Protocol

from specrunner.errors import EngineError
from specrunner.events import Event
from specrunner.plan.model import PlannedSession
from specrunner.requests import Evidence, Request
from specrunner.sessions.captures import StoredCapture

Answer = StoredCapture | EngineError
"""What became of a request."""

Publish = Callable[[Event], None]
"""Takes an event; called from an executor's threads."""

Deliver = Callable[[str, str, Answer, Mapping[str, Any], float], None]
"""Takes (session key, request key, answer, session facts, seconds); called from an executor's threads."""


class Executor(Protocol):
    """Answers the requests of sessions, each of them once, and tells of it by `Publish` and `Deliver`."""

    def start(self, planned: PlannedSession, *, stays_open: bool = False) -> Future[None]:
        """Queue a session, which may have no request yet; with `stays_open`, it takes more by `add` until `close`."""

    def add(self, session: str, request: Request) -> bool:
        """Give a session one more request; False when it takes none any more."""

    def close(self, session: str) -> None:
        """Let a session end when nothing waits for it."""

    def supply(self, evidence: Evidence) -> None:
        """Say that a request has its capture from elsewhere, in the run's directory: what follows it can go on."""

    def stop(self) -> None:
        """Start no further request; those that an engine is working on may finish, loads are given up."""

    def kill(self) -> None:
        """End every worker at once."""

    def shutdown(self) -> None:
        """Wait for all sessions to end."""
