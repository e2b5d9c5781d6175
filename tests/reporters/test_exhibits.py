"""What a report shows beyond numbers: attention, experts, near ties, findings and trends."""

from __future__ import annotations

from typing import Any

from specrunner.reporters.exhibits import describe_diagnosis, describe_exhibits, describe_trends
from specrunner.reporters.margins import find_margins
from specrunner.reporters.style import PLAIN
from specrunner.results import CheckResult, Diagnosis


def check(rule: str, numbers: dict[str, Any], limits: dict[str, Any] | None = None) -> CheckResult:
    return CheckResult("x", rule, False, "wrong", numbers, limits or {})


def test_attention_is_drawn_as_two_matrices() -> None:
    numbers = {"expected": ["110", "110", "111"], "found": ["100", "111", "111"], "mismatches": 2, "first": [0, 1]}
    assert describe_exhibits(check("attention", numbers), PLAIN) == [
        "queries 0-2 down, keys 0-2 across",
        "expected  found",
        "##.  #-.",
        "##.  ##+",
        "###  ###",
    ]
    (margin,) = find_margins(check("attention", numbers))
    assert (margin.measured, margin.limit) == (2, 0)


def test_a_large_matrix_is_cut_around_the_first_difference() -> None:
    expected = ["1" * 100] * 100
    found = [*expected[:70], "1" * 80 + "0" + "1" * 19, *expected[71:]]
    lines = describe_exhibits(check("attention", {"expected": expected, "found": found, "first": [70, 80]}), PLAIN)
    assert lines[0] == "queries 50-89 down, keys 60-99 across"
    assert len(lines) == 42
    assert lines[22] == "#" * 40 + "  " + "#" * 20 + "-" + "#" * 19


def test_other_experts_and_ties_are_told() -> None:
    row = {"token": 3, "candidate": [1, 2], "reference": [1, 4], "expert_margin": 0.25, "group_margin": None}
    (line,) = describe_exhibits(check("routing", {"differing": [{**row, "decisive": True}]}), PLAIN)
    assert line == "token 3: experts [1, 2] against [1, 4]  expert margin 0.25, decisive"
    gaps = {"reference_gap": 0.1, "reference_limit": 0.5, "candidate_gap": 0.2, "candidate_limit": 0.5}
    tie = {"position": 7, "candidate_token": 5, "reference_token": 6, "is_tie": True, **gaps}
    wrong = {"position": 9, "accepted_by": "candidate", "is_tie": False, **gaps}
    lines = describe_exhibits(check("near_tie", {"ties": [tie, wrong]}), PLAIN)
    assert lines == ["position 9: filled by the candidate alone, reference gap 0.1 of 0.5, candidate gap 0.2 of 0.5"]
    (only,) = describe_exhibits(check("near_tie", {"ties": [tie]}), PLAIN)
    assert only.endswith("(a tie)")


def test_routing_and_ties_have_margins() -> None:
    routing = check("routing", {"decisive_agreement": 0.9, "agreement": 0.8}, {"decisive": 1.0, "all": None})
    assert [(margin.measured, margin.limit) for margin in find_margins(routing)] == [(0.9, 1.0)]
    ties = check("near_tie", {"mismatch_count": 1, "share": 0.05}, {"kappa": 4.0, "max_share": 0.1})
    assert [(margin.measured, margin.limit) for margin in find_margins(ties)] == [(1, 0), (0.05, 0.1)]


def test_findings_and_trends() -> None:
    assert describe_diagnosis(None, PLAIN) == []
    assert describe_diagnosis(Diagnosis(findings=("one\x1b[31m", "two")), PLAIN)[0] == "what the errors say"
    assert "\x1b" not in "".join(describe_diagnosis(Diagnosis(findings=("one\x1b[31m",)), PLAIN))
    trend = CheckResult("tokens", "free_run", False, "the free runs part at position 3", {}, {}, gates=False)
    assert describe_trends([trend, check("exact", {})], PLAIN) == ["trend  tokens: the free runs part at position 3"]


def test_a_trend_against_a_golden_says_so() -> None:
    trend = CheckResult("tokens", "exact", False, "they part", {}, gates=False, against="golden")
    assert describe_trends([trend], PLAIN) == ["trend  tokens against the golden: they part"]


def test_the_steps_around_a_wrong_decision_are_told() -> None:
    steps = [
        {"step": number, "accepted": [number, number + 1], "tokens": [5, 6], "confidence": [0.99, 0.5]}
        for number in range(9)
    ]
    lines = describe_exhibits(check("sampler", {"first": {"step": 4}, "trajectory": steps, "violations": 1}), PLAIN)
    assert len(lines) == 4
    assert lines[1] == "step 4 accepts 4: 5 (0.99), 5: 6 (0.5)"
    many = {"step": 0, "accepted": list(range(16)), "tokens": [1] * 16, "confidence": None}
    (line,) = describe_exhibits(check("sampler", {"first": None, "trajectory": [many]}), PLAIN)
    assert line.endswith("5: 1 (-) and 10 more")
    (margin,) = find_margins(check("sampler", {"violations": 1}))
    assert (margin.measured, margin.limit) == (1, 0)
