"""One session served by one process, on any machine: load its engine, ask it, read what it captured."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from specrunner.config import NAME_MAPS, find_name_maps
from specrunner.engines.registry import find_engine
from specrunner.environments.interpreters import Environment
from specrunner.environments.own_imports import PATH, inherit_path
from specrunner.errors import EngineError, FollowedMissing
from specrunner.requests import Request, Session
from specrunner.sessions.answers import AnswerShelf, Tell, Watch
from specrunner.sessions.captures import CAPTURE_FILE, locate_capture, read_capture
from specrunner.sessions.checkpoints import Checkpoints
from specrunner.sessions.evaluator import run_evaluation
from specrunner.sessions.executor import Answer
from specrunner.sessions.forks import ForkServers
from specrunner.sessions.process import Bystander, Fork, WorkerProcess, make_variables
from specrunner.sessions.rooms import hold_run_folder

Settle = Callable[[Request, Answer | None, float], None]
"""Takes a request, its answer, and the seconds that the engine worked on it. Without an answer the request has to be
asked again: the process ended over another one."""

LOAD_TIMEOUT = 1800.0
"""Seconds an engine may take to load its model."""

LONGEST_FOLDER = 60
"""Characters of a run's directory under which engines can still put Unix sockets (whose paths end at 107 bytes)."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a session finds where it runs.

    Attributes:
        directory: the run's directory there; captures and workspaces live below it.
        environment: the interpreter to start the session with.
        threads: for computing on the CPU, unless the session's option `num_threads` says otherwise.
        variables: to set for its processes, over the caller's.
        checkpoints: of the run.
        shelf: of the answers to benchmarks that earlier runs got.
        watch: stamps the session; None where no answer of it is kept.
        forks: share one import of an engine among the run's sessions; without them, each imports it itself.
    """

    directory: Path
    environment: Environment
    threads: int = 1
    variables: Mapping[str, str] = field(default_factory=dict)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    shelf: AnswerShelf = field(default_factory=lambda: AnswerShelf(None))
    watch: Watch | None = None
    forks: ForkServers | None = None


class LiveSession:
    """A session in a process of its own, from its load to its end.

    Args:
        session: what to load.
        surroundings: where it runs.
        stopped: whether the run starts nothing more; polled ten times a second, it gives up a load.
        cancelled: whether the run ends at once; it gives up everything.
    """

    def __init__(
        self,
        session: Session,
        surroundings: Surroundings,
        *,
        stopped: Callable[[], bool],
        cancelled: Callable[[], bool],
    ) -> None:
        self._session = session
        self._surroundings = surroundings
        self._stopped = stopped
        self._cancelled = cancelled
        self._worker: WorkerProcess | None = None
        self._facts: dict[str, Any] = {}
        self._tell: Tell | None = None
        self._elsewhere = ExitStack()
        directory = surroundings.directory
        if len(str(directory)) > LONGEST_FOLDER:
            directory = self._elsewhere.enter_context(hold_run_folder(Path("/tmp")))
        self._workspace = Path(tempfile.mkdtemp(prefix=f"{session.engine}-", dir=directory))

    @property
    def alive(self) -> bool:
        """Whether the process can be asked again."""
        return self._worker is not None and self._worker.alive

    def load(self) -> dict[str, Any]:
        """Start the process, load the engine and return the session's facts.

        Raises:
            EngineError: it could not be loaded; nothing of it is left.
            Cancelled: the run is being stopped.
        """
        session, environment = self._session, self._surroundings.environment
        engine = find_engine(session.engine)
        model_path = self._surroundings.checkpoints.locate(session.model, self._stopped)
        variables = self._make_variables()
        watch = self._find_watch()
        self._tell = watch() if watch is not None else None
        fork: Fork | None = None
        if self._surroundings.forks is not None:
            fork = self._surroundings.forks.prepare(
                environment.python, self._list_shared(), self._workspace, watch, cancelled=self._stopped
            )
        mark = f"{os.getpid()}-{self._workspace.name}"
        self._worker = WorkerProcess(environment.python, self._workspace, variables, mark, fork)
        message = {
            "type": "load",
            "engine": f"{engine.__module__}:{engine.__qualname__}",
            "session": session.to_json(),
            "model_path": model_path,
            "workspace": str(self._workspace),
        }
        try:
            facts = self._worker.ask(message, timeout=LOAD_TIMEOUT, cancelled=self._stopped)
        except BaseException:
            self._worker.kill()
            raise
        self._facts = {**facts, "environment": environment.name, "python": str(environment.python)}
        return self._facts

    def _make_variables(self) -> dict[str, str]:
        """Return the variables of the session's processes, to set over the caller's."""
        session = self._session
        wanted = find_engine(session.engine).worker_environment(session, self._workspace)
        name_maps = find_name_maps(os.environ, Path.cwd())
        return {
            **({NAME_MAPS: str(name_maps)} if name_maps is not None else {}),
            "OMP_NUM_THREADS": str(session.options.get("num_threads", self._surroundings.threads)),
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive"),  # sessions and comparisons share the cores
            "TMPDIR": str(self._workspace),
            **self._surroundings.variables,
            **join_variables(wanted, self._surroundings.environment),
        }

    def _list_shared(self) -> tuple[str, ...]:
        """Return the modules whose import the session shares with others; none where it uses a GPU."""
        return find_engine(self._session.engine).capabilities().preload if self._session.device == "cpu" else ()

    def import_ahead(self) -> bool:
        """Have the engine imported off which the session will be forked; return whether that was begun.

        Raises:
            Exception: what `load` will raise, too: the session's options are wrong, or there is no room on the disk.
        """
        modules, surroundings = self._list_shared(), self._surroundings
        if surroundings.forks is None or not modules:
            return False
        variables = make_variables(self._workspace, self._make_variables())
        python = surroundings.environment.python
        return surroundings.forks.import_ahead(python, modules, variables, self._workspace, self._find_watch())

    def _find_watch(self) -> Callable[[], Tell] | None:
        """Return what begins to watch what the session's answers come from; None where nobody will ask."""
        surroundings = self._surroundings
        watch = surroundings.watch
        if watch is None:
            return None
        watched = replace(surroundings.environment, env={**surroundings.variables, **surroundings.environment.env})
        return partial(watch, self._session, watched, surroundings.threads)

    def stamp(self) -> str | None:
        """Tell what the session's answers come from; None where that changed since it was loaded, or nobody asked."""
        return self._tell() if self._tell is not None else None

    def answer(self, request: Request, timeout: float, progress: Callable[[int, int], None], settle: Settle) -> None:
        """Have a request answered, and return when the engine is free for the next.

        Args:
            request: what to ask.
            timeout: seconds it may take.
            progress: called with a benchmark's answered questions and their number.
            settle: takes the answer, be it an error: at once, or during a later call of `answer`, `flush` or `end`,
                since a capture is written while the engine works on.

        Raises:
            Cancelled: the run is being stopped.
        """
        directory = locate_capture(self._surroundings.directory, self._session.key, request.key)
        begun = time.monotonic()
        try:
            if request.evaluation is None:
                self._capture(request, directory, timeout, settle)
                return
            self.flush()
            self._evaluate(request, directory, timeout, progress)
            answer: Answer | None = read_capture(directory)
        except EngineError as error:
            answer = error
        except Bystander:
            answer = None
        settle(request, answer, time.monotonic() - begun)

    def flush(self) -> None:
        """Wait until every answer is settled.

        Raises:
            Cancelled: the run is being stopped.
        """
        if self._worker is not None:
            self._worker.flush(cancelled=self._cancelled)

    def _capture(self, request: Request, directory: Path, timeout: float, settle: Settle) -> None:
        """Have the engine make a capture; it is settled once it lies in `directory`."""
        assert self._worker is not None, "a request came before the load"
        message = {"type": "capture", "request": request.to_json(), "directory": str(directory), "followed": None}
        if request.follow is not None:
            root = self._surroundings.directory
            followed = locate_capture(root, request.follow.session, request.follow.request)
            if not (followed / CAPTURE_FILE).exists():
                raise FollowedMissing("the capture that this request follows was not made")
            message["followed"] = str(followed)
        begun = time.monotonic()

        def settle_written(outcome: EngineError | Bystander | None) -> None:
            answer: Answer | None = None
            try:
                if not isinstance(outcome, Bystander):
                    answer = outcome or read_capture(directory)
            except EngineError as error:
                answer = error
            settle(request, answer, seconds)

        self._worker.capture(message, timeout=timeout, cancelled=self._cancelled, written=settle_written)
        seconds = time.monotonic() - begun

    def _evaluate(
        self, request: Request, directory: Path, timeout: float, progress: Callable[[int, int], None]
    ) -> None:
        """Have lm-eval put a benchmark's questions to the engine; the record lies in `directory` then."""
        assert self._worker is not None, "a request came before the load"
        run_evaluation(
            self._worker,
            self._session,
            request,
            directory,
            model_path=self._surroundings.checkpoints.locate(self._session.model),
            facts=self._facts,
            timeout=timeout,
            shelf=self._surroundings.shelf,
            stamp=self.stamp,
            stopped=self._stopped,
            cancelled=self._cancelled,
            progress=progress,
            forks=self._surroundings.forks,
        )

    def ask(self, message: dict[str, Any], timeout: float) -> dict[str, Any]:
        """Pass a message on to the process and return its facts, for an evaluation that runs elsewhere.

        Raises:
            EngineError: what the engine reported.
            Cancelled: the run is being stopped.
        """
        assert self._worker is not None, "a message came before the load"
        return self._worker.ask(message, timeout=timeout, cancelled=self._cancelled)

    def read_log(self, place: int) -> tuple[str, int]:
        """Return what the process printed since a place in its log, and the place to go on from (`logs.Log.read`)."""
        return self._worker.log.read(place) if self._worker is not None else ("", place)

    def end(self, *, at_once: bool) -> None:
        """End the process and all it has started, in order or at once, and remove the workspace."""
        if self._worker is not None:
            if at_once:
                self._worker.kill()
            else:
                self._worker.close()
        shutil.rmtree(self._workspace, ignore_errors=True)
        self._elsewhere.close()


def join_variables(wanted: Mapping[str, str], environment: Environment) -> dict[str, str]:
    """Return the variables that an engine wants and those of its environment, which go before them.

    Of `PYTHONPATH` both count: what the environment states is found first, and what the engine cannot do without behind
    it. The caller's own stands for an environment that states none, where it is the caller's interpreter.
    """
    stated = inherit_path(environment.env) if environment.source == "own" else environment.env
    path = os.pathsep.join(filter(None, (stated.get(PATH), wanted.get(PATH))))
    return {**wanted, **stated, **({PATH: path} if path else {})}
