"""Verdicts and numbers read well."""

from __future__ import annotations

import pytest

from specrunner.reporters.wording import describe_counts, format_number, format_seconds
from specrunner.results import Verdict


def test_counts_come_worst_first_and_leave_out_what_did_not_occur() -> None:
    counts = {Verdict.PASSED: 40, Verdict.FAILED: 1, Verdict.ERROR: 1, Verdict.SKIPPED: 0}
    assert [word for _, word in describe_counts(counts)] == ["1 failed", "1 error", "40 passed"]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0, "0.00 s"),
        (9.994, "9.99 s"),
        (9.996, "10.0 s"),
        (99.94, "99.9 s"),
        (99.96, "1 min 40 s"),
        (119.6, "2 min 00 s"),
        (3599.6, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_seconds(seconds: float, shown: str) -> None:
    assert format_seconds(seconds) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.00123456, "0.0012346"),
        (3, "3"),
        (1234567, "1,234,567"),
        (True, "yes"),
        (None, "-"),
        ("nan", "nan"),
        ([1, 2], "[1, 2]"),
        ([], "none"),
        ({}, "none"),
        (list(range(10)), "[0, 1, 2, 3, 4, 5, 6, 7, … 10 in all]"),
        ({"torch": "2.13.0", "n": {"a": 1}}, "torch 2.13.0, n (a 1)"),
    ],
)
def test_numbers(value: object, shown: str) -> None:
    assert format_number(value) == shown
