"""The local pool: runs planned sessions in worker processes, a few at a time, and reports what happens as messages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from specrunner.engines.registry import find_engine
from specrunner.errors import CaptureIncomplete, EngineError, ModelUnavailable
from specrunner.events import Event, QuestionsAnswered, RequestFinished, SessionEnded, SessionReady, SessionStarted
from specrunner.plan.model import Evidence, PlannedSession, Request
from specrunner.sessions.answers import AnswerShelf
from specrunner.sessions.captures import CAPTURE_FILE, StoredCapture, read_capture
from specrunner.sessions.desk import Desk
from specrunner.sessions.environments import Environment
from specrunner.sessions.evaluator import run_evaluation
from specrunner.sessions.process import Cancelled, WorkerProcess

MOST_SESSIONS = 4096
"""Threads at most; one stands for each session that is not over."""

LOAD_TIMEOUT = 1800.0
"""Seconds an engine may take to load its model."""

GRACE = 2.0
"""Seconds a session keeps its GPU when nothing waits for it but something may still come."""

LONGEST_FOLDER = 60
"""Characters of a run's directory under which engines can still put Unix sockets (whose paths end at 107 bytes)."""

Answer = StoredCapture | EngineError
"""What became of a request."""


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
        publish: Callable[[Event], None],
        deliver: Callable[[str, str, Answer, Mapping[str, Any], float], None],
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
        self._models: dict[str, str | EngineError] = {}
        self._model_lock = threading.Lock()

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
        self._desk.answer(planned.session.key, request)
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
        folder = self._directory if len(str(self._directory)) <= LONGEST_FOLDER else None
        workspace = Path(tempfile.mkdtemp(prefix=f"{session.engine}-", dir=folder or "/tmp"))
        reason = ""
        worker: WorkerProcess | None = None
        try:
            worker, facts = self._load(planned, workspace)
            load_seconds = time.monotonic() - started
            self._publish(SessionReady(session.key, session.label, load_seconds, facts))
            while worker.alive and (request := self._next_request(planned)) is not None:
                begun = time.monotonic()
                answer = self._answer(planned, request, worker, facts)
                self._finish(planned, request, answer, facts, time.monotonic() - begun)
            if not worker.alive and self._desk.count(session.key):
                reason = "the process died"
        except EngineError as error:
            reason = error.message
            raise
        except Cancelled:
            reason = "interrupted"
            raise
        finally:
            if worker is not None:
                if self._killing.is_set() or reason == "interrupted":
                    worker.kill()
                else:
                    worker.close()
            shutil.rmtree(workspace, ignore_errors=True)
            self._publish(SessionEnded(session.key, session.label, reason))

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

    def _answer(
        self, planned: PlannedSession, request: Request, worker: WorkerProcess, facts: Mapping[str, Any]
    ) -> Answer:
        directory = self._find_capture(Evidence(planned.session.key, request.key))
        try:
            self._ask(planned, request, worker, directory, facts)
            return read_capture(directory)
        except EngineError as error:
            return error

    def _ask(
        self,
        planned: PlannedSession,
        request: Request,
        worker: WorkerProcess,
        directory: Path,
        facts: Mapping[str, Any],
    ) -> None:
        """Have one request answered into `directory`: by the engine alone, or by lm-eval over it."""
        key, timeout = planned.session.key, self._timeouts[planned.session.key, request.key]
        if request.evaluation is None:
            message = {"type": "capture", "request": request.to_json(), "directory": str(directory), "followed": None}
            if request.follow is not None:
                followed = self._find_capture(request.follow)
                if not (followed / CAPTURE_FILE).exists():
                    raise CaptureIncomplete("the capture that this request follows was not made")
                message["followed"] = str(followed)
            worker.ask(message, timeout=timeout, cancelled=self._killing.is_set)
            return
        run_evaluation(
            worker,
            planned.session,
            request,
            directory,
            model_path=self._locate_model(planned),
            facts=facts,
            timeout=timeout,
            shelf=self._shelf,
            stopped=self._stopping.is_set,
            cancelled=self._killing.is_set,
            progress=lambda done, total: self._publish(QuestionsAnswered(key, request.key, done, total)),
        )

    def _find_capture(self, evidence: Evidence) -> Path:
        return self._directory / "captures" / evidence.session / evidence.request

    def _load(self, planned: PlannedSession, workspace: Path) -> tuple[WorkerProcess, dict[str, Any]]:
        """Start a session's process and load its engine."""
        session = planned.session
        engine = find_engine(session.engine)
        model_path = self._locate_model(planned)
        environment = self._environments[session.key]
        threads = str(session.options.get("num_threads", self._threads))
        variables = {
            "OMP_NUM_THREADS": threads,
            "TMPDIR": str(workspace),
            **({"PYTHONPATH": os.environ.get("PYTHONPATH", "")} if environment.source == "own" else {}),
            **engine.worker_environment(session, workspace),
            **environment.env,
        }
        worker = WorkerProcess(environment.python, workspace, variables, f"{os.getpid()}-{workspace.name}")
        message = {
            "type": "load",
            "engine": f"{engine.__module__}:{engine.__qualname__}",
            "session": session.to_json(),
            "model_path": model_path,
            "workspace": str(workspace),
        }
        try:
            facts = worker.ask(message, timeout=LOAD_TIMEOUT, cancelled=self._stopping.is_set)
        except BaseException:
            worker.kill()
            raise
        return worker, {**facts, "environment": environment.name, "python": str(environment.python)}

    def _locate_model(self, planned: PlannedSession) -> str:
        """Return the checkpoint's directory or hub id; a recipe is built first, once, under our own interpreter."""
        model = planned.session.model
        if model.recipe is None:
            return model.path or model.id or ""
        with self._model_lock:
            if model.recipe not in self._models:
                self._models[model.recipe] = self._build_model(model.recipe)
        found = self._models[model.recipe]
        if isinstance(found, EngineError):
            raise found
        return found

    def _build_model(self, recipe: str) -> str | EngineError:
        from specrunner.models.recipes import RECIPES, find_built

        built = find_built(RECIPES[recipe])
        if built is not None:
            return str(built)
        done = subprocess.run(
            [sys.executable, "-m", "specrunner.models.recipes", recipe],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        if done.returncode == 0:
            return done.stdout.strip().splitlines()[-1]
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        message = lines[-1].removeprefix("error: ") if lines else f"exit status {done.returncode}"
        return ModelUnavailable(f"the recipe {recipe} could not be built: {message}", log_tail="\n".join(lines[-40:]))
