"""What a score of so many questions can tell: bounds, tests and their power, for scores that are 0 or 1 a question.

Everything is one-sided: only a drop of the score is a regression. Scores are shares from 0 to 1. Tests are exact, so the
chance of an alarm without a change is at most alpha at any sample size; bounds are score intervals (Wilson and its
relatives), whose coverage is close to nominal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import NormalDist

POWER = 0.8
"""The chance with which the minimal detectable drop is detected."""


def quantile(probability: float) -> float:
    """Return the standard normal quantile."""
    return NormalDist().inv_cdf(probability)


def bound_score(correct: int, samples: int, alpha: float) -> tuple[float, float]:
    """Return the lower and the upper Wilson bound of a share, each one-sided at `alpha`.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    """
    z2 = quantile(1 - alpha) ** 2
    share = correct / samples
    centre = (share + z2 / (2 * samples)) / (1 + z2 / samples)
    half = math.sqrt(z2 * (share * (1 - share) / samples + z2 / (4 * samples**2))) / (1 + z2 / samples)
    return (0.0 if correct == 0 else max(0.0, centre - half), 1.0 if correct == samples else min(1.0, centre + half))


def sum_binomial(most: int, samples: int, probability: float) -> float:
    """Return P[Bin(samples, probability) <= most]."""
    if most < 0:
        return 0.0
    if most >= samples or probability <= 0.0:
        return 1.0
    if probability >= 1.0:
        return 0.0
    log_p, log_q = math.log(probability), math.log1p(-probability)
    return min(
        1.0,
        math.fsum(
            math.exp(_log_choose(samples, count) + count * log_p + (samples - count) * log_q)
            for count in range(most + 1)
        ),
    )


def test_floor(correct: int, samples: int, floor: float) -> float:
    """Return the p-value of a score against a stated floor: P[Bin(samples, floor) <= correct]."""
    return sum_binomial(correct, samples, floor)


test_floor.__test__ = False  # type: ignore[attr-defined]
