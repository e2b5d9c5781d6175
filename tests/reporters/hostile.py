"""A run whose every text tries to get out of the report, and evidence of each kind."""

from __future__ import annotations

from specrunner.results import CaseResult, CheckResult, Diagnosis, Failure, Verdict
from specrunner.spec.model import Prompt
from tests.reporters.builders import FACTS, make_case, make_check, make_result

HOSTILE = (
    "</script><img src=x onerror='window.stolen=1'><b>bold</b>\x1b[31m\u202ereversed\x00 {{ 7*7 }} `${7*7}` \ud800"
)


def make_attention() -> CheckResult:
    """Return a causal mask in which one query sees one key too many."""
    expected = ["1000", "1100", "1110", "1111"]
    found = ["1000", "1101", "1110", "1111"]
    numbers = {"expected": expected, "found": found, "mismatches": 1, "first": [1, 3], "noise": 1e-7, "weakest": 1e-3}
    return CheckResult("attention", "attention", False, "query 1 sees key 3", numbers, against="")


def make_routing() -> CheckResult:
    """Return a router that chose another expert for one token, decisively."""
    differing = {"token": 5, "candidate": [1, 9], "reference": [1, 4], "expert_margin": 0.2, "group_margin": None}
    numbers = {"tokens": 8, "agreement": 0.875, "decisive_tokens": 7, "decisive_agreement": 0.857}
    numbers["differing"] = [{**differing, "decisive": True}]
    message = "token 5 chose experts [1, 9], not [1, 4]"
    return CheckResult("layers.1.router.expert_ids", "routing", False, message, numbers, {"decisive": 1.0})


def make_ties() -> CheckResult:
    """Return tokens that differ twice: once by a tie, once not."""
    tie = {"position": 3, "candidate_token": 7, "reference_token": 8, "reference_gap": 0.01, "reference_limit": 0.02}
    ties = [
        {**tie, "candidate_gap": 0.015, "candidate_limit": 0.02, "is_tie": True},
        {**tie, "position": 9, "reference_gap": 0.5, "candidate_gap": 0.4, "candidate_limit": 0.02, "is_tie": False},
    ]
    return CheckResult("tokens", "near_tie", False, "position 9 is no tie", {"ties": ties, "share": 0.5})


def make_window() -> CheckResult:
    """Return tokens that part at position 6."""
    numbers = {"first_mismatch": 6, "window_start": 4, "candidate_window": [4, 5, 60], "reference_window": [4, 5, 6, 7]}
    return CheckResult("tokens", "exact", False, "first mismatch at position 6", numbers)


def make_layers() -> tuple[CheckResult, ...]:
    """Return the error of six tensors, which leaves its limit at layer 2."""
    names = ("embeddings", *(f"layers.{index}.output" for index in range(4)), "logits")
    checks = []
    for index, name in enumerate(names):
        error = 1e-4 * (1 + index) * (30 if index > 2 else 1)
        numbers = {"relative_l2": error, "peer_relative_l2": 1e-4 * (1 + index), "floor_needed": error / 1e-4}
        if index > 2:
            numbers["token_errors"] = {"tokens": 4, "tokens_per_number": 1, "largest": [1e-5, error, "inf", 0.0]}
        message = "the error is 30 times the noise floor" if index > 2 else ""
        check = CheckResult(name, "noise_floor", index <= 2, message, numbers, {"k": 3}, "specs/smoke/glass.yaml:20")
        checks.append(check)
    return tuple(checks)


def make_rich_results() -> list[CaseResult]:
    """Return cases that show every part of a case's page, in a fixed order; the texts of one are hostile."""
    way = [
        {"block_start": 0, "tokens_before": [9, 9], "accepted": [0], "accepted_token_ids": [5]},
        {"block_start": 0, "tokens_before": [5, 9], "accepted": [1], "accepted_token_ids": [6]},
    ]
    other = [{"block_start": 0, "tokens_before": [9, 9], "accepted": [0, 1], "accepted_token_ids": [5, 7]}]
    diagnosis = Diagnosis("layers.2.output", 1, 30.0, ("every later tensor is wrong too: the error is carried on",))
    log = f"loading\n{HOSTILE}\nkilled"
    return [
        make_result(make_case("layers"), Verdict.FAILED, checks=make_layers(), diagnosis=diagnosis),
        make_result(make_case("mask"), Verdict.FAILED, checks=(make_attention(),)),
        make_result(make_case("experts"), Verdict.FAILED, checks=(make_routing(),)),
        make_result(make_case("ties"), Verdict.FAILED, checks=(make_ties(), make_window())),
        make_result(
            make_case("diffusion"),
            candidate={**FACTS, "request": {"trajectory": way}},
            reference={**FACTS, "request": {"trajectory": other}},
        ),
        make_result(
            make_case(f"evil {HOSTILE}", prompt=Prompt(text=HOSTILE), tags=(HOSTILE,), description=HOSTILE),
            Verdict.ERROR,
            checks=(make_check(HOSTILE, passed=False, rule=HOSTILE, message=HOSTILE, **{HOSTILE: HOSTILE}),),
            failure=Failure(HOSTILE, HOSTILE, HOSTILE, log, "candidate"),
            candidate={**FACTS, HOSTILE: {HOSTILE: HOSTILE}},
        ),
        make_result(make_case("passes")),
        make_result(make_case("lacks"), Verdict.SKIPPED),
    ]
