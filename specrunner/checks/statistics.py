"""What a score of so many questions can tell: bounds, tests and their power, for scores that are 0 or 1 a question.

Everything is one-sided: only a drop of the score is a regression. Scores and drops are shares from 0 to 1. The tests
are exact, so that without a change an alarm is raised with a chance of at most alpha at any sample size; the bounds
are score intervals (Wilson and its relatives), whose coverage is close to nominal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from statistics import NormalDist

POWER = 0.8
"""The chance with which the smallest detectable drop is detected."""

_STEPS = 60
"""Halvings of an interval: more than a float has bits."""


def bound_score(correct: int, samples: int, alpha: float) -> tuple[float, float]:
    """Return the lower and the upper bound of a share, each one-sided at `alpha`.

    Args:
        correct: right answers, from 0 to `samples`.
        samples: questions asked, more than 0.
        alpha: chance with which each bound alone is wrong (one-sided), above 0 and below 1.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    """
    z2 = _quantile(1 - alpha) ** 2
    share = correct / samples
    centre = (share + z2 / (2 * samples)) / (1 + z2 / samples)
    half = math.sqrt(z2 * (share * (1 - share) / samples + z2 / (4 * samples**2))) / (1 + z2 / samples)
    return (0.0 if correct == 0 else max(0.0, centre - half), 1.0 if correct == samples else min(1.0, centre + half))


def weigh_against_floor(correct: int, samples: int, floor: float) -> float:
    """Return the p-value of "the true score is at least `floor`": P[Bin(samples, floor) <= correct].

    Args:
        correct: right answers, from 0 to `samples`.
        samples: questions asked, more than 0.
        floor: a share from 0 to 1.

    Source: the exact one-sided binomial test; C. J. Clopper and E. S. Pearson, "The use of confidence or fiducial
    limits illustrated in the case of the binomial", Biometrika 26 (1934).
    """
    if correct >= samples or floor <= 0.0:
        return 1.0
    if floor >= 1.0:
        return 0.0
    log_p, log_q = math.log(floor), math.log1p(-floor)
    return _sum_exponentials(
        _log_choose(samples, count) + count * log_p + (samples - count) * log_q for count in range(correct + 1)
    )


def weigh_against_recorded(correct: int, samples: int, recorded_correct: int, recorded_samples: int) -> float:
    """Return the p-value of "no worse than the recorded run", in which both runs are samples and have noise.

    Args:
        correct: right answers, from 0 to `samples`.
        samples: questions asked, more than 0.
        recorded_correct: right answers of the recorded run, from 0 to `recorded_samples`.
        recorded_samples: questions asked then, more than 0.

    Source: R. A. Fisher's exact test, one-sided: the chance of at most `correct` right answers on this side when all
    right answers of both runs fall on the sides at random.
    """
    right, total = correct + recorded_correct, samples + recorded_samples
    least = max(0, right - recorded_samples)
    return _sum_exponentials(
        _log_choose(samples, count) + _log_choose(recorded_samples, right - count) - _log_choose(total, right)
        for count in range(least, correct + 1)
    )


def weigh_pairs(regressed: int, improved: int) -> float:
    """Return the p-value of "no more questions were lost than won": P[Bin(regressed + improved, 1/2) >= regressed].

    Args:
        regressed: questions that the baseline has right and the candidate wrong.
        improved: questions that the candidate has right and the baseline wrong.

    Source: the exact sign test; Q. McNemar, "Note on the sampling error of the difference between correlated
    proportions or percentages", Psychometrika 12 (1947), with binomial instead of normal tails.
    """
    discordant = regressed + improved
    won_by_chance = sum(math.comb(discordant, count) for count in range(improved + 1))
    return float(won_by_chance / (1 << discordant))


def bound_recorded_drop(
    correct: int, samples: int, recorded_correct: int, recorded_samples: int, alpha: float
) -> tuple[float, float]:
    """Return the lower and the upper bound of the drop from a recorded run, each one-sided at `alpha`.

    Args:
        correct: right answers, from 0 to `samples`.
        samples: questions asked, more than 0.
        recorded_correct: right answers of the recorded run, from 0 to `recorded_samples`.
        recorded_samples: questions asked then, more than 0.
        alpha: chance with which each bound alone is wrong (one-sided), above 0 and below 1.

    Returns:
        Shares from -1 to 1; below 0 the score has risen.

    Source: R. G. Newcombe, "Interval estimation for the difference between independent proportions", Statistics in
    Medicine 17 (1998), method 10.
    """
    here, there = correct / samples, recorded_correct / recorded_samples
    low_here, high_here = bound_score(correct, samples, alpha)
    low_there, high_there = bound_score(recorded_correct, recorded_samples, alpha)
    drop = there - here
    return (
        drop - math.hypot(there - low_there, high_here - here),
        drop + math.hypot(high_there - there, here - low_here),
    )


def bound_paired_drop(regressed: int, improved: int, samples: int, alpha: float) -> tuple[float, float]:
    """Return the lower and the upper bound of the drop on the same questions, each one-sided at `alpha`.

    Args:
        regressed: questions that the baseline has right and the candidate wrong.
        improved: questions that the candidate has right and the baseline wrong; both together at most `samples`.
        samples: questions asked of both, more than 0.
        alpha: chance with which each bound alone is wrong (one-sided), above 0 and below 1.

    Returns:
        Shares from -1 to 1; below 0 the score has risen.

    Source: T. Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design", Statistics in Medicine 17 (1998).
    """
    z = _quantile(1 - alpha)

    def score(drop: float) -> float:
        """Return how many standard deviations the observed drop is above `drop`; it falls as `drop` grows."""
        b = -regressed - improved + (2 * samples - regressed + improved) * drop
        c = -improved * drop * (1 - drop)
        won = max(0.0, (math.sqrt(max(0.0, b * b - 8 * samples * c)) - b) / (4 * samples))
        variance = samples * (2 * won + drop * (1 - drop))
        above = regressed - improved - samples * drop
        return above / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, above) if above else 0.0

    observed = (regressed - improved) / samples
    upper = 1.0 if regressed == samples else _find_root(lambda drop: -z - score(drop), observed, 1.0)
    lower = -1.0 if improved == samples else _find_root(lambda drop: z - score(drop), -1.0, observed)
    return lower, upper


def adjust_by_holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p-values that can each be held against alpha though several tests were made.

    Source: S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6
    (1979).
    """
    adjusted: dict[str, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


def smallest_drop_below_floor(score: float, samples: int, alpha: float, power: float = POWER) -> float | None:
    """Return the smallest drop from a true score `score` that a test against `score` detects, or None.

    The drop d solves d sqrt(n) = z(alpha) sqrt(p (1 - p)) + z(1 - power) sqrt((p - d)(1 - p + d)): the normal
    approximation of the test's power, rough where n p or n (1 - p) is below about 5. Where the exact test cannot reject
    even a score of 0, it is None.

    Args:
        score: p, a share from 0 to 1.
        samples: n, questions asked, more than 0.
        alpha: chance of a false alarm (one-sided), above 0 and below 1.
        power: chance of detection, above 0 and below 1.

    Source: J. L. Fleiss, B. Levin, M. C. Paik, "Statistical methods for rates and proportions", 3rd edition (2003),
    chapter 2.
    """
    if weigh_against_floor(0, samples, score) > alpha:
        return None
    return _solve_drop(
        lambda drop: (
            (
                _quantile(1 - alpha) * math.sqrt(score * (1 - score))
                + _quantile(power) * math.sqrt(max(0.0, (score - drop) * (1 - score + drop)))
            )
            / math.sqrt(samples)
        ),
        score,
    )


def smallest_drop_from_recorded(
    score: float, samples: int, recorded_samples: int, alpha: float, power: float = POWER
) -> float | None:
    """Return the smallest drop from `score` that a test against a recorded run of its own noise detects, or None.

    The drop d solves d = z(alpha) s0 + z(1 - power) s1, with s0 and s1 the standard deviations of the difference of
    the two scores without the drop (pooled) and with it: the normal approximation of the test's power. Where the exact
    test cannot reject even a score of 0, it is None.

    Args:
        score: of the recorded run, a share from 0 to 1.
        samples: questions asked, more than 0.
        recorded_samples: questions asked in the recorded run, more than 0.
        alpha: chance of a false alarm (one-sided), above 0 and below 1.
        power: chance of detection, above 0 and below 1.

    Source: J. L. Fleiss, B. Levin, M. C. Paik, "Statistical methods for rates and proportions", 3rd edition (2003),
    chapter 4, for samples of unequal size and without the correction for continuity.
    """
    if weigh_against_recorded(0, samples, round(score * recorded_samples), recorded_samples) > alpha:
        return None

    def needed(drop: float) -> float:
        pooled = (score * recorded_samples + (score - drop) * samples) / (samples + recorded_samples)
        null = pooled * (1 - pooled) * (1 / samples + 1 / recorded_samples)
        real = score * (1 - score) / recorded_samples + (score - drop) * (1 - score + drop) / samples
        return _quantile(1 - alpha) * math.sqrt(max(0.0, null)) + _quantile(power) * math.sqrt(max(0.0, real))

    return _solve_drop(needed, score)


def smallest_paired_drop(discordant: float, samples: int, alpha: float, power: float = POWER) -> float | None:
    """Return the smallest drop that the sign test detects, or None when even a drop by all flips is too small.

    The drop d solves d sqrt(n) = z(alpha) sqrt(psi) + z(1 - power) sqrt(psi - d^2): the normal approximation of the
    test's power. Where the exact test does not reject though all flips are losses, it is None.

    Args:
        discordant: psi, the share of questions whose correctness differs between the runs, from 0 to 1.
        samples: n, questions asked of both, more than 0.
        alpha: chance of a false alarm (one-sided), above 0 and below 1.
        power: chance of detection, above 0 and below 1.

    Source: R. J. Connor, "Sample size for testing differences in proportions for the paired-sample design", Biometrics
    43 (1987).
    """
    if weigh_pairs(round(discordant * samples), 0) > alpha:
        return None
    return _solve_drop(
        lambda drop: (
            (
                _quantile(1 - alpha) * math.sqrt(discordant)
                + _quantile(power) * math.sqrt(max(0.0, discordant - drop * drop))
            )
            / math.sqrt(samples)
        ),
        discordant,
    )


def _quantile(probability: float) -> float:
    return NormalDist().inv_cdf(probability)


def _log_choose(total: int, chosen: int) -> float:
    return math.lgamma(total + 1) - math.lgamma(chosen + 1) - math.lgamma(total - chosen + 1)


def _sum_exponentials(logarithms: Iterable[float]) -> float:
    return min(1.0, math.fsum(map(math.exp, logarithms)))


def _solve_drop(needed: Callable[[float], float], most: float) -> float | None:
    """Return the drop from 0 to `most` that equals the drop needed for its own detection; None when there is none."""
    if most <= 0 or needed(most) > most:
        return None
    return _find_root(lambda drop: drop - needed(drop), 0.0, most)


def _find_root(rising: Callable[[float], float], low: float, high: float) -> float:
    """Return where a function that is negative at `low` and positive at `high` crosses zero, by halving."""
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if rising(middle) < 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2
