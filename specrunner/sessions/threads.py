"""A thread for each session of a run: it takes the session's requests from the desk and has them answered, one by one.

Where a session's process runs is the business of those who derive from `SessionThreads`: the local pool and Ray.
"""

from __future__ import annotations

import time
import traceback
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from specrunner.errors import EngineError, WorkerDied
from specrunner.events import QuestionsAnswered, RequestFinished, SessionEnded, SessionReady, SessionStarted
from specrunner.plan.model import PlannedSession
from specrunner.requests import Evidence, Request
from specrunner.sessions.captures import StoredCapture
from specrunner.sessions.desk import Desk
from specrunner.sessions.executor import Answer, Deliver, Publish
from specrunner.sessions.places import Need, Place, Places
from specrunner.sessions.process import Cancelled
from specrunner.sessions.retries import Retries
from specrunner.sessions.serving import Settle
from specrunner.sessions.timings import Timings

MOST_SESSIONS = 4096
"""Threads at most; one stands for each session that is not over."""

GRACE = 2.0
"""Seconds after which a session that waits looks whether somebody else needs the memory or the GPUs it keeps."""

MOST_LOSSES = 3
"""Times that a session may lose the machine it runs on before its requests are given up."""


class MachineLost(Exception):
    """The machine that a session ran on is gone; what was asked there may be asked elsewhere.

    Args:
        how: it was lost.
        log_tail: the last lines that the engine printed and that came here, or "".
    """

    def __init__(self, how: str, log_tail: str = "") -> None:
        super().__init__(how)
        self.log_tail = log_tail


class Serving(Protocol):
    """A session that is being served, wherever it runs; `serving.LiveSession` is the one on this machine."""

    @property
    def alive(self) -> bool:
        """Whether it can be asked again."""

    def load(self) -> dict[str, Any]:
        """Load its engine and return the session's facts."""

    def answer(self, request: Request, timeout: float, progress: Callable[[int, int], None], settle: Settle) -> None:
        """Have a request answered within `timeout` seconds; `settle` takes the answer, at once or by a later call.

        Raises:
            MachineLost: the machine is gone; `settle` was told of all that has to be asked again.
        """

    def flush(self) -> None:
        """Wait until every answer is settled; raise as `answer` does."""

    def end(self, *, at_once: bool) -> None:
        """End it and all that it has started."""


