"""What a proof concludes from results."""

from __future__ import annotations

import math
from typing import Any

import pytest

from specrunner.errors import ExitCode
from specrunner.faults.model import Fault
from specrunner.proof.matrix import Entry, Matrix, Outcome, Row, judge_result
from specrunner.proof.shares import Share, largest_share
from specrunner.proof.text import format_matrix, summarise
from specrunner.results import CaseResult, CheckResult, Failure, Verdict

FAULT = Fault("mask-causal", "mask", "met")
HIDDEN = Fault("rope-offset", "rope", "met", invisible={"*": "relative"})
VARIANT = Fault("variant-repeat", "variant", "same", legitimate=True)


def entry(outcome: Outcome, value: float = 2.0) -> Entry:
    return Entry("f", "a.yaml::c[engine=hf]", outcome, Share(value, "logits", "kl"), "logits (kl)")


def row(fault: Fault, *outcomes: Outcome) -> Row:
    return Row(fault, "hf/float32", tuple(map(entry, outcomes)))


def check(
    passed: bool, measured: float, limit: float = 100.0, *, rule: str = "sqnr", gates: bool = True
) -> CheckResult:
    limits: dict[str, Any] = {"min": limit} if rule == "sqnr" else {}
    numbers = {"min_sqnr": measured} if rule == "sqnr" else {"differing": measured}
    return CheckResult("logits", rule, passed, "" if passed else "wrong", numbers, limits, gates=gates)


def result(*checks: CheckResult, verdict: Verdict = Verdict.PASSED, failure: Failure | None = None) -> CaseResult:
    case: Any = None
    return CaseResult(case, verdict, checks, failure)


@pytest.mark.parametrize(
    ("outcomes", "survives"),
    [
        ((Outcome.UNSEEN, Outcome.CAUGHT), False),
        ((Outcome.UNSEEN, Outcome.MISSED), True),
        ((Outcome.UNSEEN,), True),
        ((Outcome.INAPPLICABLE,), False),
        ((Outcome.ERROR,), False),
    ],
)
def test_a_fault_survives_when_no_case_that_ran_caught_it(outcomes: tuple[Outcome, ...], survives: bool) -> None:
    assert row(FAULT, *outcomes).survives is survives
    assert not row(HIDDEN, *outcomes).survives


@pytest.mark.parametrize(
    ("matrix", "code"),
    [
        (Matrix((row(FAULT, Outcome.CAUGHT),), (row(VARIANT, Outcome.UNSEEN),)), ExitCode.PASSED),
        (Matrix((row(FAULT, Outcome.MISSED),), ()), ExitCode.FAILED),
        (Matrix((), (row(VARIANT, Outcome.CAUGHT),)), ExitCode.FAILED),
        (Matrix((row(FAULT, Outcome.CAUGHT),), (), (entry(Outcome.CAUGHT),)), ExitCode.FAILED),
        (Matrix((row(FAULT, Outcome.CAUGHT, Outcome.ERROR),), ()), ExitCode.PASSED),
        (Matrix((row(FAULT, Outcome.CAUGHT), row(FAULT, Outcome.ERROR)), ()), ExitCode.ERRORS),
        (Matrix((row(FAULT, Outcome.INAPPLICABLE),), ()), ExitCode.NOTHING_VERIFIED),
        (Matrix((), ()), ExitCode.NOTHING_VERIFIED),
    ],
)
def test_exit_codes(matrix: Matrix, code: ExitCode) -> None:
    assert matrix.exit_code is code
    assert matrix.to_json()["exit_code"] == int(code)


def test_results_become_outcomes() -> None:
    healthy = result(check(True, 120.0))
    same, moved = result(check(True, 120.0)), result(check(True, 119.0))
    failed = result(check(False, 60.0), verdict=Verdict.FAILED)
    absent = result(verdict=Verdict.ERROR, failure=Failure("fault-inapplicable", "no mixture"))
    crashed = result(verdict=Verdict.ERROR, failure=Failure("worker-died", "killed"))
    outcomes = [judge_result("f", "c", found, healthy).outcome for found in (same, moved, failed, absent, crashed)]
    assert outcomes == [Outcome.UNSEEN, Outcome.MISSED, Outcome.CAUGHT, Outcome.INAPPLICABLE, Outcome.ERROR]


def test_the_largest_share_prefers_a_measure_beyond_its_limit() -> None:
    exact, near, far = check(False, 3, rule="exact"), check(True, 106.0), check(False, 80.0)
    assert largest_share([exact, near, far]) == Share(pytest.approx(10.0), "logits", "sqnr")
    assert largest_share([exact, near]) == Share(math.inf, "logits", "exact")
    assert largest_share([near]) == Share(pytest.approx(0.501, abs=1e-3), "logits", "sqnr")
    assert largest_share([check(False, 0.0, gates=False)]) is None


def test_the_text_names_what_went_wrong() -> None:
    matrix = Matrix((row(FAULT, Outcome.MISSED), row(HIDDEN, Outcome.MISSED)), (row(VARIANT, Outcome.CAUGHT),))
    text = "\n".join(format_matrix(matrix))
    assert "NOT CAUGHT  mask-causal [hf/float32]: met" in text
    assert "cannot be seen: relative" in text
    assert "FALSE ALARM  f: a.yaml::c[engine=hf]" in text
    assert summarise(matrix) == (
        "0 of 1 fault caught, 1 that cannot be seen, 1 false alarm in 1 run of 1 legitimate variant"
    )
