"""An executor in front of another: what is kept is answered at once, and only the rest is asked of an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specrunner.cache.stamps import Stamper
from specrunner.cache.store import SESSIONS, Kept, Store
from specrunner.events import AnswersKept, Event
from specrunner.plan.model import PlannedSession
from specrunner.requests import Evidence, Request
from specrunner.sessions.captures import StoredCapture, locate_capture, read_capture
from specrunner.sessions.executor import Answer, Deliver, Executor
from specrunner.words import plural


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is kept of a session's requests, and why the others run.

    Attributes:
        kept: requests whose captures are kept.
        why: the reason why the rest runs, or "" when nothing does.
    """

    kept: tuple[Request, ...]
    why: str


class CachingExecutor:
    """Answers from the store where it can.

    Fresh captures are kept by a thread of its own, since digesting them between two requests would hold up the engine;
    each is passed on once that is done, in the order in which they came.

    Args:
        store: of kept captures.
        stamper: gives requests their keys.
        directory: of the run; captures lie in `captures/<session>/<request>` below it.
        publish: takes events.
        deliver: takes answers.
        make: makes the executor behind, given the `deliver` that it must use.

    Attributes:
        kept: the evidence that came from the store.
        stored: the evidence that was put there, with its keys.
    """

    def __init__(
        self,
        store: Store,
        stamper: Stamper,
        directory: Path,
        publish: Callable[[Event], None],
        deliver: Deliver,
        make: Callable[[Deliver], Executor],
    ) -> None:
        self.kept: set[Evidence] = set()
        self._store = store
        self._stamper = stamper
        self._directory = directory
        self._publish = publish
        self._deliver = deliver
        self._behind = make(self._accept)
        self._keeper = ThreadPoolExecutor(max_workers=1, thread_name_prefix="keeper")
        self._killed = False
        self._trusted: dict[str, bool] = {}
        self.stored: dict[Evidence, str] = {}

    def start(self, planned: PlannedSession, *, stays_open: bool = False) -> Future[None]:
        """Answer the requests of a session that are kept, and queue the others."""
        session = planned.session
        outlook = look_ahead(self._store, self._stamper, planned)
        found = [(request, kept) for request in outlook.kept if (kept := self._fetch(session.key, request)) is not None]
        answered = {request.key for request, _ in found}
        missing = tuple(request for request in planned.requests if request.key not in answered)
        facts = found[0][1].facts if found else {}
        why = outlook.why or ("what was kept was damaged" if missing else "")
        self._publish(AnswersKept(session.key, session.label, len(planned.requests), len(found), why, facts))
        if missing or stays_open:
            future = self._await_keeping(self._behind.start(PlannedSession(session, missing), stays_open=stays_open))
        else:
            future = Future()
            future.set_result(None)
        for request, kept in found:
            self._supply(session.key, request, kept)
        return future

    def add(self, session: str, request: Request) -> bool:
        """Give a session one more request; False when it takes none any more."""
        self._stamper.add(Evidence(session, request.key), request)
        kept = self._fetch(session, request)
        if kept is None:
            return self._behind.add(session, request)
        self._supply(session, request, kept)
        return True

    def supply(self, evidence: Evidence) -> None:
        """Note that a request has its answer from elsewhere."""
        self._behind.supply(evidence)

    def close(self, session: str) -> None:
        """Let a session end when nothing waits for it."""
        self._behind.close(session)

    def stop(self) -> None:
        """Start no further request."""
        self._behind.stop()

    def kill(self) -> None:
        """End every worker at once, and keep nothing more."""
        self._killed = True
        self._behind.kill()

    def shutdown(self) -> None:
        """Wait for all sessions to end; forget what was made while its sources changed, and note the rest."""
        self._behind.shutdown()
        self._keeper.shutdown()
        for session in {evidence.session for evidence in self.stored}:
            self._trusted[session] = self._trusted[session] and self._stamper.refresh(session)
            if self._trusted[session]:
                stamp = self._stamper.stamp(session)
                self._store.keep_record(SESSIONS, stamp.identity, {"parts": dict(stamp.parts)})
        for evidence, key in self.stored.items():
            if not self.is_trusted(evidence):
                self._store.drop_capture(key)

    def is_trusted(self, evidence: Evidence) -> bool:
        """Tell whether a capture, and whatever led it, comes from what its session's stamp says.

        That is settled after `shutdown`; before, it is what is known so far.
        """
        if evidence in self.kept or not self._trusted.get(evidence.session, False):
            return evidence in self.kept
        leader = self._stamper.find_leader(evidence)
        return leader is None or self.is_trusted(leader)

    def _fetch(self, session: str, request: Request) -> Kept | None:
        key = self._stamper.key_of(Evidence(session, request.key))
        return None if key is None else self._store.find_capture(key, self._place(session, request.key))

    def _supply(self, session: str, request: Request, kept: Kept) -> None:
        evidence = Evidence(session, request.key)
        self.kept.add(evidence)
        self._behind.supply(evidence)
        self._deliver(session, request.key, read_capture(self._place(session, request.key)), kept.facts, 0.0)

    def _await_keeping(self, behind: Future[None]) -> Future[None]:
        """Return a future that ends once a session has ended and all that it answered was passed on."""
        ended: Future[None] = Future()
        behind.add_done_callback(lambda _: self._keeper.submit(ended.set_result, None))
        return ended

    def _accept(self, session: str, request: str, answer: Answer, facts: Mapping[str, Any], seconds: float) -> None:
        """Have a fresh capture kept and then passed on; what is no capture waits its turn, too."""
        self._keeper.submit(self._keep_and_deliver, session, request, answer, facts, seconds)

    def _keep_and_deliver(
        self, session: str, request: str, answer: Answer, facts: Mapping[str, Any], seconds: float
    ) -> None:
        if isinstance(answer, StoredCapture) and not self._killed:
            try:
                self._keep(session, request, facts, seconds)
            except Exception as error:  # noqa: BLE001 - whatever it is, the answer counts, also when it is not kept
                self._store.problem = f"captures could not be kept: {type(error).__name__}: {error}"
        self._deliver(session, request, answer, facts, seconds)

    def _keep(self, session: str, request: str, facts: Mapping[str, Any], seconds: float) -> None:
        """Keep a fresh capture, unless what it comes from has changed since the run began."""
        if session not in self._trusted:
            self._trusted[session] = self._stamper.refresh(session)
        evidence = Evidence(session, request)
        key = self._stamper.key_of(evidence) if self.is_trusted(evidence) else None
        if key is not None:
            self.stored[evidence] = key
            self._store.keep_capture(key, self._place(session, request), facts, seconds)

    def _place(self, session: str, request: str) -> Path:
        return locate_capture(self._directory, session, request)


