"""A calibration as text: a block for each tolerance entry, a line for each of its limits."""

from __future__ import annotations

import math

import pytest

from specrunner.calibration.noise import Limit, Noise
from specrunner.calibration.text import describe_noise, format_noises
from specrunner.spec.model import Location


def noise(shares: list[float], *, parameter: str = "mean", line: int = 3, pattern: str = "logits") -> Noise:
    limit = Limit(Location("a.yaml", line, 5), pattern, "kl", parameter, 0.1, 0.0)
    return Noise(limit, shares, [str(number % 5) for number in range(len(shares))])


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (
            noise([0.5] * 10),
            "kl.mean 0.1: noise 50% at p99, 50% at most, 0 of 10 beyond; "
            "suggested 0.075, 0 of 10 held-out runs beyond it, at most 25.89% expected",
        ),
        (
            noise([0.5, 2.0]),
            "kl.mean 0.1: noise 200% at p99, 200% at most, 1 of 2 beyond; "
            "suggested 0.3, 1 of 2 held-out runs beyond it, at most 97.47% expected",
        ),
        (noise([0.0, 0.0]), "kl.mean 0.1: noise 0% at p99, 0% at most, 0 of 2 beyond; no number follows from it"),
        (
            noise([0.5, math.inf]),
            "kl.mean 0.1: noise more than any number at p99, more than any number at most, 1 of 2 beyond; "
            "no number follows from it",
        ),
        (noise([0.0, math.inf, 0.0], parameter=""), "kl: broken by 1 of 3 runs"),
        (noise([0.0], parameter=""), "kl: broken by 0 of 1 run"),
    ],
)
def test_a_limits_line(found: Noise, line: str) -> None:
    assert describe_noise(found) == line


def test_limits_of_one_entry_stand_together() -> None:
    found = [noise([0.0] * 2), noise([0.0], parameter=""), noise([0.0], line=4), noise([0.0], line=4, pattern="x")]
    lines = list(format_noises(found))
    assert [line for line in lines if not line.startswith("  ")] == [
        "a.yaml:3  logits",
        "a.yaml:4  logits",
        "a.yaml:4  x",
        "",
        "4 limits, up to 2 runs each. Noise is given as a share of the stated limit; "
        "the suggestion is 1.5 times its 99th percentile.",
    ]
    assert lines[1:3] == ["  " + describe_noise(one) for one in found[:2]]


def test_no_noise_gives_no_line() -> None:
    assert list(format_noises([])) == []
