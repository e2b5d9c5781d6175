"""What happens during a run, as values; reporters read these and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from specrunner.plan.model import Plan
from specrunner.results import CaseResult


@dataclass(frozen=True, slots=True)
class RunStarted:
    """The plan is made.

    Attributes:
        plan: what will run.
        command: the command line, as a list of arguments.
        started_at: seconds since the epoch.
        environment: facts of the machine and of specrunner (versions, platform, cpu count), JSON values only.
    """

    plan: Plan
    command: tuple[str, ...]
    started_at: float
    environment: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AnswersKept:
    """What earlier runs have answered of a session's requests.

    Attributes:
        session: the session's key.
        label: its name for people.
        requests: how many are needed.
        kept: how many of them are answered.
        why: why the others are asked, or "".
        facts: of the session that answered, or empty.
    """

    session: str
    label: str
    requests: int
    kept: int
    why: str
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SessionStarted:
    """An engine process is being started."""

    session: str
    label: str
    requests: int


@dataclass(frozen=True, slots=True)
class SessionReady:
    """The engine has loaded its model."""

    session: str
    label: str
    seconds: float
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RequestFinished:
    """A request has been answered (`failed` is False) or given up.

    Attributes:
        session: the session's key.
        request: the request's key.
        seconds: wall time of the request.
        failed: whether it was given up.
        tensors: how many tensors were captured.
        tokens: how many tokens were generated.
    """

    session: str
    request: str
    seconds: float
    failed: bool = False
    tensors: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class QuestionsAnswered:
    """A benchmark goes on.

    Attributes:
        session: the session's key.
        request: the request's key.
        done: questions of the current task that have been answered, each offered answer counted.
        total: their number.
    """

    session: str
    request: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class SessionEnded:
    """The engine process is gone. `reason` is "" when it was closed in order."""

    session: str
    label: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class CaseFinished:
    """A case has its verdict."""

    result: CaseResult


@dataclass(frozen=True, slots=True)
class RunFinished:
    """The run is over.

    Attributes:
        seconds: wall time of the whole run.
        interrupted: whether the user ended it; cases without a verdict were then reported as `error` (`not-run`).
        exit_code: what the command will return.
        sessions: by session key: label, facts, load seconds, request count.
    """

    seconds: float
    interrupted: bool
    exit_code: int
    sessions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


Event = (
    RunStarted
    | AnswersKept
    | SessionStarted
    | SessionReady
    | RequestFinished
    | QuestionsAnswered
    | SessionEnded
    | CaseFinished
    | RunFinished
)
