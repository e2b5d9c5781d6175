"""A session that is served on a node of a Ray cluster, from the caller's side."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import specrunner
from specrunner.engines.name_maps import pack_own_maps
from specrunner.environments.interpreters import Environment
from specrunner.errors import EngineError, EngineOutOfMemory, FollowedMissing
from specrunner.requests import Request, Session
from specrunner.secrets import own_redactor
from specrunner.sessions.captures import CAPTURE_FILE, locate_capture, pack_capture, read_capture, unpack_capture
from specrunner.sessions.evaluator import run_evaluation
from specrunner.sessions.executor import Answer
from specrunner.sessions.logs import LOG_FILE, Log
from specrunner.sessions.process import Cancelled
from specrunner.sessions.ray.cluster import Demand, list_nodes
from specrunner.sessions.ray.node import NodeSession
from specrunner.sessions.serving import Settle, Surroundings
from specrunner.sessions.threads import MachineLost

POLL = 0.1
"""Seconds between two looks at whether the run is being stopped."""

LOOK = 2.0
"""Seconds, while a session waits to be placed, between two looks at whether any node can still take it."""

MOST_DUE = 2
"""Requests that are not settled: one that the engine works on, and one whose capture is on its way."""

CALLS = 5
"""Calls to an actor at once: for an answer, two captures, the log, and the end."""

LOG_PERIOD = 1.0
"""Seconds from one look at what the engine printed to the next."""

END_PATIENCE = 20.0
"""Seconds that a node has to end a session in order before Ray ends its actor."""


class RemoteSession:
    """What `serving.LiveSession` is on this machine, on another one.

    What the engine prints there is added to a log here, in the place of a local session's, as long as something is
    awaited from the node.

    Args:
        session: what to load.
        surroundings: the run's directory, checkpoints and kept answers on this machine, and the session's environment
            here; its node looks up its own.
        demand: what of a node it takes.
        node: the id of the node to be put on; None leaves it to Ray.
        stopped: whether the run starts nothing more; it gives up a load.
        cancelled: whether the run ends at once; it gives up everything.
    """

    def __init__(
        self,
        session: Session,
        surroundings: Surroundings,
        demand: Demand,
        node: str | None,
        *,
        stopped: Callable[[], bool],
        cancelled: Callable[[], bool],
    ) -> None:
        self._session = session
        self._surroundings = surroundings
        self._demand = demand
        self._stopped = stopped
        self._cancelled = cancelled
        self._facts: dict[str, Any] = {}
        self._host = "that it was to run on"
        self._placed = False
        self._alive = True
        self.workspace = Path(tempfile.mkdtemp(prefix=f"{session.engine}-", dir=surroundings.directory))
        self._log = Log(self.workspace / LOG_FILE, own_redactor())
        self._log.append("")  # from now on it can be followed
        self._log_place = 0
        self._log_due = time.monotonic()
        self._errands: dict[Any, Callable[[Any], None]] = {}  # by the reference to an answer, what takes it
        self._due: dict[str, tuple[Request, Settle]] = {}  # by the request's key, what is not settled yet
        strategy = NodeAffinitySchedulingStrategy(node, soft=False) if node is not None else "DEFAULT"
        self._actor: Any = (
            ray.remote(NodeSession)
            .options(
                num_cpus=demand.cpus,
                num_gpus=demand.gpus,
                memory=demand.memory,
                scheduling_strategy=strategy,
                max_restarts=0,
                max_concurrency=CALLS,
            )
            .remote(session)
        )

    @property
    def alive(self) -> bool:
        """Whether it could be asked again when it answered last."""
        return self._alive

    def place(self) -> None:
        """Wait until Ray has found a node and the node has found the session's environment.

        Raises:
            EngineError: the node lacks the environment; `missing_on` is then the node's id. Or no node can take it.
            MachineLost: the node was lost meanwhile.
            Cancelled: the run is being stopped.
        """
        environment: Environment = self._surroundings.environment
        name_maps = pack_own_maps(self._session.engine)
        found = self._wait(
            self._actor.prepare.remote(
                specrunner.__version__, environment, self._surroundings.threads, name_maps, self._surroundings.watch
            ),
            self._stopped,
            self._require_room,
        )
        self._host = raise_error(found)["host"]
        self._placed = True

    def load(self) -> dict[str, Any]:
        """Load the engine and return the session's facts, and the node's host name among them.

        Raises:
            EngineError: it could not be loaded.
            MachineLost: the node was lost.
            Cancelled: the run is being stopped.
        """
        self._facts = {**raise_error(self._wait(self._actor.load.remote(), self._stopped)), "node": self._host}
        return self._facts

    def answer(self, request: Request, timeout: float, progress: Callable[[int, int], None], settle: Settle) -> None:
        """Have a request answered, and return when the engine is free for the next.

        Its capture is written and brought into the run's directory while the engine works on; no two are on their way.

        Raises:
            MachineLost: the node was lost; what is due has to be asked again, and `settle` is told so.
            Cancelled: the run is being stopped.
        """
        if request.evaluation is not None:
            directory = locate_capture(self._surroundings.directory, self._session.key, request.key)
            begun = time.monotonic()
            try:
                self.flush()
                self._evaluate(request, directory, timeout, progress)
                answer: Answer = read_capture(directory)
            except EngineError as error:
                answer = error
            except MachineLost:
                settle(request, None, 0.0)
                raise
            settle(request, answer, time.monotonic() - begun)
            return
        try:
            followed = self._pack_followed(request)
        except EngineError as error:
            settle(request, error, 0.0)
            return
        self._due[request.key] = (request, settle)
        try:
            self._attend(lambda: len(self._due) <= MOST_DUE, self._cancelled)
            self._collect(request)
            self._alive = self._wait(self._actor.answer.remote(request, followed, timeout), self._cancelled)
        except MachineLost:
            self._settle_due(None)
            raise
        except EngineError as error:
            self._settle_due(error)

    def flush(self) -> None:
        """Wait until every answer is settled.

        Raises:
            MachineLost: the node was lost before; what is due has to be asked again.
            Cancelled: the run is being stopped.
        """
        if not self._due:
            return
        try:
            self._alive = self._wait(self._actor.flush.remote(), self._cancelled)
            self._attend(lambda: not self._due, self._cancelled)
        except MachineLost:
            self._settle_due(None)
            raise
        except EngineError as error:
            self._settle_due(error)

    def _collect(self, request: Request) -> None:
        """Have what comes of a request settled when it is here."""
        directory = locate_capture(self._surroundings.directory, self._session.key, request.key)

        def take(reference: Any) -> None:
            found, seconds = ray.get(reference)
            answer: Answer | None = found
            if isinstance(found, dict):
                try:
                    unpack_capture(directory, found)
                    answer = read_capture(directory)
                except EngineError as error:
                    answer = error
                except OSError as error:
                    answer = EngineError(f"the capture could not be written: {error}")
            _, settle = self._due.pop(request.key)
            settle(request, answer, seconds)

        self._errands[self._actor.collect.remote(request.key)] = take

    def _settle_due(self, error: EngineError | None) -> None:
        """Settle what is due when the session is gone: an error is the last one's, and the others are asked again."""
        due, self._due = list(self._due.values()), {}
        for request, settle in due:
            settle(request, error if request is due[-1][0] else None, 0.0)

    def _pack_followed(self, request: Request) -> dict[str, bytes] | None:
        if request.follow is None:
            return None
        followed = locate_capture(self._surroundings.directory, request.follow.session, request.follow.request)
        if not (followed / CAPTURE_FILE).exists():
            raise FollowedMissing("the capture that this request follows was not made")
        return pack_capture(followed)

    def _evaluate(
        self, request: Request, directory: Path, timeout: float, progress: Callable[[int, int], None]
    ) -> None:
        """Run a benchmark's evaluating process here; its questions are answered there."""
        run_evaluation(
            self,
            self._session,
            request,
            directory,
            model_path=self._surroundings.checkpoints.locate(self._session.model),
            facts=self._facts,
            timeout=timeout,
            shelf=self._surroundings.shelf,
            stamp=lambda: raise_error(self._wait(self._actor.stamp.remote(), self._cancelled)),
            stopped=self._stopped,
            cancelled=self._cancelled,
            progress=progress,
        )

    def ask(
        self, message: dict[str, Any], *, timeout: float, cancelled: Callable[[], bool] = lambda: False
    ) -> dict[str, Any]:
        """Pass a message on to the session's process and return its facts."""
        found, self._alive = self._wait(self._actor.ask.remote(message, timeout), cancelled)
        facts: dict[str, Any] = raise_error(found)
        return facts

    def end(self, *, at_once: bool) -> None:
        """End the session's processes, in order or at once, and then its actor; remove the workspace."""
        deadline = time.monotonic() + END_PATIENCE
        self._log_due = min(self._log_due, time.monotonic())
        if self._placed:
            with suppress(EngineError, MachineLost, Cancelled):
                self._wait(self._actor.end.remote(at_once=at_once), lambda: time.monotonic() > deadline)
        self._alive = False
        with suppress(RayError):
            ray.kill(self._actor, no_restart=True)
        shutil.rmtree(self.workspace, ignore_errors=True)

    def _wait(self, reference: Any, given_up: Callable[[], bool], look: Callable[[], None] = lambda: None) -> Any:
        """Return what a call to the actor returns; raise what `_attend` does."""
        arrived: list[Any] = []
        self._errands[reference] = lambda one: arrived.append(ray.get(one))
        self._attend(lambda: bool(arrived), given_up, look)
        return arrived[0]

    def _attend(
        self, over: Callable[[], bool], given_up: Callable[[], bool], look: Callable[[], None] = lambda: None
    ) -> None:
        """Take what arrives from the node until it is enough.

        Raises:
            Cancelled: `given_up()` became true.
            EngineOutOfMemory: Ray ended the actor, since the node's memory was nearly used up.
            MachineLost: the node was lost.
            EngineError: the actor failed in another way than by the engine's errors, which it returns.
        """
        looked = time.monotonic()
        try:
            while not over():
                self._follow_log()
                for one in ray.wait(list(self._errands), timeout=POLL)[0]:
                    self._errands.pop(one)(one)
                if not over() and given_up():
                    raise Cancelled
                if time.monotonic() > looked + LOOK:
                    looked = time.monotonic()
                    look()
        except RayError as error:
            self._alive = False
            self._errands.clear()
            raise explain(error, self._host, self._log.tail()) from error

    def _follow_log(self) -> None:
        """Ask for what the engine has printed since, when it is time for it."""
        if time.monotonic() < self._log_due:
            return
        self._log_due = float("inf")  # one question at a time

        def take(reference: Any) -> None:
            lines, self._log_place = ray.get(reference)
            if lines:
                self._log.append(lines)
            self._log_due = time.monotonic() + LOG_PERIOD

        self._errands[self._actor.read_log.remote(self._log_place)] = take

    def _require_room(self) -> None:
        if not any(self._demand.fits(node["Resources"]) for node in list_nodes()):
            raise MachineLost("the nodes that could take the session were lost")


def explain(error: RayError, host: str, log_tail: str) -> EngineError | MachineLost:
    """Say what an error of Ray's means for a session.

    Args:
        error: what Ray raised in the place of an answer.
        host: the session's node.
        log_tail: the last lines of the engine that came from there.
    """
    if isinstance(error, RayTaskError):
        return EngineError(f"the session failed on the node {host}: {error.cause!r}", log_tail=log_tail)
    if isinstance(error, OutOfMemoryError):
        return EngineOutOfMemory(
            f"the memory of the node {host} was nearly used up, and Ray ended the session",
            help="state less memory for the node (`ray start --memory`), so that fewer sessions share it",
            log_tail=log_tail,
        )
    return MachineLost(f"the node {host} was lost ({type(error).__name__})", log_tail)


def raise_error(found: Any) -> Any:
    """Return what a node answered; raise it when it is an error."""
    if isinstance(found, EngineError):
        raise found
    return found
