"""What an engine answered to a benchmark, sample by sample: the evidence of a benchmark case, and a baseline's file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from specrunner.errors import CaptureIncomplete
from specrunner.files import write_whole

VERSION = 1

ANSWERS = Path(".specrunner") / "benchmarks"
"""Where every run leaves the single answers to its benchmarks."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One question and its answer.

    Attributes:
        id: index in the task's split, `subject/index` where the task has subjects.
        prompt: digest of the texts that the model was asked.
        score: the metric, 0 or 1.
        answer: what the model chose or said, after the task's filter.
        target: the right answer.
        tokens: of every text asked, tokens of the context and of the continuation (0 for a generation).
        logprobs: log-likelihoods of the answers offered, natural logarithm; empty for a generation.
        margin: by how much the best answer is ahead of the next, in the units of the metric; None for a generation.
    """

    id: str
    prompt: str
    score: float
    answer: str
    target: str
    tokens: tuple[tuple[int, int], ...]
    logprobs: tuple[float, ...] = ()
    margin: float | None = None


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """All answers to one task.

    Attributes:
        task: its name.
        metric: the metric that `score` is.
        score: the mean, as lm-eval computes it.
        population: questions the task has.
        data: digest of all its questions.
        definition: digest of the task's definition and lm-eval's version.
        template: digest of the chat template, or "" without one.
        samples: one a question asked, in order.
        kept_answers: answers of the engine that come from an earlier, interrupted run.
    """

    task: str
    metric: str
    score: float
    population: int
    data: str
    definition: str
    template: str
    samples: tuple[Sample, ...]
    kept_answers: int = 0


@dataclass(frozen=True, slots=True)
class BenchmarkRecord:
    """All answers of one session to one benchmark, with what produced them.

    Attributes:
        tasks: one a task.
        provenance: facts of the session and versions, JSON values only.
    """

    tasks: tuple[TaskRecord, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)


def locate_answers(suite: str, case: str) -> Path:
    """Return the file in which every run leaves a case's answers, relative to the current folder.

    Args:
        suite: the spec's path without its extension.
        case: the case's id, `name[engine=hf]`.
    """
    return ANSWERS / suite.lstrip("/").replace("..", "") / f"{case}.json"


def write_record(record: BenchmarkRecord, path: Path) -> None:
    """Write a record; it appears at once and whole."""
    write_whole(path, (json.dumps({"version": VERSION, **asdict(record)}) + "\n").encode())


def read_record(path: Path) -> BenchmarkRecord:
    """Read a record.

    Raises:
        CaptureIncomplete: it is not there, or not a record of this version.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["version"] != VERSION:
            raise ValueError(f"it has version {data['version']}, not {VERSION}")
        tasks = tuple(
            TaskRecord(**{**task, "samples": tuple(_read_sample(sample) for sample in task["samples"])})
            for task in data["tasks"]
        )
        return BenchmarkRecord(tasks, data["provenance"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CaptureIncomplete(f"there is no benchmark record to read in {path}: {error}") from error


def _read_sample(data: Mapping[str, Any]) -> Sample:
    tokens = tuple((int(context), int(continuation)) for context, continuation in data["tokens"])
    return Sample(**{**data, "tokens": tokens, "logprobs": tuple(data["logprobs"])})
