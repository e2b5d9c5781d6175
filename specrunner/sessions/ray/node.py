"""A session on a node of a Ray cluster: the actor that serves it there, with the node's own environments and files."""

from __future__ import annotations

import platform
import shutil
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import specrunner
from specrunner.config import EngineTable
from specrunner.engines.name_maps import unpack_own_maps
from specrunner.engines.registry import find_engine
from specrunner.environments.interpreters import Environment, find_configured, find_environment, find_own
from specrunner.errors import ConfigurationError, EngineError, EngineMissing, WorkerDied
from specrunner.requests import Request, Session
from specrunner.sessions.answers import Watch
from specrunner.sessions.captures import StoredCapture, locate_capture, pack_capture, unpack_capture
from specrunner.sessions.executor import Answer
from specrunner.sessions.process import Cancelled
from specrunner.sessions.rooms import hold_run_folder
from specrunner.sessions.serving import LiveSession, Surroundings

ENDING = 5.0
"""Seconds that a cancelled request has to give way before the session is ended over it."""


class NodeSession:
    """Serves one session on the node where Ray put it. Errors are returned, since Ray wraps those that are raised.

    Args:
        session: what to serve.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._held = ExitStack()
        self._live: LiveSession | None = None
        self._ending = threading.Event()
        self._busy = threading.Lock()
        self._changed = threading.Condition()
        self._settled: dict[str, tuple[Answer | None, float]] = {}
        self._ended = False

    def prepare(
        self,
        version: str,
        environment: Environment,
        threads: int,
        name_maps: Mapping[str, bytes],
        watch: Watch | None = None,
    ) -> dict[str, str] | EngineError:
        """Find the session's environment on this node.

        Args:
            version: of the caller's specrunner.
            environment: the session's on the caller's machine.
            threads: for computing on the CPU.
            name_maps: the caller's own, of the session's engine.
            watch: stamps the session by what is on this node; None where no answer of it is kept.

        Returns:
            Ray's id of the node and its host name; or what is missing here.
        """
        host = platform.node()
        place = {"id": identify_node(), "host": host}
        with self._busy:
            try:
                if version != specrunner.__version__:
                    raise EngineMissing(
                        f"the node {host} has specrunner {specrunner.__version__}, the caller {version}"
                    )
                found = find_again(self._session, environment)
                self._directory = self._held.enter_context(hold_run_folder())
            except EngineError as error:
                error.missing_on = place["id"]  # type: ignore[attr-defined]
                return error
            except ConfigurationError as error:
                return EngineError(f"on the node {host}, {error.message}", help=error.help)
            variables = unpack_own_maps(self._session.engine, name_maps, self._directory / "names")
            surroundings = Surroundings(self._directory, found, threads=threads, variables=variables, watch=watch)
            ending = self._ending.is_set
            self._live = LiveSession(self._session, surroundings, stopped=ending, cancelled=ending)
        return place

    def load(self) -> dict[str, Any] | EngineError:
        """Load the engine and return the session's facts."""
        facts: dict[str, Any] | EngineError = self._do(lambda live: live.load())
        return facts

    def stamp(self) -> str | EngineError | None:
        """Tell what the session's answers come from, as `LiveSession` does."""
        stamp: str | EngineError | None = self._do(lambda live: live.stamp())
        return stamp

    def answer(self, request: Request, followed: Mapping[str, bytes] | None, timeout: float) -> bool:
        """Have a request answered that is not a benchmark, and return when the engine is free for the next.

        Args:
            request: what to ask; `collect` says what came of it.
            followed: the files of the capture that it follows.
            timeout: seconds it may take.

        Returns:
            Whether the session can be asked again.
        """
        with self._busy:
            assert self._live is not None, "a session came to a node that was not prepared"
            try:
                if not self._live.alive:  # it died over what it was asked before
                    self._live.flush()
                    self._settle(request, None, 0.0)
                    return False
                if request.follow is not None and followed is not None:
                    evidence = request.follow
                    unpack_capture(locate_capture(self._directory, evidence.session, evidence.request), followed)
                self._live.answer(request, timeout, lambda done, total: None, self._settle)
            except Cancelled:
                self._settle(request, WorkerDied("the session was ended"), 0.0)
            return self._is_alive()

    def flush(self) -> bool:
        """Wait until what was asked is there for `collect`; return whether the session can be asked again."""
        self._do(lambda live: live.flush())
        return self._is_alive()

    def collect(self, request: str) -> tuple[dict[str, bytes] | EngineError | None, float]:
        """Wait for what comes of a request, and forget it here.

        Args:
            request: its key.

        Returns:
            The capture's files, or why there is none, or None when the request has to be asked again; and the seconds
            that the engine worked on it.
        """
        with self._changed:
            self._changed.wait_for(lambda: request in self._settled or self._ended)
            answer, seconds = self._settled.pop(request, (None, 0.0))
        if not isinstance(answer, StoredCapture):
            return answer, seconds
        directory = locate_capture(self._directory, self._session.key, request)
        files = pack_capture(directory)
        shutil.rmtree(directory, ignore_errors=True)
        return files, seconds

    def _settle(self, request: Request, answer: Answer | None, seconds: float) -> None:
        with self._changed:
            self._settled[request.key] = (answer, seconds)
            self._changed.notify_all()

    def ask(self, message: dict[str, Any], timeout: float) -> tuple[dict[str, Any] | EngineError, bool]:
        """Pass a message on to the session's process; return its facts, and whether it can be asked again."""
        return self._do(lambda live: live.ask(message, timeout)), self._is_alive()

    def read_log(self, place: int) -> tuple[str, int]:
        """Return what the session's process printed since a place in its log, and the place to go on from."""
        return self._live.read_log(place) if self._live is not None else ("", place)

    def end(self, *, at_once: bool) -> None:
        """End the session's processes and remove its files; once that is done, do nothing."""
        if self._ended:
            return
        if at_once:
            self._ending.set()
        free = self._busy.acquire(timeout=ENDING)
        if self._live is not None:
            self._live.end(at_once=at_once or not free)
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._held.close()

    def _is_alive(self) -> bool:
        return self._live is not None and self._live.alive

    def _do(self, work: Callable[[LiveSession], Any]) -> Any:
        """Return what `work` returns, or the error that it raises."""
        with self._busy:
            assert self._live is not None, "a session came to a node that was not prepared"
            try:
                return work(self._live)
            except EngineError as error:
                return error
            except Cancelled:
                return WorkerDied("the session was ended")


