"""What a case asks for, role by role: the whole request is compared, so that nothing is asked besides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from specrunner.plan.build import Planner, merge_patterns, requests_of
from specrunner.plan.model import name_repeat, select_repeat, split_role
from specrunner.requests import Request
from specrunner.spec.model import (
    Attention,
    Baseline,
    Benchmark,
    Case,
    Decode,
    DenoisingState,
    EngineChoice,
    Evaluation,
    GoldenChoice,
    Prompt,
    Rule,
    Tolerance,
)
from tests.plan.test_build import CASE, DIFFUSION, find, plan_of

PROMPT, GREEDY, PASSES = CASE.prompt, Decode(4), ("passes.*.logits",)
PEER = EngineChoice("hf", "bfloat16", "cpu", {"attn_implementation": "eager"})
LOGITS, NEAR = ("logits",), Rule("near_tie", {})
COMPANY = (Prompt(text="you"),)
ROUTED = ("logits", "layers.*.router.logits")


def rules(name: str) -> tuple[Tolerance, ...]:
    return (Tolerance("logits", (Rule("exact"), Rule(name, {})), CASE.location),)


@pytest.mark.parametrize(
    ("changes", "asked"),
    [
        ({}, {"reference": Request(PROMPT, LOGITS), "candidate": Request(PROMPT, LOGITS)}),
        ({"reference": None}, {"candidate": Request(PROMPT, LOGITS)}),
        (
            {"peer": PEER, "decode": GREEDY, "tokens": Rule("exact")},
            {
                "reference": Request(PROMPT, LOGITS, GREEDY),
                "peer": Request(PROMPT, LOGITS),
                "candidate": Request(PROMPT, LOGITS, GREEDY),
            },
        ),
        (
            {"tolerance": rules("routing"), "peer": PEER},
            {
                "reference": Request(PROMPT, ROUTED),
                "peer": Request(PROMPT, ROUTED),
                "candidate": Request(PROMPT, LOGITS),
            },
        ),
        (
            {"tolerance": rules("sqnr")},
            {"reference": Request(PROMPT, LOGITS), "candidate": Request(PROMPT, LOGITS)},
        ),
        (
            {"decode": GREEDY, "tokens": NEAR, "batch": COMPANY},
            {
                "reference": Request(PROMPT, LOGITS, GREEDY, trace=True),
                "forced": Request(PROMPT, (), GREEDY, lead="tokens", companions=COMPANY),
                "candidate": Request(PROMPT, LOGITS, companions=COMPANY),
            },
        ),
        (
            {"decode": GREEDY, "tokens": NEAR, "tensors": ()},
            {
                "reference": Request(PROMPT, (), GREEDY, trace=True),
                "forced": Request(PROMPT, (), GREEDY, lead="tokens"),
            },
        ),
        (
            {"decode": GREEDY, "tokens": NEAR, "golden": GoldenChoice()},
            {
                "reference": Request(PROMPT, LOGITS, GREEDY, trace=True),
                "forced": Request(PROMPT, (), GREEDY, lead="tokens"),
                "candidate": Request(PROMPT, LOGITS, GREEDY),
            },
        ),
        (
            {"decode": GREEDY, "tokens": NEAR, "reference": None},
            {"candidate": Request(PROMPT, LOGITS, GREEDY)},
        ),
        (
            {"decode": DIFFUSION, "tokens": NEAR, "tensors": PASSES},
            {
                "reference": Request(PROMPT, PASSES, DIFFUSION),
                "forced": Request(PROMPT, (), DIFFUSION, lead="passes"),
                "candidate": Request(PROMPT, PASSES, DIFFUSION),
            },
        ),
        (
            {"decode": DIFFUSION, "tokens": NEAR, "peer": PEER},
            {
                "reference": Request(PROMPT, ("logits", *PASSES), DIFFUSION),
                "peer": Request(PROMPT, LOGITS),
                "forced": Request(PROMPT, (), DIFFUSION, lead="passes"),
                "candidate": Request(PROMPT, LOGITS),
            },
        ),
        (
            {"decode": DIFFUSION, "tokens": Rule("exact"), "tensors": PASSES, "peer": PEER},
            {
                "reference": Request(PROMPT, PASSES, DIFFUSION),
                "peer": Request(PROMPT, PASSES, DIFFUSION),
                "candidate": Request(PROMPT, PASSES, DIFFUSION),
            },
        ),
        (
            {"decode": DIFFUSION, "trajectory": Rule("exact"), "tensors": ()},
            {"reference": Request(PROMPT, PASSES, DIFFUSION), "candidate": Request(PROMPT, PASSES, DIFFUSION)},
        ),
        (
            {"decode": DIFFUSION, "trajectory": Rule("sampler"), "tensors": (), "reference": None},
            {"candidate": Request(PROMPT, PASSES, DIFFUSION)},
        ),
        (
            {"attention": Attention("causal"), "tensors": ()},
            {"probe": Request(PROMPT, probe=True)},
        ),
        (
            {"attention": Attention("causal"), "tensors": (), "decode": GREEDY},
            {"probe": Request(PROMPT, probe=True)},
        ),
        (
            {"attention": Attention("causal")},
            {
                "reference": Request(PROMPT, LOGITS),
                "candidate": Request(PROMPT, LOGITS),
                "probe": Request(PROMPT, probe=True),
            },
        ),
        (
            {"decode": DIFFUSION, "at": DenoisingState(1, 2), "peer": PEER, "tolerance": rules("routing")},
            {
                "reference": Request(PROMPT, ROUTED, DIFFUSION, at=DenoisingState(1, 2)),
                "peer": Request(PROMPT, ROUTED, lead="state"),
                "candidate": Request(PROMPT, LOGITS, lead="state"),
            },
        ),
        (
            {"decode": DIFFUSION, "at": DenoisingState(), "reference": None, "tolerance": rules("routing")},
            {"candidate": Request(PROMPT, LOGITS, DIFFUSION, at=DenoisingState())},
        ),
        (
            {"benchmark": Benchmark(Evaluation(("mmlu",)), "paired"), "tensors": (), "decode": GREEDY},
            {
                "candidate": Request(PROMPT, (), GREEDY, evaluation=Evaluation(("mmlu",))),
                "reference": Request(PROMPT, (), GREEDY, evaluation=Evaluation(("mmlu",))),
            },
        ),
        (
            {"benchmark": Benchmark(Evaluation(("mmlu",)), "recorded", baseline=Baseline(0.5, 9)), "reference": None},
            {"candidate": Request(PROMPT, (), None, evaluation=Evaluation(("mmlu",)))},
        ),
    ],
)
def test_what_a_case_asks_for(changes: dict[str, Any], asked: dict[str, Request]) -> None:
    assert requests_of(replace(CASE, **changes)) == asked


def requests_by_role(planner: Planner) -> dict[str, tuple[str, Request]]:
    """Return, by role of the first case, the dtype of the session and the request."""
    plan = planner.build()
    sessions = {planned.session.key: planned for planned in plan.sessions}
    found = {}
    for role, evidence in plan.cases[0].evidence.items():
        planned = sessions[evidence.session]
        (request,) = (request for request in planned.requests if request.key == evidence.request)
        found[role] = planned.session.dtype, request
    return found


def plan_once(case: Case, repeats: int = 0, **keywords: Any) -> dict[str, tuple[str, Request]]:
    planner = Planner(find=find, golden_repeats=repeats)
    planner.add(case, **keywords)
    return requests_by_role(planner)


def test_each_role_asks_its_own_session() -> None:
    reference = replace(CASE.candidate, dtype="float64", engine="oracle")
    peer = replace(PEER, dtype="float32")
    case = replace(CASE, reference=reference, peer=peer, decode=GREEDY, tokens=NEAR, attention=Attention("causal"))
    assert {role: dtype for role, (dtype, _) in plan_once(case).items()} == {
        "reference": "float64",
        "peer": "float32",
        "forced": "bfloat16",
        "candidate": "bfloat16",
        "probe": "bfloat16",
    }


def test_a_reference_that_no_check_asks_is_not_loaded() -> None:
    absent = EngineChoice("vllm", "float32", "cpu")
    plan = plan_of(replace(CASE, tensors=(), attention=Attention("causal"), reference=absent)).build()
    assert plan.cases[0].skip is None
    assert [planned.session.engine for planned in plan.sessions] == ["hf"]


def test_whoever_is_absent_skips_the_case_and_is_named() -> None:
    absent = EngineChoice("vllm", "float32", "cpu")
    for role, changes in {"reference": {"reference": absent}, "peer": {"peer": absent}}.items():
        plan = plan_of(replace(CASE, **changes)).build()
        (planned,) = plan.cases
        assert planned.skip is not None and planned.evidence == {}, role
        assert plan.sessions == (), "nothing is loaded for a case that will not run"


def test_a_fault_is_planted_in_the_candidate_alone() -> None:
    case = replace(CASE, peer=PEER, decode=GREEDY, tokens=NEAR, attention=Attention("causal"), golden=GoldenChoice())
    faults = {role: request.fault for role, (_, request) in plan_once(case, 2, fault="bug").items()}
    assert faults == {
        "reference": None,
        "peer": None,
        "forced": "bug",
        "candidate": "bug",
        "probe": "bug",
        "candidate#2": "bug",
    }


def test_shared_patterns_are_captured_by_those_who_are_compared() -> None:
    shared = ("embeddings", "logits")
    case = replace(CASE, peer=PEER, decode=GREEDY, tokens=NEAR, tolerance=rules("routing"))
    tensors = {role: request.tensors for role, (_, request) in plan_once(case, tensors=shared).items()}
    both = (*shared, "layers.*.router.logits")
    assert tensors == {"reference": both, "peer": both, "forced": (), "candidate": shared}


def test_patterns_are_merged_without_repeats() -> None:
    assert merge_patterns(("a", "b"), ("b", "c", "a")) == ("a", "b", "c")


@pytest.mark.parametrize("repeats", [0, 1])
def test_one_capture_is_no_repeat(repeats: int) -> None:
    assert set(plan_once(replace(CASE, golden=GoldenChoice()), repeats)) == {"reference", "candidate"}


def test_repeats_of_goldens_are_for_goldens_alone() -> None:
    assert set(plan_once(CASE, 3)) == {"reference", "candidate"}


def test_a_golden_is_made_of_repeats_of_the_free_run() -> None:
    case = replace(CASE, decode=GREEDY, tokens=NEAR, golden=GoldenChoice(), batch=COMPANY)
    found = plan_once(case, 3)
    assert sorted(role for role in found if "#" in role) == ["candidate#2", "candidate#3"]
    for number in (2, 3):
        expected = Request(PROMPT, LOGITS, GREEDY, companions=COMPANY, repeat=number - 1)
        assert found[f"candidate#{number}"] == ("bfloat16", expected)


def test_a_repeat_asks_the_candidate_anew_and_shares_what_it_is_held_against() -> None:
    case = replace(CASE, peer=PEER, decode=GREEDY, tokens=NEAR, attention=Attention("causal"), batch=COMPANY, repeat=3)
    planner = plan_of(case)
    found = requests_by_role(planner)
    once = requests_by_role(plan_of(replace(case, repeat=1)))
    again = {f"{role}#{repeat}" for role in ("candidate", "forced", "probe") for repeat in (2, 3)}
    assert set(found) == set(once) | again
    assert {role: found[role] for role in once} == once
    for role in again:
        plain, repeat = split_role(role)
        session, request = once[plain]
        assert found[role] == (session, replace(request, repeat=repeat - 1)), role
    assert len({request.key for _, request in found.values()}) == len(found), "nothing is served from one answer"


def test_a_golden_takes_the_repeats_of_its_case_and_asks_for_what_they_lack() -> None:
    case = replace(CASE, decode=GREEDY, tokens=NEAR, golden=GoldenChoice(), repeat=2)
    led = {"reference", "candidate", "forced", "candidate#2", "forced#2"}
    assert set(plan_once(case, 2)) == led
    assert set(plan_once(case, 4)) == led | {"candidate#3", "candidate#4"}


def test_cases_that_differ_in_their_repeats_share_answers() -> None:
    plan = plan_of(CASE, replace(CASE, name="thrice", repeat=3)).build()
    assert sorted(len(session.requests) for session in plan.sessions) == [1, 3]


def test_one_repeat_is_judged_by_its_own_and_what_all_share() -> None:
    roles = {name: name for name in ("reference", "candidate", "forced", "candidate#2", "forced#2", "candidate#13")}
    assert select_repeat(roles, 1) == {"reference": "reference", "candidate": "candidate", "forced": "forced"}
    assert select_repeat(roles, 2) == {"reference": "reference", "candidate": "candidate#2", "forced": "forced#2"}
    assert select_repeat(roles, 13) == {"reference": "reference", "candidate": "candidate#13"}
    assert [name_repeat(*split_role(role)) for role in roles] == list(roles)


@pytest.mark.parametrize("reference", [CASE.reference, None])
def test_repeats_at_a_state_follow_as_the_candidate_does(reference: EngineChoice | None) -> None:
    case = replace(CASE, decode=DIFFUSION, at=DenoisingState(1, 2), golden=GoldenChoice(), reference=reference)
    found = plan_once(case, 2)
    _, candidate = found["candidate"]
    assert (candidate.follow is not None) == (reference is not None)
    assert found["candidate#2"] == ("bfloat16", replace(candidate, repeat=1))


def test_what_is_led_follows_the_references_capture() -> None:
    planner = plan_of(replace(CASE, decode=GREEDY, tokens=NEAR))
    plan = planner.build()
    found = requests_by_role(planner)
    assert found["forced"][1].follow == plan.cases[0].evidence["reference"]
    assert found["candidate"][1].follow is None
