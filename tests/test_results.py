"""What a result says of its case's repeats."""

from __future__ import annotations

from dataclasses import replace

import pytest

from specrunner.results import ALL_REPEATS, CheckResult, Verdict, describe_repeats, find_failed_repeats, select_telling
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
