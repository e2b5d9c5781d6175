"""Verdicts and their evidence: what a run found out about each case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from specrunner.errors import EngineError
from specrunner.spec.model import Case


class Verdict(StrEnum):
    """The outcome of a case (DESIGN section 2)."""

    PASSED = "passed"
    FAILED = "failed"
    ERROR = "error"
    SKIPPED = "skipped"
    XFAILED = "xfailed"
    XPASSED = "xpassed"
    INCONCLUSIVE = "inconclusive"


ALL_REPEATS = 0
"""The `CheckResult.repeat` of what compares the repeats of a case with each other."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One comparison under one rule; measurements are recorded also when it passes.

    Attributes:
        subject: what was compared: a tensor's name or pattern, `tokens`, `tokenization`, `attention`, `golden`,
            `trajectory`, `repeats`, a benchmark or one of its tasks, or `case` where nothing can be compared.
        rule: the rule's name, e.g. `allclose`.
        passed: whether the rule holds.
        message: what is wrong, one line without line breaks, lower case; "" when it passed.
        measurements: every number measured, JSON values only (non-finite numbers as strings "nan", "inf", "-inf").
        limits: the rule's parameters, complete.
        location: `specs/x.yaml:12` of the rule that was applied, or "".
        gates: whether it counts for the verdict. A check that does not gate is a trend: what a free run did, kept for
            the report.
        against: the role of the capture that the candidate was held against: `reference`, `golden`, or "" when the
            check needs none (attention geometry).
        inconclusive: whether the evidence is too small to tell; `passed` is then False, and the case does not fail.
        repeat: which of the case's repeats it judges, from 1, or `ALL_REPEATS`.
    """

    subject: str
    rule: str
    passed: bool
    message: str
    measurements: Mapping[str, Any]
    limits: Mapping[str, Any] = field(default_factory=dict)
    location: str = ""
    gates: bool = True
    against: str = "reference"
    inconclusive: bool = False
    repeat: int = 1

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CheckResult:
        """Rebuild a check from its fields as JSON values."""
        return cls(**data)

    @property
    def fails(self) -> bool:
        """Whether this check alone makes the case fail."""
        return self.gates and not self.passed and not self.inconclusive


def tell_check(check: CheckResult) -> str:
    """Return what a check says in one line: of what, against what where that is a golden, and the message."""
    side = " against the golden" if check.against == "golden" and check.subject != "golden" else ""
    return f"{check.subject}{side}: {check.message}"


def find_failed_repeats(checks: Sequence[CheckResult]) -> list[int]:
    """Return the repeats of a case in which a check failed, ascending."""
    return sorted({check.repeat for check in checks if check.fails})


def select_telling(checks: Sequence[CheckResult]) -> tuple[CheckResult, ...]:
    """Return the checks of one repeat, the first that failed, or else the first; and what compares all repeats."""
    telling = next((check.repeat for check in checks if check.fails), 1)
    return tuple(check for check in checks if check.repeat in (telling, ALL_REPEATS))


def find_side(checks: Sequence[CheckResult]) -> str:
    """Return what the first failed check was held against, `reference` or `golden`; without one, the first check."""
    return next((check.against for check in sorted(checks, key=lambda one: not one.fails) if check.against), "")


def select_side(checks: Sequence[CheckResult]) -> tuple[CheckResult, ...]:
    """Return the checks against what the first failed one was held against, and those that need no other side.

    Numbers against a reference and against a golden are two comparisons, and are never told as one.
    """
    side = find_side(checks)
    return tuple(check for check in checks if check.against in (side, ""))


def describe_repeats(failed: Sequence[int], repeats: int) -> str:
    """Return how many of a case's repeats failed, and which, as it stands before what the first of them says, or ""."""
    if repeats == 1 or not failed:
        return ""
    if len(failed) == repeats:
        return f"all {repeats} repeats failed: "
    which = f"repeat{'s' * (len(failed) > 1)} {', '.join(map(str, failed))}"
    return f"flaky: {len(failed)} of {repeats} repeats failed ({which}): "


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Where a failing case first went wrong, and what the pattern of its errors says.

    Attributes:
        tensor: the first tensor in model order that left its limit, or "" when no tensor did.
        token: the worst token of that tensor, from 0, or None.
        factor: how many times its limit (or noise floor, where one was measured) the error is, or None.
        findings: what the pattern says, one line each, the most telling first.
        growth: error by tensor in model order: `{tensor, error, floor, limit}`, relative L2 errors; None where unknown.
        local: the same for local errors (each module fed with the reference's input), empty when they were not
            measured: `{tensor, error}`.
    """

    tensor: str = ""
    token: int | None = None
    factor: float | None = None
    findings: tuple[str, ...] = ()
    growth: tuple[Mapping[str, Any], ...] = ()
    local: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Diagnosis:
        """Rebuild a diagnosis from its fields as JSON values."""
        return cls(**{**data, **{name: tuple(data[name]) for name in ("findings", "growth", "local")}})


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no evidence: the `error` or `skipped` verdict's cause.

    Attributes:
        kind: an `EngineError.kind`, a golden's (`golden-...`), `missing-evidence`, `not-run`, or `bug` of our own.
        message: one line.
        help: the remedy, or None.
        log_tail: the last lines the engine printed, or "".
        role: whose it is, as in `PlannedCase.evidence`, `golden`, or "".
    """

    kind: str
    message: str
    help: str | None = None
    log_tail: str = ""
    role: str = ""

    @classmethod
    def of(cls, error: EngineError, role: str = "") -> Failure:
        """Return what an engine's error costs a case."""
        return cls(error.kind, error.message, error.help, error.log_tail, role)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Failure:
        """Rebuild a failure from its fields as JSON values."""
        return cls(**data)


@dataclass(frozen=True, slots=True)
class CaseResult:
    """A case's verdict with all its evidence.

    Attributes:
        case: the case.
        verdict: the outcome.
        checks: every check made, repeat by repeat, each in model order (tokenization, tensors, tokens).
        failure: the cause of an `error` or a `skipped`, else None.
        seconds: wall time of the case's own requests (shared ones are counted once, with the first case) and checks.
        candidate: facts of the candidate's session and request, JSON values only.
        reference: facts of the reference's, or empty.
        diagnosis: where it first went wrong; None unless a check failed.
        kept: what of it is an earlier run's, since nothing that it comes from has changed: `verdict` (nothing was
            compared again), `captures` (compared again, no engine was asked), or "".
        attempts: why captures that it needs were asked for again, oldest first.
    """

    case: Case
    verdict: Verdict
    checks: tuple[CheckResult, ...] = ()
    failure: Failure | None = None
    seconds: float = 0.0
    candidate: Mapping[str, Any] = field(default_factory=dict)
    reference: Mapping[str, Any] = field(default_factory=dict)
    diagnosis: Diagnosis | None = None
    kept: str = ""
    attempts: tuple[Failure, ...] = ()

    @property
    def first_failed(self) -> CheckResult | None:
        """The first check in model order that failed."""
        return next((check for check in self.checks if check.fails), None)

    @property
    def message(self) -> str:
        """One line that says why the verdict is not `passed`, or ""."""
        if self.verdict is Verdict.XPASSED:
            return "the case passed, but the spec expects it to fail: remove its xfail"
        if self.failure is not None:
            role = f"{self.failure.role}: " if self.failure.role else ""
            return role + self.failure.message
        check = self.first_failed or next((check for check in self.checks if check.inconclusive), None)
        told = describe_repeats(find_failed_repeats(self.checks), self.case.repeat)
        return f"{told}{tell_check(check)}" if check else ""
