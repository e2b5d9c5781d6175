"""The local pool: runs planned sessions in worker processes on this machine, a few at a time."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path

from specrunner.environments.interpreters import Environment
from specrunner.machine import share_cores
from specrunner.plan.model import PlannedSession
from specrunner.sessions.answers import AnswerShelf
from specrunner.sessions.checkpoints import Checkpoints
from specrunner.sessions.executor import Deliver, Publish
from specrunner.sessions.forks import ForkServers
from specrunner.sessions.places import Need, Place, Places
from specrunner.sessions.retries import Retries
from specrunner.sessions.serving import LiveSession, Surroundings
from specrunner.sessions.sizes import estimate_need, list_gpus, measure_available_memory
from specrunner.sessions.threads import SessionThreads
from specrunner.sessions.timings import Timings

UNNAMED_GPU = ("",)
"""The GPUs of a machine on which we cannot count them: one, and CUDA_VISIBLE_DEVICES stays as it is."""


class Pool(SessionThreads):
    """Worker processes for the sessions of one run.

    Args:
        directory: this run's directory; captures and workspaces live below it.
        jobs: sessions to work at once. A session that waits for another's capture keeps its engine, but not its turn;
            when somebody lacks its memory or its GPUs, it ends and is loaded again later.
        environments: by session key, the interpreter to start it with.
        timeouts: by (session key, request key), seconds the request may take; read when the request's turn has come.
        publish: called from the pool's threads with every event; must be thread-safe.
        deliver: called from the pool's threads with (session key, request key, answer, session facts, seconds).
        shelf: of the answers to benchmarks that earlier runs got; without one, every question is asked.
        timings: takes the time of loads and requests.
        retries: says what is asked again after an error.
        share_imports: whether sessions are forked off a process that has imported their engine.
        memory: bytes that the engines of this run may take; what is available, when nothing is stated.
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
        timings: Timings | None = None,
        retries: Retries | None = None,
        share_imports: bool = True,
        memory: int | None = None,
    ) -> None:
        available = measure_available_memory() if memory is None else memory
        places = Places(jobs, memory=available, gpus=list_gpus() or UNNAMED_GPU)
        super().__init__(places, timeouts=timeouts, publish=publish, deliver=deliver, timings=timings, retries=retries)
        self._directory = directory
        self._environments = environments
        self._shelf = shelf or AnswerShelf(None)
        self._cores = share_cores(jobs)
        self._checkpoints = Checkpoints()
        self._coming: dict[str, PlannedSession] = {}
        self._ahead = threading.Lock()
        self._allowed = 0
        self._imported: set[tuple[str, Path]] = set()
        self._forks = ForkServers(directory) if share_imports else None

    def _estimate(self, planned: PlannedSession) -> Need:
        return estimate_need(planned.session)

    def shutdown(self) -> None:
        """Wait for all sessions to end, and end what they were forked from."""
        try:
            super().shutdown()
        finally:
            if self._forks is not None:
                self._forks.close()

    def start(self, planned: PlannedSession, *, stays_open: bool = False) -> Future[None]:
        """Queue a session."""
        self._coming[planned.session.key] = planned
        queued = super().start(planned, stays_open=stays_open)
        self._import_ahead(0)
        return queued

    def _launch(self, planned: PlannedSession, place: Place) -> LiveSession:
        self._coming.pop(planned.session.key, None)
        self._imported.add(self._describe_import(planned))
        self._import_ahead(1)
        return self._make_session(planned, ",".join(place.gpus))

    def _import_ahead(self, launched: int) -> None:
        """While sessions load and work, have engines imported that none has needed yet: one for each that was launched.

        Args:
            launched: sessions since the last call; the first is launched before the others are queued.
        """
        if self._forks is None:
            return
        with self._ahead:
            self._allowed += launched
            for planned in tuple(self._coming.values()):
                what = self._describe_import(planned)
                if not self._allowed or self._is_stopping():
                    return
                if what in self._imported:
                    continue
                self._imported.add(what)
                try:
                    live = self._make_session(planned, "")
                    try:
                        self._allowed -= live.import_ahead()
                    finally:
                        live.end(at_once=True)
                except Exception:  # noqa: BLE001 - whatever it is, the session's own load will say so
                    continue

    def _describe_import(self, planned: PlannedSession) -> tuple[str, Path]:
        return planned.session.engine, self._environments[planned.session.key].python

    def _make_session(self, planned: PlannedSession, gpus: str) -> LiveSession:
        surroundings = Surroundings(
            self._directory,
            self._environments[planned.session.key],
            threads=self._cores,
            variables={"CUDA_VISIBLE_DEVICES": gpus} if gpus else {},
            checkpoints=self._checkpoints,
            shelf=self._shelf,
            watch=self._shelf.watch_for(planned.requests),
            forks=self._forks,
        )
        return LiveSession(planned.session, surroundings, stopped=self._is_stopping, cancelled=self._is_killing)
