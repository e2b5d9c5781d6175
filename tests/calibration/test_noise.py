"""Noise, and the limits that follow from it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from specrunner.calibration.noise import (
    Limit,
    Noise,
    NoiseLog,
    bound_rate,
    merge_suggestions,
    quantile,
    round_outwards,
    scale_limit,
)
from specrunner.results import CaseResult, CheckResult, Verdict
from specrunner.spec.model import Case, EngineChoice, Location, Model, Prompt, Rule, Tolerance

PLACE = Location("a.yaml", 3, 5)


def noise(shares: list[float], stated: float = 0.1, best: float = 0.0, parameter: str = "outliers") -> Noise:
    limit = Limit(PLACE, "logits", "allclose", parameter, stated, best)
    return Noise(limit, shares, [str(number % 5) for number in range(len(shares))])


@pytest.mark.parametrize(
    ("stated", "best", "share", "suggested"),
    [
        (0.1, 0.0, 0.5, 0.075),  # 1.5 x 0.05
        (0.98, 1.0, 2.0, 0.94),  # 1 - 1.5 x 0.04
        (100.0, math.inf, 0.1, 116.0),  # 100 dB + 20 dB - 3.5 dB, rounded down
        (100.0, math.inf, 10.0, 76.0),
    ],
)
def test_the_suggestion_is_half_again_the_noise(stated: float, best: float, share: float, suggested: float) -> None:
    assert noise([share] * 100, stated, best).suggested == pytest.approx(suggested)


@given(st.floats(1e-12, 1e6), st.sampled_from([0.0, 1.0]))
def test_rounding_never_allows_less_nor_a_tenth_more(value: float, best: float) -> None:
    error, rounded = abs(value - best), abs(round_outwards(value, best) - best)
    assert rounded >= error * (1 - 1e-6) - 1e-11
    assert rounded <= error * 1.1 * (1 + 1e-6) + 1e-11


@given(st.integers(1, 400), st.data())
def test_the_bound_is_clopper_and_pearsons(runs: int, data: st.DataObject) -> None:
    alarms = data.draw(st.integers(0, runs - 1))
    assert bound_rate(alarms, runs) == pytest.approx(beta.ppf(0.95, alarms + 1, runs - alarms), rel=1e-6)


def test_no_alarm_in_n_runs_bounds_the_rate_by_three_over_n() -> None:
    assert bound_rate(0, 200) == pytest.approx(3 / 200, rel=0.01)


def test_the_percentile_leaves_out_one_in_a_hundred() -> None:
    assert quantile([*range(1, 100), 1000]) == 99
    assert quantile([1, 1000]) == 1000


def test_each_prompt_is_judged_by_a_fit_to_the_others() -> None:
    shares = [0.1, 0.1, 0.1, 0.1, 9.0] * 4
    alarms, bound = noise(shares).expect_alarms()
    assert alarms == 4
    assert bound > 4 / 20
    assert noise(shares).alarms == 4
    assert noise([0.1] * 20).expect_alarms()[0] == 0


def test_what_no_number_can_say_is_not_suggested() -> None:
    assert noise([0.0] * 9).suggested is None
    assert noise([math.inf] * 9).suggested is None
    assert noise([0.5] * 9, parameter="").suggested is None
    assert noise([7.0] * 9, 0.9, 1.0).suggested is None, "a cosine below 0"
    assert noise([7.0] * 9, 20.0, math.inf).suggested is None, "decibels that zeros have"


def test_of_two_measurements_under_one_limit_the_generous_one_is_written() -> None:
    both = [noise([0.1] * 9), noise([0.5] * 9)]
    assert merge_suggestions(both) == {(PLACE, "logits", "allclose", "outliers"): 0.075}
    decibels = [noise([0.1] * 9, 100.0, math.inf), noise([0.2] * 9, 100.0, math.inf)]
    assert list(merge_suggestions(decibels).values()) == [110.0]


def test_scaling_by_one_changes_nothing() -> None:
    for best in (0.0, 1.0, math.inf):
        assert scale_limit(noise([1.0], 0.5, best).limit, 1.0) == pytest.approx(0.5)


def make_case(*entries: Tolerance) -> Case:
    engine = EngineChoice("hf", "float32")
    return Case("specs/x", "one", (), PLACE, engine, engine, Model(recipe="tiny"), Prompt(text="a"), tolerance=entries)


def measured(subject: str, rule: str, passed: bool, limits: dict[str, float], **numbers: Any) -> CheckResult:
    return CheckResult(subject, rule, passed, "" if passed else "x", numbers, limits, "a.yaml:3")


def test_the_noise_of_a_run_is_its_largest_share_over_the_tensors_of_an_entry() -> None:
    deep = Tolerance("layers.**", (Rule("cosine", {"min": 0.9}), Rule("exact")), PLACE)
    case = make_case(deep, Tolerance("*", (Rule("kl", {"mean": 0.2}),), Location("a.yaml", 9, 5)))
    log = NoiseLog()
    for prompt, cosines in (("p", (0.99, 0.95)), ("q", (0.8, 0.98))):
        checks = [
            measured(f"layers.{layer}.output", "cosine", cosine >= 0.9, {"min": 0.9}, min_cosine=cosine)
            for layer, cosine in enumerate(cosines)
        ]
        checks.append(measured("layers.0.output", "exact", prompt == "p", {}, differing=int(prompt != "p")))
        checks.append(measured("logits", "cosine", True, {"min": 0.9}, min_cosine=0.91))  # no entry selects it
        elsewhere = dataclasses.replace(checks[0], location="b.yaml:3")
        log.add(case, CaseResult(case, Verdict.PASSED, (*checks, elsewhere)), prompt)
    cosine, exact = log.noises()
    assert cosine.limit == Limit(PLACE, "layers.**", "cosine", "min", 0.9, 1.0)
    assert (cosine.shares, cosine.groups) == ([pytest.approx(0.5), pytest.approx(2.0)], ["p", "q"])
    assert (cosine.largest, cosine.high, cosine.alarms) == (pytest.approx(2.0), pytest.approx(2.0), 1)
    assert (exact.limit.parameter, exact.limit.stated) == ("", 0.0)
    assert exact.shares == [0.0, math.inf], "a rule that allows nothing is kept or broken"
    assert exact.suggested is None


def test_entries_of_one_line_are_told_apart_by_their_column() -> None:
    entries = [
        Tolerance(name, (Rule("cosine", {"min": 0.9}),), Location("a.yaml", 3, column))
        for name, column in (("logits", 5), ("embeddings", 40))
    ]
    case, log = make_case(*entries), NoiseLog()
    checks = [
        measured(name, "cosine", True, {"min": 0.9}, min_cosine=value)
        for name, value in (("logits", 0.95), ("embeddings", 0.99))
    ]
    log.add(case, CaseResult(case, Verdict.PASSED, tuple(checks)), "p")
    assert [(one.limit.pattern, one.largest) for one in log.noises()] == [
        ("logits", pytest.approx(0.5)),
        ("embeddings", pytest.approx(0.1)),
    ]


def test_no_error_is_rounded_to_none() -> None:
    assert round_outwards(1.0, 1.0) == 1.0
    assert round_outwards(0.0, 0.0) == 0.0
    assert round_outwards(0.0701, 0.0) == 0.071
    assert round_outwards(0.07, 0.0) == 0.07
