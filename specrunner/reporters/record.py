"""The run as reports tell it: plain values that travel to JSON and back.

`RunCollector` gathers events into a `RunRecord`; `RunRecord.to_json` is the JSON report, and `RunRecord.from_json` what
`specrunner show` reads. The terminal, JUnit and JSON reports are made from the same records, so they cannot disagree.
"""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from specrunner.reporters.escape import escape_json
from specrunner.results import CaseResult, CheckResult, Diagnosis, Failure, Verdict
from specrunner.secrets import own_redactor
from specrunner.spec.model import Case, EngineChoice

REPORT_VERSION = 1
"""Version of the JSON report's layout (`schema/report.schema.json`)."""

NOT_RUN = "not-run"
"""The `Failure.kind` of a case that the run did not come to."""


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """One side of a case: the engine as the spec chose it, and the facts of what really ran."""

    engine: str
    dtype: str
    device: str
    options: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """`engine/dtype`."""
        return f"{self.engine}/{self.dtype}"

    @classmethod
    def from_choice(cls, choice: EngineChoice, facts: Mapping[str, Any]) -> EngineRecord:
        """Join the choice with the facts of its session and request."""
        redact = own_redactor().redact_values
        return cls(choice.engine, choice.dtype, choice.device, redact(choice.options), redact(facts))


