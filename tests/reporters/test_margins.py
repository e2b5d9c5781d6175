"""Measurements beside their limits, and the growth of an error."""

from __future__ import annotations

from typing import Any

import pytest

from specrunner.reporters.evidence import count_later_failures, describe_facts, trace_growth
from specrunner.reporters.margins import describe_first_difference, describe_worst, find_margins
from specrunner.results import CheckResult


def check(rule: str, measured: dict[str, Any], limits: dict[str, Any]) -> CheckResult:
    return CheckResult("logits", rule, False, "", measured, limits)


def layer(index: int, passed: bool = True, name: str = "output") -> CheckResult:
    return CheckResult(f"layers.{index}.{name}", "allclose", passed, "", {"rel_l2": float(index)})


@pytest.mark.parametrize(
    ("rule", "measured", "limits", "shown"),
    [
        ("exact", {"differing": 3}, {}, ["differing 3, must be ≤ 0"]),
        (
            "allclose",
            {"outside_fraction": 0.02},
            {"rtol": 0.0, "atol": 0.0, "outliers": 0.01},
            ["outside_fraction 0.02, must be ≤ 0.01: 2 times the limit"],
        ),
        (
            "ulp",
            {"ulp_max": 2.0, "ulp_over_one": 0.0},
            {"max": 4, "over_one": 0.1},
            [
                "ulp_max 2, must be ≤ 4: 50.00% of the limit",
                "ulp_over_one 0, must be ≤ 0.1: nothing of the margin used",
            ],
        ),
        ("cosine", {"cosine_min": 0.98}, {"min": 0.99}, ["cosine_min 0.98, must be ≥ 0.99: 2 times the limit"]),
        ("sqnr", {"sqnr_min": 38.0}, {"min": 40}, ["sqnr_min 38, must be ≥ 40: 2 below the limit"]),
        ("sqnr", {"sqnr_min": "inf"}, {"min": 40}, ["sqnr_min inf, must be ≥ 40"]),
        ("kl", {"kl_mean": "nan", "kl_p99": 0.1}, {"mean": 0.1}, ["kl_mean nan, must be ≤ 0.1"]),
        ("none", {"x": 1}, {}, []),
    ],
)
def test_margins(rule: str, measured: dict[str, Any], limits: dict[str, Any], shown: list[str]) -> None:
    assert [str(margin) for margin in find_margins(check(rule, measured, limits))] == shown


def test_the_worst_token_of_each_measure() -> None:
    measured = {"max_abs": 0.5, "max_abs_token": 0, "rel_l2": 0.25, "ulp_max": None, "kl_max": 0.1, "kl_token": 3}
    assert describe_worst(measured) == ["max_abs 0.5 at token 0", "rel_l2 0.25", "kl_max 0.1 at token 3"]


def test_the_first_difference() -> None:
    first = {"index": 66, "token": 1, "candidate": 0.5, "reference": "nan"}
    assert describe_first_difference({"first_difference": first}) == "element 66, token 1: 0.5 against nan"
    assert describe_first_difference({}) == ""


def test_later_failures_are_counted_after_the_first() -> None:
    checks = [layer(0), layer(1, False), layer(2), layer(3, False)]
    assert count_later_failures(checks) == (1, 2)
    assert count_later_failures(checks[:1]) == (0, 0)


def test_growth_follows_the_residual_stream_and_the_first_that_went_wrong() -> None:
    checks = [layer(0), layer(1, name="mlp.output"), layer(2, False, "router.logits"), layer(2, False)]
    assert [row.subject for row in trace_growth(checks, 10)] == [
        "layers.0.output",
        "layers.2.router.logits",
        "layers.2.output",
    ]
    assert trace_growth(checks[:1], 10) == []


@pytest.mark.parametrize("first", [0, 1, 40, 79])
def test_long_growth_keeps_both_ends_and_what_surrounds_the_first_failure(first: int) -> None:
    rows = trace_growth([layer(index, index < first) for index in range(80)], 10)
    kept = [int(row.value) for row in rows]
    assert len(rows) == 10
    assert {0, first, 79, max(first - 1, 0), min(first + 1, 79)} <= set(kept)
    assert kept == sorted(kept)
    assert len(rows) + sum(row.skipped for row in rows) == 80


def test_facts_are_told_in_few_words() -> None:
    facts = {
        "model_class": "transformers.models.llama.modeling_llama.LlamaForCausalLM",
        "versions": {"python": "3.11", "torch": "2.13.0", "kernels": "absent"},
        "device": "cpu",
        "patches": ["no fused softmax"],
    }
    assert describe_facts(facts) == ["LlamaForCausalLM", "torch 2.13.0", "cpu", "patched: no fused softmax"]
    assert describe_facts({}) == []
