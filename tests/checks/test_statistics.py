"""Statistics of benchmark scores, each held against scipy, a published table or a simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from specrunner.checks.statistics import (
    adjust_by_holm,
    bound_paired_drop,
    bound_recorded_drop,
    bound_score,
    smallest_drop_below_floor,
    smallest_drop_from_recorded,
    smallest_paired_drop,
    weigh_against_floor,
    weigh_against_recorded,
    weigh_pairs,
)

ALPHA = 0.05
RUNS = 500
SCORES = st.integers(1, 2000).flatmap(lambda samples: st.tuples(st.integers(0, samples), st.just(samples)))


@given(SCORES, st.sampled_from([0.01, 0.05, 0.2]))
def test_wilson_bounds_are_those_of_scipy(score: tuple[int, int], alpha: float) -> None:
    found = bound_score(*score, alpha)
    low = stats.binomtest(*score, alternative="two-sided").proportion_ci(1 - 2 * alpha, method="wilson")
    assert found == pytest.approx((low.low, low.high), abs=1e-12)


@given(SCORES, st.floats(0.0, 1.0))
def test_a_floor_is_the_binomial_test(score: tuple[int, int], floor: float) -> None:
    expected = stats.binom.cdf(*score, floor)
    assert weigh_against_floor(*score, floor) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@given(SCORES, SCORES)
def test_a_recorded_score_is_the_hypergeometric_test(here: tuple[int, int], there: tuple[int, int]) -> None:
    total, right = here[1] + there[1], here[0] + there[0]
    expected = stats.hypergeom.cdf(here[0], total, right, here[1])
    assert weigh_against_recorded(*here, *there) == pytest.approx(expected, rel=1e-6, abs=1e-10)


@given(st.integers(0, 400), st.integers(0, 400))
def test_pairs_are_the_sign_test(regressed: int, improved: int) -> None:
    expected = stats.binomtest(regressed, regressed + improved, 0.5, "greater").pvalue if regressed + improved else 1.0
    assert weigh_pairs(regressed, improved) == pytest.approx(expected, rel=1e-9)


def test_a_published_interval_of_the_difference_of_independent_shares() -> None:
    # Newcombe 1998, example (a), method 10: 56/70 against 48/80, 95 %.
    low, high = bound_recorded_drop(48, 80, 56, 70, 0.025)
    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339)


def likelihood_score(regressed: int, improved: int, samples: int, drop: float) -> float:
    """Return Tango's statistic with the nuisance share found by maximising the likelihood on a grid."""
    same = samples - regressed - improved
    lowest, highest = max(0.0, -drop), (1 - drop) / 2
    grid = np.linspace(lowest, highest, 2_000_001)[1:-1]
    with np.errstate(divide="ignore"):
        likelihood = same * np.log(1 - 2 * grid - drop)
        if regressed:
            likelihood = likelihood + regressed * np.log(grid + drop)
        if improved:
            likelihood = likelihood + improved * np.log(grid)
    won = grid[np.argmax(likelihood)]
    return float((regressed - improved - samples * drop) / math.sqrt(samples * (2 * won + drop * (1 - drop))))


@pytest.mark.parametrize(
    ("regressed", "improved", "samples"), [(1, 0, 44), (9, 3, 100), (5, 17, 60), (2, 2, 500), (40, 10, 51)]
)
def test_paired_bounds_are_where_the_score_statistic_is_the_quantile(
    regressed: int, improved: int, samples: int
) -> None:
    low, high = bound_paired_drop(regressed, improved, samples, ALPHA)
    z = stats.norm.isf(ALPHA)
    assert likelihood_score(regressed, improved, samples, low) == pytest.approx(z, rel=1e-3)
    assert likelihood_score(regressed, improved, samples, high) == pytest.approx(-z, rel=1e-3)