class SessionThreads(ABC):
    """What every executor does (`executor.Executor`), but for starting processes.

    Args:
        places: how many sessions may be served at once.
        timeouts: by (session key, request key), seconds the request may take; read when the request's turn has come.
        publish: takes every event; must be thread-safe.
        deliver: takes every answer; must be thread-safe.
        timings: takes the time of loads and requests, and is written when all sessions have ended.
        retries: says what is asked again after an error.
    """

    def __init__(
        self,
        places: Places,
        *,
        timeouts: Mapping[tuple[str, str], float],
        publish: Publish,
        deliver: Deliver,
        timings: Timings | None = None,
        retries: Retries | None = None,
    ) -> None:
        self._places = places
        self._timeouts = timeouts
        self._publish = publish
        self._deliver = deliver
        self._timings = timings or Timings(None)
        self._retries = retries or Retries()
        self._threads = ThreadPoolExecutor(max_workers=MOST_SESSIONS, thread_name_prefix="session")
        self._desk = Desk()
        self._stopping = False  # no threading.Event: its lock would hold up a signal that interrupts its setting
        self._killing = False
        self._losses: Counter[str] = Counter()
        self._suspects: set[Evidence] = set()

    @abstractmethod
    def _estimate(self, planned: PlannedSession) -> Need:
        """Say what a session takes up of the places."""

    @abstractmethod
    def _launch(self, planned: PlannedSession, place: Place) -> Serving:
        """Prepare a session to be loaded; the caller ends it, and has nothing to end when this raises."""

    def _is_stopping(self) -> bool:
        return self._stopping

    def _is_killing(self) -> bool:
        return self._killing

    def _is_short(self) -> bool:
        """Tell whether somebody waits for what sessions that rest keep."""
        return self._places.is_short()

    def start(self, planned: PlannedSession, *, stays_open: bool = False) -> Future[None]:
        """Queue a session; with `stays_open`, it takes requests by `add` until `close`."""
        self._desk.open(planned.session.key, planned.requests, stays_open=stays_open)
        place = self._places.reserve(self._estimate(planned))
        if self._desk.is_ready(planned.session.key):
            self._places.ask(place)
        return self._threads.submit(self._serve, planned, place)

    def add(self, session: str, request: Request) -> bool:
        """Give a session one more request; False when it takes none any more."""
        return self._desk.add(session, request)

    def close(self, session: str) -> None:
        """Let a session end when nothing waits for it."""
        self._desk.close(session)

    def supply(self, evidence: Evidence) -> None:
        """Say that a request has its capture from elsewhere, in the run's directory: what follows it can go on."""
        self._desk.answer(evidence)

    def stop(self) -> None:
        """Start no further request; those that an engine is working on may finish, loads are given up."""
        self._stopping = True
        self._desk.stop()
        self._places.stop()

    def kill(self) -> None:
        """End every worker at once."""
        self._killing = True
        self.stop()

    def shutdown(self) -> None:
        """Wait for all sessions to end."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._timings.write()

    def _serve(self, planned: PlannedSession, place: Place) -> None:
        """Answer all requests of one session; start its process anew when it died or gave its place back."""
        while self._desk.wait(planned.session.key) and self._places.take(place):
            try:
                self._serve_process(planned, place)
            except Cancelled:
                return
            except MachineLost as error:
                self._count_loss(planned, error)
            except EngineError as error:
                self._give_up(planned, error)
            except Exception as error:
                message = f"the session could not be run: {type(error).__name__}: {error}"
                trace = "".join(traceback.format_exception(error))
                self._give_up(planned, EngineError(message, log_tail=trace))
            finally:
                self._places.leave(place)

    def _count_loss(self, planned: PlannedSession, loss: MachineLost) -> None:
        self._losses[planned.session.key] += 1
        if self._losses[planned.session.key] >= MOST_LOSSES:
            error = WorkerDied(f"{loss}, {MOST_LOSSES} times in all", log_tail=loss.log_tail)
            for request in self._desk.take_all(planned.session.key):
                self._deliver_answer(planned, request, error, {}, 0.0)  # it was asked again often enough

    def _give_up(self, planned: PlannedSession, error: EngineError) -> None:
        for request in self._desk.take_all(planned.session.key):
            self._finish(planned, request, error, {}, 0.0)

    def _finish(
        self, planned: PlannedSession, request: Request, answer: Answer, facts: Mapping[str, Any], seconds: float
    ) -> None:
        """Deliver an answer, or ask again when it is an error after which that is allowed."""
        evidence = Evidence(planned.session.key, request.key)
        if isinstance(answer, EngineError) and not self._stopping and self._retries.allow(evidence, answer):
            self._desk.put_back(planned.session.key, request, last=True)
            return
        self._deliver_answer(planned, request, answer, facts, seconds)

    def _deliver_answer(
        self, planned: PlannedSession, request: Request, answer: Answer, facts: Mapping[str, Any], seconds: float
    ) -> None:
        tensors, tokens = 0, 0
        if isinstance(answer, StoredCapture):
            tensors, tokens = len(answer.tensor_names), len(answer.output_token_ids or ())
            self._timings.record_request(planned.session.key, request.key, seconds)
        failed = isinstance(answer, EngineError)
        self._publish(RequestFinished(planned.session.key, request.key, seconds, failed, tensors, tokens))
        self._desk.answer(Evidence(planned.session.key, request.key))
        self._deliver(planned.session.key, request.key, answer, facts, seconds)

    def _serve_process(self, planned: PlannedSession, place: Place) -> None:
        """Start one process and answer requests until the session is over or the process is gone.

        Raises:
            EngineError: the engine could not be loaded; no request was answered since.
            MachineLost: the machine is gone; what it had not answered waits again.
            Cancelled: the run is being stopped.
        """
        session = planned.session
        live = self._launch(planned, place)
        started = time.monotonic()
        reason = ""
        try:
            self._publish(SessionStarted(session.key, session.label, self._desk.count(session.key)))
            facts = live.load()
            load_seconds = time.monotonic() - started
            self._timings.record_load(session.key, load_seconds)
            self._publish(SessionReady(session.key, session.label, load_seconds, facts))
            self._serve_requests(planned, place, live, facts)
            if self._killing:  # also when that came between two requests
                reason = "interrupted"
            elif not live.alive and self._desk.count(session.key):
                reason = "the process died"
        except EngineError as error:
            reason = error.message
            raise
        except MachineLost as error:
            reason = str(error)
            raise
        except Cancelled:
            reason = "interrupted"
            raise
        finally:
            live.end(at_once=self._killing or reason == "interrupted")
            self._publish(SessionEnded(session.key, session.label, reason))

    def _serve_requests(self, planned: PlannedSession, place: Place, live: Serving, facts: Mapping[str, Any]) -> None:
        """Answer requests as long as there are some and the process lives.

        The engine may work on a request while the capture of the one before is written. When the process dies then,
        the blame is the later one's, and the earlier one is asked again: alone, as is whatever failed before, so that
        each is to blame for its own death.
        """
        key = planned.session.key

        def settle(request: Request, answer: Answer | None, seconds: float) -> None:
            if answer is None:
                self._suspects.add(Evidence(key, request.key))
                self._desk.put_back(key, request)
                return
            self._finish(planned, request, answer, facts, seconds)

        while (request := self._next_request(planned, place, live)) is not None:
            evidence = Evidence(key, request.key)
            alone = evidence in self._suspects or bool(self._retries.failures(evidence))
            if alone:
                try:
                    live.flush()
                except MachineLost:
                    self._desk.put_back(key, request)
                    raise
            if not live.alive:
                self._desk.put_back(key, request)
                break
            self._answer(planned, request, live, settle)
            if alone:
                live.flush()
        live.flush()

    def _answer(self, planned: PlannedSession, request: Request, live: Serving, settle: Settle) -> None:
        key = planned.session.key
        live.answer(
            request,
            self._timeouts[key, request.key],
            lambda done, total: self._publish(QuestionsAnswered(key, request.key, done, total)),
            settle,
        )

    def _next_request(self, planned: PlannedSession, place: Place, live: Serving) -> Request | None:
        """Take the next request; while there is none, let others have the turn. None ends the process."""
        if not live.alive:
            return None
        key = planned.session.key
        request = self._desk.take(key)
        if request is None:
            live.flush()
            request = self._desk.take(key)
        while request is None and not self._stopping:
            self._places.rest(place)
            while not self._desk.wait(key, GRACE):
                if self._stopping or self._desk.is_over(key) or self._is_short():
                    return None
            if not self._places.resume(place):
                return None
            request = self._desk.take(key)
        return request