def look_ahead(store: Store, stamper: Stamper, planned: PlannedSession) -> Outlook:
    """Say which requests of a session are kept, and why the others run; no file of a capture is read."""
    session = planned.session.key
    stamp = stamper.stamp(session)
    keys = {request.key: stamper.key_of(Evidence(session, request.key)) for request in planned.requests}
    kept = tuple(request for request in planned.requests if (key := keys[request.key]) and store.has_capture(key))
    if len(kept) == len(planned.requests):
        return Outlook(kept, "")
    if stamp.unknown:
        return Outlook(kept, stamp.unknown)
    earlier = store.find_record(SESSIONS, stamp.identity)
    if earlier is None:
        return Outlook(kept, "nothing of it is kept")
    if changes := stamp.find_changes(earlier["parts"]):
        return Outlook(kept, f"changed since the last run: {', '.join(changes)}")
    missing = [request for request in planned.requests if request not in kept]
    unkept = sum(keys[request.key] is None for request in missing)
    led = sum(is_led_anew(store, stamper, request) for request in missing)
    new = len(missing) - max(unkept, led)
    reasons = (
        (new, "not asked before, or no longer kept"),
        (led, "led by a capture that is made anew"),
        (unkept - led, "of data that is not on this machine"),
    )
    return Outlook(kept, "; ".join(f"{plural(number, 'request')} {why}" for number, why in reasons if number > 0))


def is_led_anew(store: Store, stamper: Stamper, request: Request) -> bool:
    """Tell whether a request follows a capture that is not kept."""
    if request.follow is None:
        return False
    key = stamper.key_of(request.follow)
    return key is None or not store.has_capture(key)