def test_equal_runs_are_bounded_by_the_rule_of_three() -> None:
    low, high = bound_paired_drop(0, 0, 500, ALPHA)
    z2 = stats.norm.isf(ALPHA) ** 2
    assert high == pytest.approx(z2 / (500 + z2), rel=1e-6)
    assert low == pytest.approx(-high, rel=1e-6)


def test_holm_by_hand() -> None:
    found = adjust_by_holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"a": 0.06, "b": 0.03, "c": 0.06, "d": 0.02})
    assert list(found) == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("samples", "fixed", "independent", "three", "eight"),
    [
        (100, 12.3, 17.5, None, 7.0),
        (500, 5.5, 7.8, 1.9, 3.1),
        (1319, 3.4, 4.8, 1.2, 1.9),
        (14042, 1.0, 1.5, 0.4, 0.6),
    ],
)
def test_smallest_drops_are_those_of_the_table_in_the_guide(
    samples: int, fixed: float, independent: float, three: float | None, eight: float
) -> None:
    drops = [
        smallest_drop_below_floor(0.6, samples, ALPHA),
        smallest_drop_from_recorded(0.6, samples, samples, ALPHA),
        smallest_paired_drop(0.03, samples, ALPHA),
        smallest_paired_drop(0.08, samples, ALPHA),
    ]
    shown = [None if drop is None else round(100 * drop, 1) for drop in drops]
    assert shown == [fixed, independent, three, eight]


def test_power_of_the_paired_test_is_as_stated() -> None:
    random = np.random.default_rng(7)
    samples, discordant = 2000, 0.06
    drop = smallest_paired_drop(discordant, samples, ALPHA)
    assert drop is not None
    shares = [(discordant + drop) / 2, (discordant - drop) / 2, 1 - discordant]
    detected = np.mean(
        [weigh_pairs(int(lost), int(won)) <= ALPHA for lost, won, _ in random.multinomial(samples, shares, 4000)]
    )
    assert detected == pytest.approx(0.8, abs=0.04)


@pytest.mark.parametrize("samples", [30, 100, 500])
@pytest.mark.parametrize("score", [0.25, 0.6, 0.95])
def test_without_a_change_no_test_alarms_more_often_than_stated(samples: int, score: float) -> None:
    random = np.random.default_rng([samples, round(100 * score)])
    here, there = random.binomial(samples, score, RUNS), random.binomial(2 * samples, score, RUNS)
    pairs = random.multinomial(samples, [0.04, 0.04, 0.92], RUNS)
    alarms = [
        np.mean([weigh_against_floor(int(n), samples, score) <= ALPHA for n in here]),
        np.mean(
            [
                weigh_against_recorded(int(n), samples, int(m), 2 * samples) <= ALPHA
                for n, m in zip(here, there, strict=True)
            ]
        ),
        np.mean([weigh_pairs(int(lost), int(won)) <= ALPHA for lost, won, _ in pairs]),
    ]
    # The tests are exact; what a simulation of so many runs adds is a standard error of 1 %.
    assert max(alarms) <= ALPHA + 2.6 * math.sqrt(ALPHA * (1 - ALPHA) / RUNS)
    assert np.mean(alarms) <= ALPHA


@pytest.mark.parametrize("drop", [0.0, 0.03])
def test_bounds_of_a_drop_hold_as_often_as_stated(drop: float) -> None:
    random = np.random.default_rng(11)
    pairs = random.multinomial(300, [0.04 + drop, 0.04, 0.92 - drop], 2000)
    upper = [bound_paired_drop(int(lost), int(won), 300, ALPHA)[1] for lost, won, _ in pairs]
    assert np.mean(np.array(upper) < drop) == pytest.approx(ALPHA, abs=0.02)
    here, there = random.binomial(300, 0.6 - drop, 2000), random.binomial(300, 0.6, 2000)
    upper = [bound_recorded_drop(int(n), 300, int(m), 300, ALPHA)[1] for n, m in zip(here, there, strict=True)]
    assert np.mean(np.array(upper) < drop) == pytest.approx(ALPHA, abs=0.02)


