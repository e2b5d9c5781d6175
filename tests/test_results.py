"""What a result says of its case's repeats."""

from __future__ import annotations

from dataclasses import replace

import pytest

from specrunner.results import (
    ALL_REPEATS,
    CheckResult,
    Verdict,
    describe_repeats,
    find_failed_repeats,
    find_side,
    select_side,
    select_telling,
    tell_check,
)
from tests.reporters.builders import make_case, make_check, make_result

BITWISE = CheckResult("repeats", "bitwise", False, "not the same", {}, gates=False, repeat=ALL_REPEATS)


def checks_of(*passed: bool) -> tuple[CheckResult, ...]:
    """Return the checks of a case whose repeats passed or not."""
    checks = [replace(make_check(passed=one), repeat=repeat) for repeat, one in enumerate(passed, 1)]
    return (*checks, BITWISE)


@pytest.mark.parametrize(
    ("failed", "repeats", "told"),
    [
        ([], 3, ""),
        ([1], 1, ""),
        ([2], 3, "flaky: 1 of 3 repeats failed (repeat 2): "),
        ([2, 11], 12, "flaky: 2 of 12 repeats failed (repeats 2, 11): "),
        ([1, 2], 2, "all 2 repeats failed: "),
    ],
)
def test_how_many_repeats_failed_and_which(failed: list[int], repeats: int, told: str) -> None:
    assert describe_repeats(failed, repeats) == told


def test_a_trend_fails_no_repeat() -> None:
    trend = replace(make_check(passed=False), gates=False, repeat=3)
    assert find_failed_repeats((*checks_of(True, False), trend)) == [2]


def test_a_case_is_told_by_the_first_repeat_that_failed() -> None:
    checks = checks_of(True, False, False)
    assert select_telling(checks) == (checks[1], BITWISE)
    assert select_telling(checks_of(True, True)) == (checks_of(True, True)[0], BITWISE)
    assert select_telling(()) == ()


def test_the_message_begins_with_the_flakiness() -> None:
    def message(repeats: int, *passed: bool) -> str:
        return make_result(make_case(repeat=repeats), Verdict.FAILED, checks=checks_of(*passed)).message

    what = "logits: 3 of 64 elements differ by more than the tolerance"
    assert message(1, False) == what
    assert message(2, True, False) == f"flaky: 1 of 2 repeats failed (repeat 2): {what}"
    assert message(2, False, False) == f"all 2 repeats failed: {what}"
    assert make_result(make_case(repeat=2), checks=checks_of(True, True)).message == ""


def test_a_reference_and_a_golden_are_two_comparisons() -> None:
    geometry = replace(make_check("attention"), against="")
    theirs, kept = make_check("logits"), replace(make_check("logits", passed=False), against="golden")
    checks = (geometry, theirs, kept)
    assert (find_side(checks), select_side(checks)) == ("golden", (geometry, kept))
    both = (geometry, make_check("logits", passed=False), kept)
    assert (find_side(both), select_side(both)) == ("reference", both[:2])
    assert select_side((geometry, theirs)) == (geometry, theirs)
    assert (find_side((geometry,)), select_side((replace(kept, gates=False),))) == ("", (replace(kept, gates=False),))


def test_the_repeat_that_is_told_is_that_of_the_first_failure() -> None:
    kept = [replace(make_check(passed=False), against="golden", repeat=repeat) for repeat in (1, 2)]
    theirs = checks_of(True, False)[:2]
    assert select_telling((*theirs, *kept)) == (theirs[1], kept[1])


def test_the_message_names_the_golden() -> None:
    kept = replace(make_check(passed=False), against="golden")
    assert make_result(verdict=Verdict.FAILED, checks=(make_check(), kept)).message == (
        "logits against the golden: 3 of 64 elements differ by more than the tolerance"
    )
    missing = CheckResult("golden", "evidence", False, "it is not there", {}, against="golden")
    assert tell_check(missing) == "golden: it is not there"
