"""Measurements beside their limits, and the growth of an error."""

from __future__ import annotations

from typing import Any

import pytest

from specrunner.reporters.evidence import count_later_failures, describe_facts, trace_growth
from specrunner.reporters.margins import describe_worst, find_margins
from specrunner.results import CheckResult
from specrunner.spec.model import Rule


def check(rule: str, measured: dict[str, Any], limits: dict[str, Any]) -> CheckResult:
    return CheckResult("logits", rule, False, "", measured, limits)


def layer(index: int, passed: bool = True, name: str = "output") -> CheckResult:
    return CheckResult(f"layers.{index}.{name}", "allclose", passed, "", {"relative_l2": float(index)})


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
            {"max_ulp": 2, "over_one_ulp": 0.0},
            {"max": 4, "over_one": 0.1},
            [
                "max_ulp 2, must be ≤ 4: 50.00% of the limit",
                "over_one_ulp 0, must be ≤ 0.1: nothing of the margin used",
            ],
        ),
        (
            "cosine",
            {"min_cosine": 0.9800001},
            {"min": 0.99},
            ["min_cosine 0.9800001, must be ≥ 0.99: 2 times the limit"],
        ),
        ("sqnr", {"min_sqnr": 38.0}, {"min": 40}, ["min_sqnr 38, must be ≥ 40: 2 below the limit"]),
        ("sqnr", {"min_sqnr": "inf"}, {"min": 40}, ["min_sqnr inf, must be ≥ 40"]),
        ("kl", {"mean_kl": "nan", "p99_kl": 0.1}, {"mean": 0.1}, ["mean_kl nan, must be ≤ 0.1"]),
        ("none", {"x": 1}, {}, []),
    ],
)
def test_margins(rule: str, measured: dict[str, Any], limits: dict[str, Any], shown: list[str]) -> None:
    assert [str(margin) for margin in find_margins(check(rule, measured, limits))] == shown


def test_the_worst_token_of_each_measure() -> None:
    measured = {"max_abs": 0.5, "max_abs_token": 0, "relative_l2": 0.25, "min_cosine": None}
    measured |= {"max_kl": 0.1, "max_kl_token": 3}
    assert describe_worst(measured) == ["max_abs 0.5 at token 0", "relative_l2 0.25", "max_kl 0.1 at token 3"]


def test_every_rule_has_its_margins_and_growth_on_real_measurements() -> None:
    torch = pytest.importorskip("torch")
    from specrunner.checks.sources import MemorySource
    from specrunner.checks.tensors import compare_tensors

    def source(name: str, shift: float, dtype: str) -> MemorySource:
        values = torch.arange(64, dtype=torch.float64).reshape(4, 16).sin() + shift
        return MemorySource(name, values.to(getattr(torch, dtype)))

    rules = [
        Rule("exact"),
        Rule("allclose", {"rtol": 0.0, "atol": 1e-3, "outliers": 0.1}),
        Rule("ulp", {"max": 1, "over_one": 0.5}),
        Rule("cosine", {"min": 0.999}),
        Rule("sqnr", {"min": 40}),
        Rule("kl", {"mean": 1e-6, "p99": 1e-6}),
        Rule("top_k", {"k": 3, "overlap": 0.9}),
        Rule("noise_floor", {"k": 2}),
    ]
    checks = []
    for name in ("embeddings", "logits"):
        reference, peer = source(name, 0.0, "float32"), source(name, 0.0, "bfloat16")
        checks += compare_tensors(name, source(name, 0.25, "bfloat16"), reference, rules, peer=peer)
    assert [len(find_margins(one)) for one in checks[:8]] == [1, 1, 2, 1, 1, 2, 1, 2]
    assert [row.subject for row in trace_growth(checks, 10)] == ["embeddings", "logits"]
    assert all(row.token is not None for row in trace_growth(checks, 10))
    assert len(describe_worst(checks[0].measurements)) == 5


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
