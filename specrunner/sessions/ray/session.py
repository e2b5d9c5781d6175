"""A session that is served on a node of a Ray cluster, from the caller's side."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import specrunner
from specrunner.engines.name_maps import pack_own_maps
from specrunner.environments.interpreters import Environment
from specrunner.errors import CaptureIncomplete, EngineError
from specrunner.requests import Request, Session
from specrunner.sessions.captures import CAPTURE_FILE, locate_capture, pack_capture, read_capture, unpack_capture
from specrunner.sessions.evaluator import run_evaluation
from specrunner.sessions.executor import Answer
from specrunner.sessions.process import Cancelled
from specrunner.sessions.ray.cluster import Demand, list_nodes
from specrunner.sessions.ray.node import NodeSession
from specrunner.sessions.serving import Settle, Surroundings
from specrunner.sessions.threads import MachineLost

POLL = 0.1
"""Seconds between two looks at whether the run is being stopped."""

LOOK = 20
"""Polls, while a session waits to be placed, between two looks at whether any node can still take it."""

END_PATIENCE = 20.0
"""Seconds that a node has to end a session in order before Ray ends its actor."""


class RemoteSession:
    """What `serving.LiveSession` is on this machine, on another one.

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
        self._alive = True
        strategy = NodeAffinitySchedulingStrategy(node, soft=False) if node is not None else "DEFAULT"
        self._actor: Any = (
            ray.remote(NodeSession)
            .options(
                num_cpus=demand.cpus,
                num_gpus=demand.gpus,
                memory=demand.memory,
                scheduling_strategy=strategy,
                max_restarts=0,
                max_concurrency=3,
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
            self._actor.prepare.remote(specrunner.__version__, environment, self._surroundings.threads, name_maps),
            self._stopped,
            self._require_room,
        )
        self._host = raise_error(found)["host"]

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
        """Have a request answered, bring its capture into the run's directory, and settle it at once.

        Raises:
            MachineLost: the node was lost before its answer was here.
            Cancelled: the run is being stopped.
        """
        directory = locate_capture(self._surroundings.directory, self._session.key, request.key)
        begun = time.monotonic()
        try:
            if request.evaluation is not None:
                self._evaluate(request, directory, timeout, progress)
            else:
                followed = self._pack_followed(request)
                waiting = self._actor.answer.remote(request, followed, timeout)
                found, self._alive = self._wait(waiting, self._cancelled)
                unpack_capture(directory, raise_error(found))
            answer: Answer = read_capture(directory)
        except EngineError as error:
            answer = error
        settle(request, answer, time.monotonic() - begun)

    def flush(self) -> None:
        """Do nothing: every answer is settled at once."""

    def _pack_followed(self, request: Request) -> dict[str, bytes] | None:
        if request.follow is None:
            return None
        followed = locate_capture(self._surroundings.directory, request.follow.session, request.follow.request)
        if not (followed / CAPTURE_FILE).exists():
            raise CaptureIncomplete("the capture that this request follows was not made")
        return pack_capture(followed)

    def _evaluate(
        self, request: Request, directory: Path, timeout: float, progress: Callable[[int, int], None]
    ) -> None:
        """Run a benchmark's evaluating process here; its questions are answered there."""
        with tempfile.TemporaryDirectory(prefix="evaluation-", dir=self._surroundings.directory) as workspace:
            run_evaluation(
                _Asked(self, Path(workspace)),
                self._session,
                request,
                directory,
                model_path=self._surroundings.checkpoints.locate(self._session.model),
                facts=self._facts,
                timeout=timeout,
                shelf=self._surroundings.shelf,
                stopped=self._stopped,
                cancelled=self._cancelled,
                progress=progress,
            )

    def ask(self, message: dict[str, Any], timeout: float, cancelled: Callable[[], bool]) -> dict[str, Any]:
        """Pass a message on to the session's process and return its facts."""
        found, self._alive = self._wait(self._actor.ask.remote(message, timeout), cancelled)
        facts: dict[str, Any] = raise_error(found)
        return facts

    def end(self, *, at_once: bool) -> None:
        """End the session's processes, in order or at once, and then its actor."""
        self._alive = False
        with suppress(RayError):
            ray.wait([self._actor.end.remote(at_once=at_once)], timeout=END_PATIENCE)
        with suppress(RayError):
            ray.kill(self._actor, no_restart=True)

    def _wait(self, reference: Any, given_up: Callable[[], bool], look: Callable[[], None] = lambda: None) -> Any:
        """Return what a call to the actor returns."""
        polls = 0
        try:
            while not ray.wait([reference], timeout=POLL)[0]:
                if given_up():
                    raise Cancelled
                polls += 1
                if polls % LOOK == 0:
                    look()
            return ray.get(reference)
        except RayTaskError as error:
            raise EngineError(f"the session failed on the node {self._host}: {error.cause!r}") from error
        except RayError as error:
            self._alive = False
            raise MachineLost(f"the node {self._host} was lost ({type(error).__name__})") from error

    def _require_room(self) -> None:
        if not any(self._demand.fits(node["Resources"]) for node in list_nodes()):
            raise MachineLost("the nodes that could take the session were lost")


class _Asked:
    """A remote session as `run_evaluation` asks it.

    Args:
        remote: the session.
        workspace: on this machine, for the evaluating process.
    """

    def __init__(self, remote: RemoteSession, workspace: Path) -> None:
        self._remote = remote
        self.workspace = workspace

    def ask(
        self, message: dict[str, Any], *, timeout: float, cancelled: Callable[[], bool] = lambda: False
    ) -> dict[str, Any]:
        """Pass a message on."""
        return self._remote.ask(message, timeout, cancelled)


def raise_error(found: Any) -> Any:
    """Return what a node answered; raise it when it is an error."""
    if isinstance(found, EngineError):
        raise found
    return found
