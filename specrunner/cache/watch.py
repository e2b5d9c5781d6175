"""Tells whether what a session's answers come from is still what it was before the session's engine loaded."""

from __future__ import annotations

from specrunner.cache.digests import Digests
from specrunner.cache.keeping import DIGESTS
from specrunner.cache.stamps import stamp_session
from specrunner.cache.store import kept_folder
from specrunner.environments.interpreters import Environment
from specrunner.requests import Session
from specrunner.sessions.answers import Tell


def watch_sources(session: Session, environment: Environment, threads: int) -> Tell:
    """Stamp a session whose engine is about to load, on the machine that it loads on (`answers.Watch`).

    Args:
        session: the session.
        environment: the interpreter that will run it.
        threads: that it computes with unless its options say otherwise.

    Returns:
        A function that stamps it once more, and returns the key of what its answers come from, which is that of its
        captures; or None where that has changed since, or cannot be told.
    """
    digests = Digests(kept_folder() / DIGESTS)
    before = stamp_session(session, environment, threads, digests)

    def tell() -> str | None:
        digests.forget()
        now = stamp_session(session, environment, threads, digests)
        return now.key if now.confirms(before) else None

    return tell
