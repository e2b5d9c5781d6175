"""The Ray executor: the same sessions as actors of a Ray cluster, wherever there is room for what they take.

The run's directory, its captures and the evaluating processes of benchmarks stay on the caller's machine; only a
session's own process is elsewhere. Captures come and go as files' bytes through Ray's object store.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import ray

from specrunner.environments.interpreters import Environment
from specrunner.errors import EngineMissing
from specrunner.machine import share_cores
from specrunner.plan.model import PlannedSession
from specrunner.sessions.answers import AnswerShelf
from specrunner.sessions.checkpoints import Checkpoints
from specrunner.sessions.executor import Deliver, Publish
from specrunner.sessions.places import Need, Place, Places
from specrunner.sessions.ray.cluster import Demand, list_nodes, settle_demand
from specrunner.sessions.ray.session import RemoteSession
from specrunner.sessions.retries import Retries
from specrunner.sessions.serving import Surroundings
from specrunner.sessions.sizes import estimate_need
from specrunner.sessions.threads import MOST_SESSIONS, SessionThreads
from specrunner.sessions.timings import Timings

STARTING = 5.0
"""Seconds that an actor takes to start where there is room; one that takes longer waits for what others keep."""


class RayPool(SessionThreads):
    """Sessions on the cluster that this process has joined (`cluster.connect`).

    How many run at once is the cluster's resources' business.

    Args:
        directory: this run's directory, on this machine.
        jobs: shares this machine's cores out; a session computes with one share of threads, as in the local pool, and
            asks the cluster for as many CPUs.
        environments: by session key, its environment on this machine; nodes look up their own.
        timeouts: by (session key, request key), seconds the request may take; read when the request's turn has come.
        publish: called from the pool's threads with every event; must be thread-safe.
        deliver: called from the pool's threads with (session key, request key, answer, session facts, seconds).
        shelf: of the answers to benchmarks that earlier runs got.
        timings: takes the time of loads and requests.
        retries: says what is asked again after an error.
        share_imports: of no effect: each session imports its engine on the node that it is put on.
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
    ) -> None:
        places = Places(MOST_SESSIONS, memory=0)
        super().__init__(places, timeouts=timeouts, publish=publish, deliver=deliver, timings=timings, retries=retries)
        self._directory = directory
        self._environments = environments
        self._shelf = shelf or AnswerShelf(None)
        self._checkpoints = Checkpoints()
        self._cores = share_cores(jobs)
        self._placing: dict[int, float] = {}

    def shutdown(self) -> None:
        """Wait for all sessions to end, and leave the cluster."""
        super().shutdown()
        ray.shutdown()

    def _estimate(self, planned: PlannedSession) -> Need:
        return Need()

    def _is_short(self) -> bool:
        return any(time.monotonic() - since > STARTING for since in list(self._placing.values()))

    def _launch(self, planned: PlannedSession, place: Place) -> RemoteSession:
        """Have Ray place an actor for a session; nodes without its environment are passed over.

        Raises:
            EngineMissing: no node that could take the session has its environment.
            CapabilityMissing: no node can take it.
            MachineLost: the node was lost meanwhile.
            Cancelled: the run is being stopped.
        """
        session = planned.session
        threads = int(session.options.get("num_threads", self._cores))
        need = estimate_need(session)
        passed: set[str] = set()
        node: str | None = None
        while True:
            demand = settle_demand(need, threads, list_nodes())
            surroundings = Surroundings(
                self._directory,
                self._environments[session.key],
                threads=self._cores,
                checkpoints=self._checkpoints,
                shelf=self._shelf,
                watch=self._shelf.watch_for(planned.requests),
            )
            remote = RemoteSession(
                session, surroundings, demand, node, stopped=self._is_stopping, cancelled=self._is_killing
            )
            try:
                with self._note_placing():
                    remote.place()
                return remote
            except EngineMissing as error:
                remote.end(at_once=True)
                passed.add(getattr(error, "missing_on", ""))
                node = find_untried(passed, demand)
                if node is None:
                    raise
            except BaseException:
                remote.end(at_once=True)
                raise

    @contextmanager
    def _note_placing(self) -> Iterator[None]:
        thread = threading.get_ident()
        self._placing[thread] = time.monotonic()
        try:
            yield
        finally:
            del self._placing[thread]


def find_untried(passed: set[str], demand: Demand) -> str | None:
    """Return the id of a node that could take a session and was not passed over, or None."""
    nodes = (node["NodeID"] for node in list_nodes() if demand.fits(node["Resources"]))
    return next((node for node in nodes if node not in passed), None)