@dataclass(frozen=True, slots=True)
class CaseRecord:
    """A case with its verdict and evidence, free of the spec's classes.

    Attributes:
        id: `name[engine=hf]`, unique within the suite.
        node_id: `specs/x.yaml::name[engine=hf]`.
        suite: the spec's path without its extension.
        name: the case's name in the spec, without its parameters.
        parameters: what expansion chose, in order.
        description: what the spec says of it, or "".
        tags: the spec's and its own.
        location: `{path, line, column}` of the case's entry.
        model: the checkpoint, with its `label`.
        prompt: the input, only what was stated.
        decode: the generation asked for, or None.
        benchmark: the benchmark and the question asked of its score, or None.
        xfail: the reason why the case is expected to fail on this engine, or "".
        verdict: what became of it.
        message: why, in one line; "" for one that passed.
        seconds: that its captures and its checks took.
        candidate: the engine under test, with the facts of what it really ran.
        reference: what it is held against, likewise; None without one.
        checks: every comparison with its measurements, in model order, also of those that passed.
        failure: what cost the evidence, or None.
        attempts: why captures that it needs were asked for again, oldest first.
        diagnosis: where it first went wrong; None unless a check failed.
        kept: `verdict` or `captures` when these are an earlier run's, else "".
        repeat: how many times the candidate was asked; each check says which answer it judges.
    """

    id: str
    node_id: str
    suite: str
    name: str
    parameters: tuple[tuple[str, str], ...]
    description: str
    tags: tuple[str, ...]
    location: Mapping[str, Any]
    model: Mapping[str, Any]
    prompt: Mapping[str, Any]
    decode: Mapping[str, Any] | None
    xfail: str
    verdict: Verdict
    message: str
    seconds: float
    candidate: EngineRecord
    reference: EngineRecord | None
    checks: tuple[CheckResult, ...] = ()
    failure: Failure | None = None
    attempts: tuple[Failure, ...] = ()
    diagnosis: Diagnosis | None = None
    benchmark: Mapping[str, Any] | None = None
    kept: str = ""
    repeat: int = 1

    @property
    def where(self) -> str:
        """`specs/x.yaml:12`."""
        return f"{self.location['path']}:{self.location['line']}"

    @property
    def command(self) -> str:
        """The command that runs this case again, quoted for a shell."""
        return f"specrunner run {shlex.quote(self.node_id)}"

    @property
    def first_failed(self) -> CheckResult | None:
        """The first check in model order that failed."""
        return next((check for check in self.checks if check.fails), None)

    @property
    def was_not_run(self) -> bool:
        """Whether the run ended before this case had its turn."""
        return self.verdict is Verdict.ERROR and self.failure is not None and self.failure.kind == NOT_RUN

    @classmethod
    def from_result(cls, result: CaseResult) -> CaseRecord:
        """Take over a result."""
        case = result.case
        prompt = {
            name: value
            for name in ("text", "messages", "token_ids", "length")
            if (value := getattr(case.prompt, name)) is not None
        }
        if case.prompt.text is not None:
            prompt["add_special_tokens"] = case.prompt.add_special_tokens
        return cls(
            id=case.id,
            node_id=case.node_id,
            suite=case.suite,
            name=case.name,
            parameters=case.parameters,
            description=case.description,
            tags=case.tags,
            location={"path": case.location.path, "line": case.location.line, "column": case.location.column},
            model={"label": case.model.label, **escape_json(case.model)},
            prompt=escape_json(prompt),
            decode=escape_json(case.decode),
            xfail=case.xfail.reason if case.xfail is not None and case.expected_to_fail else "",
            verdict=result.verdict,
            message=own_redactor().redact(result.message),
            seconds=result.seconds,
            candidate=EngineRecord.from_choice(case.candidate, result.candidate),
            reference=EngineRecord.from_choice(case.reference, result.reference) if case.reference else None,
            checks=result.checks,
            failure=_redact_failure(result.failure) if result.failure is not None else None,
            diagnosis=result.diagnosis,
            benchmark=escape_json(case.benchmark),
            kept=result.kept,
            repeat=case.repeat,
            attempts=tuple(map(_redact_failure, result.attempts)),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the case's object in the JSON report."""
        data: dict[str, Any] = escape_json(list_fields(self))
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CaseRecord:
        """Rebuild a record from `to_json`."""
        fields = {name: data[name] for name in cls.__dataclass_fields__}
        fields["parameters"] = tuple((key, value) for key, value in data["parameters"])
        fields["tags"] = tuple(data["tags"])
        fields["verdict"] = Verdict(data["verdict"])
        fields["candidate"] = EngineRecord(**data["candidate"])
        fields["reference"] = EngineRecord(**data["reference"]) if data["reference"] else None
        fields["checks"] = tuple(CheckResult.from_json(check) for check in data["checks"])
        fields["failure"] = Failure.from_json(data["failure"]) if data["failure"] else None
        fields["attempts"] = tuple(map(Failure.from_json, data["attempts"]))
        fields["diagnosis"] = Diagnosis.from_json(data["diagnosis"]) if data["diagnosis"] else None
        return cls(**fields)


def list_fields(case: CaseRecord) -> dict[str, Any]:
    """Return what the case's object in the JSON report is made of."""
    return {name: getattr(case, name) for name in CaseRecord.__dataclass_fields__} | {"command": case.command}


_LATEST: list[tuple[CaseResult, CaseRecord]] = []
"""One at most: what was asked for last, by any run of this process."""


def record_result(result: CaseResult) -> CaseRecord:
    """Return a result's record; the reporters of a run, which are told of it one after the other, share it."""
    for known, record in tuple(_LATEST):  # another run's thread may replace it at any time
        if known is result:
            return record
    record = CaseRecord.from_result(result)
    _LATEST[:] = [(result, record)]
    return record


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """What one engine process really was.

    Attributes:
        key: the session's digest.
        label: `hf glass-0.8m float32 cpu`.
        facts: what the engine said when it had loaded; empty when it never did.
        load_seconds: from the start of the process to readiness, or None when it never was ready.
        requests: how many were wanted: those planned, and those that looked into failures.
        answered: how many were answered.
        failed: how many were given up.
        tensors: how many tensors were captured.
        tokens: how many tokens were generated.
        starts: how often a process was started for it.
        end: why the last process ended, or "" when it was closed in order.
        kept: requests that an earlier run had answered.
        why: why the others were asked, or "" where nothing was, or nothing is kept.
    """

    key: str
    label: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    load_seconds: float | None = None
    requests: int = 0
    answered: int = 0
    failed: int = 0
    tensors: int = 0
    tokens: int = 0
    starts: int = 0
    end: str = ""
    kept: int = 0
    why: str = ""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A whole run: the JSON report.

    Attributes:
        command: the command line.
        started_at: ISO 8601, UTC.
        seconds: wall time.
        interrupted: whether a signal ended it.
        complete: False when the run ended without saying so (a bug, a kill); `seconds` and `exit_code` are then None.
        exit_code: the exit status.
        environment: of the machine, the Python and specrunner that ran it.
        sessions: engine processes that were loaded, with their facts.
        cases: in the order of the plan.
    """

    command: tuple[str, ...]
    started_at: str
    seconds: float | None
    interrupted: bool
    complete: bool
    exit_code: int | None
    environment: Mapping[str, Any]
    sessions: tuple[SessionRecord, ...]
    cases: tuple[CaseRecord, ...]

    @property
    def counts(self) -> dict[Verdict, int]:
        """Cases by verdict, every verdict present."""
        return count_verdicts(self.cases)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON report."""
        return {**self.head_to_json(), "cases": [case.to_json() for case in self.cases]}

    def head_to_json(self) -> dict[str, Any]:
        """Return the JSON report without its cases."""
        run = ("command", "started_at", "seconds", "interrupted", "complete", "exit_code")
        return {
            "version": REPORT_VERSION,
            "run": {name: escape_json(getattr(self, name)) for name in run},
            "counts": {"total": len(self.cases), **{str(verdict): count for verdict, count in self.counts.items()}},
            "environment": escape_json(self.environment),
            "sessions": escape_json(self.sessions),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunRecord:
        """Rebuild a run from `to_json`.

        Raises:
            KeyError, TypeError, ValueError: `data` is not a report of this version.
        """
        if data["version"] != REPORT_VERSION:
            raise ValueError(f"it has version {data['version']}, not {REPORT_VERSION}")
        return cls(
            **{**data["run"], "command": tuple(data["run"]["command"])},
            environment=data["environment"],
            sessions=tuple(SessionRecord(**session) for session in data["sessions"]),
            cases=tuple(CaseRecord.from_json(case) for case in data["cases"]),
        )


def count_verdicts(cases: tuple[CaseRecord, ...] | list[CaseRecord]) -> dict[Verdict, int]:
    """Count cases by verdict, every verdict present."""
    counts = dict.fromkeys(Verdict, 0)
    for case in cases:
        counts[case.verdict] += 1
    return counts


def not_run_result(case: Case) -> CaseResult:
    """Return the result of a case that the run did not come to."""
    return CaseResult(case, Verdict.ERROR, failure=Failure(NOT_RUN, "the run ended before this case had its turn"))


def _redact_failure(failure: Failure) -> Failure:
    redact = own_redactor().redact
    advice = failure.help and redact(failure.help)
    return replace(failure, message=redact(failure.message), help=advice, log_tail=redact(failure.log_tail))


def utc_text(seconds: float) -> str:
    """Return seconds since the epoch as ISO 8601 in UTC, to the second."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")
