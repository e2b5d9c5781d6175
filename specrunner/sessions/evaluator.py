"""The evaluating process from the caller's side: its questions are passed on to the live session."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from specrunner.engines.base import Capture
from specrunner.errors import ENGINE_ERRORS, CaptureIncomplete, EngineError, EngineTimeout, WorkerDied
from specrunner.folders import join_import_path
from specrunner.requests import Request, Session
from specrunner.secrets import Redactor
from specrunner.sessions.answers import AnswerBook, AnswerShelf, Tell
from specrunner.sessions.captures import BENCHMARK_FILE, write_capture
from specrunner.sessions.forks import ForkServers
from specrunner.sessions.logs import Log
from specrunner.sessions.process import Cancelled, Fork, describe_end, end_tree, fork_or_start
from specrunner.sessions.protocol import ChannelClosed

PREPARING_TIMEOUT = 1800.0
"""Seconds that lm-eval may take between two batches of questions, to build prompts or to score."""

PROGRAM = "specrunner.benchmarks.evaluate"

PRELOAD = ("transformers", "transformers.models.auto.tokenization_auto", "lm_eval", "specrunner.benchmarks.model")
"""What every evaluation imports; those of a run share one import of it."""

QUIET = {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
"""Variables that keep the progress bars of lm-eval and its libraries out of the log."""


class Asked(Protocol):
    """A loaded session that questions can be put to, here (`process.WorkerProcess`) or on another machine."""

    workspace: Path

    def ask(
        self, message: dict[str, Any], *, timeout: float, cancelled: Callable[[], bool] = lambda: False
    ) -> dict[str, Any]:
        """Send a message and return the facts of its answer."""


def run_evaluation(
    worker: Asked,
    session: Session,
    request: Request,
    directory: Path,
    *,
    model_path: str,
    facts: Mapping[str, Any],
    timeout: float,
    shelf: AnswerShelf,
    stamp: Tell,
    stopped: Callable[[], bool],
    cancelled: Callable[[], bool],
    progress: Callable[[int, int], None],
    forks: ForkServers | None = None,
) -> None:
    """Run a benchmark on a loaded session; leave its record and a capture's completion mark in `directory`.

    Args:
        worker: the session's process.
        session: what it has loaded.
        request: with an `evaluation`.
        directory: of the capture.
        model_path: the checkpoint's directory or hub id, for its tokenizer.
        facts: of the session, for the record.
        timeout: seconds that one batch of questions may take.
        shelf: of the answers that earlier runs got.
        stamp: tells what the session's answers come from, where some are kept.
        stopped: whether no further batch is to be asked; what was answered is kept.
        cancelled: polled ten times a second.
        progress: called with the questions answered and their number.
        forks: share one import of lm-eval among the run's evaluations.

    Raises:
        Cancelled: `stopped()` or `cancelled()` became true.
        EngineError: what the engine or the evaluation reported.
    """
    assert request.evaluation is not None, "a request without an evaluation"
    directory.mkdir(parents=True, exist_ok=True)
    message = {
        "type": "evaluate",
        "evaluation": asdict(request.evaluation),
        "model": asdict(session.model),
        "model_path": model_path,
        "record": str(directory / BENCHMARK_FILE),
        "facts": {"engine": session.engine, "dtype": session.dtype, "device": session.device, **facts},
    }
    book = shelf.open(session, facts, stamp(), request) if shelf.folder is not None else None
    fork: Fork | None = None
    if forks is not None:
        fork = forks.prepare(Path(sys.executable), PRELOAD, worker.workspace, None, stopped, program=PROGRAM)
    evaluator = _Evaluator(worker.workspace, fork)
    try:
        evaluator.send(message)
        while True:
            answer = evaluator.receive(time.monotonic() + PREPARING_TIMEOUT, stopped)
            if answer["type"] != "ask":
                break
            progress(answer["done"], answer["total"])
            if stopped():
                raise Cancelled

            def ask(questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
                asked = {"type": "answer", "request": request.to_json(), "questions": questions}
                replies: list[dict[str, Any]] = worker.ask(asked, timeout=timeout, cancelled=cancelled)["answers"]
                return replies

            answers, kept = answer_batch(answer["questions"], book, ask)
            evaluator.send({"type": "answers", "answers": answers, "kept": kept})
        if answer["type"] == "failed":
            error = ENGINE_ERRORS.get(answer["kind"], EngineError)
            raise error(answer["message"], help=answer["help"], log_tail=evaluator.log.tail())
        write_capture(directory, Capture(prompt_token_ids=[], facts=answer["facts"]))
    finally:
        evaluator.end()


def answer_batch(
    questions: list[dict[str, Any]],
    book: AnswerBook | None,
    ask: Callable[[list[dict[str, Any]]], list[dict[str, Any]]],
) -> tuple[list[dict[str, Any]], int]:
    """Answer questions from the book where it has them, else from the engine, whose answers are kept.

    Returns:
        The answers in order, and how many of them are from the book.

    Raises:
        CaptureIncomplete: fewer answers than questions.
    """
    if book is None:
        return ask(questions), 0
    answers = [book.find(question) for question in questions]
    missing = [question for question, answer in zip(questions, answers, strict=True) if answer is None]
    fresh = ask(missing) if missing else []
    if len(fresh) != len(missing):
        raise CaptureIncomplete(f"{len(fresh)} answers to {len(missing)} questions")
    if missing:
        book.keep(missing, fresh)
    rest = iter(fresh)
    return [next(rest) if answer is None else answer for answer in answers], len(questions) - len(missing)


class _Evaluator:
    """The process.

    Args:
        workspace: of the session; the log and lm-eval's temporary files go there.
        fork: forks the process off one that has imported lm-eval, or returns None; see `process.WorkerProcess`.

    Attributes:
        log: what lm-eval prints.
    """

    def __init__(self, workspace: Path, fork: Fork | None = None) -> None:
        variables = {
            **os.environ,
            **QUIET,
            "PYTHONPATH": join_import_path(),
            "HF_DATASETS_CACHE": str(workspace / "datasets"),
            "TMPDIR": str(workspace),
        }
        mark = f"{os.getpid()}-{workspace.name}-evaluation"
        self._ended = False
        self.log = Log(workspace / "evaluator.log", Redactor(variables))
        self.log.path.unlink(missing_ok=True)  # of an evaluation before
        with self.log.path.open("ab") as log:  # a log that is cut is added to at its new end
            command = [sys.executable, "-m", PROGRAM]
            self._process, self._channel, self._mark = fork_or_start(fork, command, variables, mark, log, workspace)

    def send(self, message: dict[str, Any]) -> None:
        """Send a message; raise how the process ended when it is gone."""
        try:
            self._channel.send(message)
        except ChannelClosed:
            raise self._describe_death() from None

    def receive(self, deadline: float, cancelled: Callable[[], bool]) -> dict[str, Any]:
        """Wait for a message; raise why none came."""
        try:
            answer = self._channel.receive(deadline=deadline, cancelled=self.log.while_waiting(cancelled))
        except ChannelClosed:
            raise self._describe_death() from None
        if answer is None:
            if cancelled():
                raise Cancelled
            raise EngineTimeout(
                f"lm-eval was silent for {PREPARING_TIMEOUT:g} s between two questions", log_tail=self.log.tail()
            )
        return answer

    def _describe_death(self) -> WorkerDied:
        self.end()
        return WorkerDied(f"the evaluating process {describe_end(self._process.wait())}", log_tail=self.log.tail())

    def end(self) -> None:
        """End the process and whatever it has started; of no effect when that was done before."""
        if self._ended:  # its process id and descriptor numbers may be another's by now
            return
        self._ended = True
        end_tree(self._process, self._mark)
        self._channel.close()