def test_where_nothing_can_drop_nothing_is_detectable() -> None:
    assert smallest_paired_drop(0.0, 500, ALPHA) is None
    assert smallest_drop_below_floor(0.0, 500, ALPHA) is None
    assert smallest_drop_from_recorded(0.0, 500, 500, ALPHA) is None
    assert smallest_paired_drop(0.001, 500, ALPHA) is None, "even if all flips were losses"


@given(st.integers(1, 60), st.floats(0.0, 1.0), st.floats(1e-6, 0.5))
def test_where_no_score_is_significant_nothing_is_detectable(samples: int, share: float, alpha: float) -> None:
    if stats.binom.cdf(0, samples, share) > alpha * (1 + 1e-9):
        assert smallest_drop_below_floor(share, samples, alpha) is None
    right = round(share * 60)
    if stats.hypergeom.cdf(0, 60 + samples, right, samples) > alpha * (1 + 1e-9):
        assert smallest_drop_from_recorded(right / 60, samples, 60, alpha) is None
    lost = round(share * samples)
    if stats.binomtest(lost, lost, 0.5, "greater").pvalue > alpha if lost else True:
        assert smallest_paired_drop(lost / samples, samples, alpha) is None


@pytest.mark.parametrize(("tasks", "fewest"), [(1, [11, 5, 2, 4, 5]), (3, [15, 6, 3, None, 6])])
def test_the_fewest_questions_are_those_of_the_table_in_the_guide(tasks: int, fewest: list[int | None]) -> None:
    worst = [
        *(lambda n, floor=floor: weigh_against_floor(0, n, floor) for floor in (0.25, 0.5, 0.85)),
        lambda n: weigh_against_recorded(0, n, round(0.612 * 14042), 14042),
        lambda n: weigh_pairs(n, 0),
    ]
    for weigh, shown in zip(worst, fewest, strict=True):
        if shown is not None:
            assert tasks * weigh(shown) <= ALPHA < tasks * weigh(shown - 1)


def test_one_question_detects_no_drop() -> None:
    assert smallest_drop_below_floor(0.85, 1, ALPHA) is None
    assert smallest_drop_below_floor(0.96, 1, ALPHA) == pytest.approx(0.694, abs=1e-3)
    assert smallest_drop_from_recorded(0.612, 2, 14042, ALPHA) is None
    assert smallest_paired_drop(1.0, 4, ALPHA) is None


@pytest.mark.parametrize(("right", "low", "high"), [(0, 0.0, None), (40, None, 1.0)])
def test_bounds_of_none_and_of_all_are_closed(right: int, low: float | None, high: float | None) -> None:
    found = bound_score(right, 40, ALPHA)
    assert (found[0] if low is not None else found[1]) == (low if low is not None else high)
    assert weigh_against_floor(0, 10, 0.0) == weigh_against_floor(10, 10, 1.0) == 1.0
    assert weigh_against_floor(9, 10, 1.0) == 0.0


@pytest.mark.parametrize(("regressed", "improved", "bounds"), [(30, 0, (None, 1.0)), (0, 30, (-1.0, None))])
def test_runs_that_part_on_every_question(regressed: int, improved: int, bounds: tuple[float | None, ...]) -> None:
    found = bound_paired_drop(regressed, improved, 30, ALPHA)
    assert [one for one, bound in zip(found, bounds, strict=True) if bound is not None] == [
        bound for bound in bounds if bound is not None
    ]
    assert -1.0 <= found[0] <= (regressed - improved) / 30 <= found[1] <= 1.0


def test_holm_never_exceeds_one_nor_falls_with_the_rank() -> None:
    assert adjust_by_holm({"a": 0.6, "b": 0.5}) == {"a": 1.0, "b": 1.0}
    assert adjust_by_holm({"a": 0.02, "b": 0.019}) == pytest.approx({"a": 0.038, "b": 0.038})
    assert adjust_by_holm({}) == {}
