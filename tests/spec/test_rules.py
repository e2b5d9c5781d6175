"""Rules, from their short forms to complete parameters."""

from __future__ import annotations

from typing import Any

import pytest

from specrunner.spec.model import Rule
from specrunner.spec.rules import complete_rule, read_rules, rule_names


@pytest.mark.parametrize(
    ("name", "written", "parameters"),
    [
        ("exact", True, {}),
        ("allclose", {"rtol": 1, "atol": 0}, {"rtol": 1.0, "atol": 0.0, "outliers": 0.0}),
        ("allclose", {"rtol": 0.1, "atol": 0, "outliers": 0.5}, {"rtol": 0.1, "atol": 0.0, "outliers": 0.5}),
        ("ulp", 2, {"max": 2, "over_one": 1.0}),
        ("ulp", 2.0, {"max": 2, "over_one": 1.0}),
        ("ulp", {"max": 4, "over_one": 0}, {"max": 4, "over_one": 0.0}),
        ("cosine", 1, {"min": 1.0}),
        ("cosine", {"min": 0.9}, {"min": 0.9}),
        ("sqnr", 40, {"min": 40.0}),
        ("kl", {"mean": 1e-3}, {"mean": 1e-3, "p99": None}),
        ("kl", {"p99": 1}, {"mean": None, "p99": 1.0}),
        ("top_k", {"k": 1e1, "overlap": 1}, {"k": 10, "overlap": 1.0}),
    ],
)
def test_parameters_are_complete(name: str, written: Any, parameters: dict[str, Any]) -> None:
    rule = complete_rule(name, written)
    assert rule == Rule(name, parameters)
    assert [type(value) for value in rule.parameters.values()] == [type(value) for value in parameters.values()]


def test_a_mapping_gives_several_rules_in_order() -> None:
    assert [rule.name for rule in read_rules({"sqnr": 40, "kl": {"mean": 1}, "exact": True})] == ["sqnr", "kl", "exact"]
    assert read_rules("exact") == (Rule("exact"),)


def test_every_rule_of_the_language_can_be_judged() -> None:
    from specrunner.checks.rules import _JUDGES

    assert set(rule_names()) - {"routing"} <= set(_JUDGES)  # routing is judged on expert ids, by judge_routing