def identify_node() -> str:
    """Return Ray's id of the node that this process runs on."""
    import ray

    node: str = ray.get_runtime_context().get_node_id()
    return node


def find_again(session: Session, environment: Environment) -> Environment:
    """Return this node's counterpart of an environment of the caller.

    Raises:
        EngineMissing: there is none, or other versions are in it.
    """
    host = platform.node()
    try:
        capabilities = find_engine(session.engine).capabilities()
    except ConfigurationError as error:
        raise EngineMissing(f"on the node {host}, {error.message}", help=error.help) from error
    stated = {name: value for name, value in environment.env.items() if name != "PATH"}
    found: Environment | None
    if environment.source == "configured":
        try:
            found = find_configured(session.engine, EngineTable(environment.python, stated), capabilities)
        except ConfigurationError as error:
            raise EngineMissing(f"on the node {host}, {error.message}", help=error.help) from error
    elif environment.source == "own":
        found = find_own(session.engine, EngineTable(None, stated), capabilities)
    else:
        config = {session.engine: EngineTable(None, stated)}
        found = find_environment(session.engine, capabilities, session.device, config=config, name=environment.name)
    if found is None:
        needed = ", ".join(capabilities.packages)
        raise EngineMissing(f"{session.engine} needs {needed}, not all of them installed on the node {host}")
    if f"{found.name}-{found.digest}" != session.environment:
        raise EngineMissing(
            f"the environment {found.name} on the node {host} holds other versions than the caller's",
            help="install the same versions on every node",
        )
    return replace(found, env={**found.env, **stated})
