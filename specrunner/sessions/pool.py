"""The local pool: runs planned sessions in worker processes, a few at a time, and reports what happens as messages."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from specrunner.errors import EngineError
from specrunner.events import QuestionsAnswered, RequestFinished, SessionEnded, SessionReady, SessionStarted
from specrunner.plan.model import Evidence, PlannedSession, Request
from specrunner.sessions.answers import AnswerShelf
from specrunner.sessions.captures import StoredCapture
from specrunner.sessions.checkpoints import Checkpoints
from specrunner.sessions.desk import Desk
from specrunner.sessions.environments import Environment
from specrunner.sessions.executor import Answer, Deliver, Publish
from specrunner.sessions.process import Cancelled
from specrunner.sessions.serving import LiveSession, Surroundings

MOST_SESSIONS = 4096
"""Threads at most; one stands for each session that is not over."""

GRACE = 2.0
"""Seconds a session keeps its GPU when nothing waits for it but something may still come."""


class Pool:
    """Worker processes for the sessions of one run.

    Args:
        directory: this run's directory; captures and workspaces live below it.
        jobs: sessions to work at once. A session that waits for another's capture keeps its engine, on a CPU, but
            not its turn.
        environments: by session key, the interpreter to start it with.
        timeouts: by (session key, request key), seconds the request may take; read when the request's turn has come.
        publish: called from the pool's threads with every event; must be thread-safe.
        deliver: called from the pool's threads with (session key, request key, answer, session facts, seconds).
        shelf: of the answers to benchmarks that earlier runs got; without one, every question is asked.
    """

    def __init__(
        self,
        directory: Path,
        *,
        jobs: int,
        environments: Mapping[str, Environment],
        timeouts: Mapping[tuple[str, str], float],
        publish: Publish,
        deliver: Deliver,
        shelf: AnswerShelf | None = None,
    ) -> None:
        self._directory = directory
        self._environments = environments
        self._timeouts = timeouts
        self._publish = publish
        self._deliver = deliver
        self._shelf = shelf or AnswerShelf(None)
        self._executor = ThreadPoolExecutor(max_workers=MOST_SESSIONS, thread_name_prefix="session")
        self._turns = threading.Semaphore(jobs)
        self._desk = Desk()
        self._threads = max(1, (os.cpu_count() or 1) // jobs)
        self._stopping = threading.Event()
        self._killing = threading.Event()
        self._device_lock = threading.Lock()
        self._checkpoints = Checkpoints()

    def start(self, planned: PlannedSession, *, stays_open: bool = False) -> Future[None]:
        """Queue a session; with `stays_open`, it takes requests by `add` until `close`."""
        self._desk.open(planned.session.key, planned.requests, stays_open=stays_open)
        return self._executor.submit(self._serve, planned)

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
        self._stopping.set()
        self._desk.stop()

    def kill(self) -> None:
        """End every worker at once."""
        self._killing.set()
        self.stop()

    def shutdown(self) -> None:
        """Wait for all sessions to end."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _serve(self, planned: PlannedSession) -> None:
        """Answer all requests of one session; start its process anew when it died or gave its device back."""
        key = planned.session.key
        while self._desk.wait(key):
            if planned.session.device == "cuda":
                with self._device_lock, self._turns:
                    self._serve_turn(planned)
            else:
                with self._turns:
                    self._serve_turn(planned)

    def _serve_turn(self, planned: PlannedSession) -> None:
        try:
            self._serve_process(planned)
        except Cancelled:
            return
        except EngineError as error:
            self._give_up(planned, error)
        except Exception as error:
            self._give_up(planned, EngineError(f"the session could not be run: {type(error).__name__}: {error}"))

    def _give_up(self, planned: PlannedSession, error: EngineError) -> None:
        for request in self._desk.take_all(planned.session.key):
            self._finish(planned, request, error, {}, 0.0)

    def _finish(
        self, planned: PlannedSession, request: Request, answer: Answer, facts: Mapping[str, Any], seconds: float
    ) -> None:
        failed = isinstance(answer, EngineError)
        tensors, tokens = 0, 0
        if isinstance(answer, StoredCapture):
            tensors, tokens = len(answer.tensor_names), len(answer.output_token_ids or ())
        self._publish(RequestFinished(planned.session.key, request.key, seconds, failed, tensors, tokens))
        self._desk.answer(Evidence(planned.session.key, request.key))
        self._deliver(planned.session.key, request.key, answer, facts, seconds)

    def _serve_process(self, planned: PlannedSession) -> None:
        """Start one process and answer requests until the session is over or the process is gone.

        Raises:
            EngineError: the engine could not be loaded; no request was answered since.
            Cancelled: the run is being stopped.
        """
        session = planned.session
        started = time.monotonic()
        self._publish(SessionStarted(session.key, session.label, self._desk.count(session.key)))
        live = LiveSession(
            session,
            Surroundings(
                self._directory,
                self._environments[session.key],
                threads=self._threads,
                checkpoints=self._checkpoints,
                shelf=self._shelf,
            ),
            stopped=self._stopping.is_set,
            cancelled=self._killing.is_set,
        )
        reason = ""
        try:
            facts = live.load()
            load_seconds = time.monotonic() - started
            self._publish(SessionReady(session.key, session.label, load_seconds, facts))
            while live.alive and (request := self._next_request(planned)) is not None:
                begun = time.monotonic()
                answer = live.answer(
                    request, self._timeouts[session.key, request.key], self._report_on(planned, request)
                )
                self._finish(planned, request, answer, facts, time.monotonic() - begun)
            if not live.alive and self._desk.count(session.key):
                reason = "the process died"
        except EngineError as error:
            reason = error.message
            raise
        except Cancelled:
            reason = "interrupted"
            raise
        finally:
            live.end(at_once=self._killing.is_set() or reason == "interrupted")
            self._publish(SessionEnded(session.key, session.label, reason))

    def _report_on(self, planned: PlannedSession, request: Request) -> Callable[[int, int], None]:
        key = planned.session.key
        return lambda done, total: self._publish(QuestionsAnswered(key, request.key, done, total))

    def _next_request(self, planned: PlannedSession) -> Request | None:
        """Take the next request; while there is none, let others have the turn. None ends the process."""
        key = planned.session.key
        request = self._desk.take(key)
        while request is None and not self._stopping.is_set():
            self._turns.release()
            try:
                found = self._desk.wait(key, GRACE if planned.session.device == "cuda" else None)
            finally:
                self._turns.acquire()
            if not found:
                return None
            request = self._desk.take(key)
        return request
