"""The rule `routing` on captures: noise from the peer, margins from the reference, and what is missing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from specrunner.checks.routing import Router, choose_experts
from specrunner.checks.routing_evidence import Routed, judge_routing
from specrunner.checks.sources import MemorySource
from specrunner.results import CheckResult
from specrunner.spec.model import Rule

NAME = "layers.1.router.expert_ids"
ROUTER = {"score": "sigmoid", "bias": True, "experts_per_token": 2, "n_group": 2, "topk_group": 1}
LOGITS = torch.tensor([[3.0, 2.0, 0.0, -1.0], [0.0, 1.0, 4.0, 3.0], [1.0, 0.999, 0.98, 0.98]])
BIAS = torch.zeros(4)


def side(logits: torch.Tensor = LOGITS, router: Any = ROUTER, **tensors: Any) -> Routed:
    chosen = choose_experts(logits, Router(2, 2, 1, bias=BIAS)).expert_ids
    held = {"expert_ids": chosen, "logits": logits, "expert_bias": BIAS} | tensors
    sources = {name: value for name, value in held.items() if value is not None}
    return Routed({f"layers.1.router.{name}": MemorySource(name, value) for name, value in sources.items()}, router)


def judge(candidate: Routed, reference: Routed, peer: Routed | None = None, **limits: Any) -> CheckResult:
    rule = Rule("routing", {"decisive": None, "all": None, "noise": None} | limits)
    return judge_routing(NAME, rule, candidate, reference, peer, "x:1")


def test_only_decisive_tokens_count() -> None:
    other = side(expert_ids=torch.tensor([[0, 1], [2, 3], [2, 3]]))
    near = side(LOGITS + torch.tensor([0.0, 0.0, 0.02, 0.02]))
    result = judge(other, side(), near, decisive=1.0)
    assert result.passed
    assert (result.measurements["decisive_tokens"], result.measurements["agreeing"]) == (2, 2)
    (differing,) = result.measurements["differing"]
    assert (differing["token"], differing["candidate"], differing["reference"]) == (2, [2, 3], [0, 1])
    assert differing["decisive"] is False
    margin = float(LOGITS[2].sigmoid() @ torch.tensor([1.0, 1, -1, -1]))
    assert differing["group_margin"] == pytest.approx(margin, rel=1e-5)


def test_a_decisive_token_with_other_experts_fails() -> None:
    wrong = side(expert_ids=torch.tensor([[0, 2], [2, 3], [0, 1]]))
    result = judge(wrong, side(), decisive=1.0, noise=1e-4)
    assert not result.passed
    assert "first at token 0: [0, 2] against [0, 1]" in result.message


def test_the_noise_is_measured_on_the_peer_with_a_margin() -> None:
    result = judge(side(), side(), side(LOGITS + 0.1), decisive=1.0)
    expected = 1.5 * float(((LOGITS + 0.1).double().sigmoid() - LOGITS.double().sigmoid()).abs().max())
    assert result.measurements["score_noise"] == pytest.approx(expected)


@pytest.mark.parametrize(("reference", "peer", "message"), [
    (side(router=None), None, "the reference engine does not say"),
    (side(expert_bias=None), None, "missing in reference: the router's bias"),
    (side(expert_ids=torch.tensor([[0, 2], [2, 3], [0, 1]])), None, "do not follow from its own router logits"),
])  # fmt: skip
def test_what_is_missing_is_no_evidence(reference: Routed, peer: Routed | None, message: str) -> None:
    result = judge(side(), reference, peer, decisive=1.0, noise=1e-4)
    assert (result.passed, result.rule) == (False, "evidence")
    assert message in result.message


def test_without_a_peer_the_noise_is_unknown() -> None:
    assert judge(side(), side(), None, decisive=1.0).message.startswith("missing in peer")


def scattered(noise: torch.Tensor, tokens: int = 1000) -> tuple[Routed, Routed, Routed, torch.Tensor]:
    """Candidate with random experts, reference, peer that is off by `noise` [tokens], and the right experts."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(tokens, 64, generator=generator)
    ids = choose_experts(logits, Router(4, score="softmax")).expert_ids
    wrong = torch.rand(tokens, 64, generator=generator).topk(4).indices
    off = logits + noise[:, None] * torch.randn(tokens, 64, generator=generator)
    router = {"score": "softmax", "bias": False, "experts_per_token": 4, "n_group": 1, "topk_group": 1}
    sides = [{"expert_ids": wrong}, {"expert_ids": ids, "logits": logits}, {"logits": off}]
    held = [{f"layers.1.router.{key}": MemorySource(key, value) for key, value in one.items()} for one in sides]
    candidate, reference, peer = (Routed(tensors, router) for tensors in held)
    return candidate, reference, peer, ids


def test_one_outlier_of_the_peer_hides_no_other_token() -> None:
    noise = torch.full((1000,), 0.002)
    noise[500] = 0.6
    candidate, reference, peer, ids = scattered(noise)
    result = judge(candidate, reference, peer, decisive=1.0)
    assert (result.passed, result.rule) == (False, "routing")
    assert result.measurements["decisive_tokens"] > 900
    right = judge(Routed({NAME: MemorySource("ids", ids)}), reference, peer, decisive=1.0)
    assert right.passed
    assert right.measurements["score_noise"] > 0.01


def test_a_token_on_which_the_peer_was_lucky_is_given_the_usual_noise() -> None:
    usual = float((LOGITS.double().sigmoid() - (LOGITS + 0.02).double().sigmoid()).abs()[:2].amax(-1).min())
    peer = LOGITS + torch.tensor([[0.02], [0.02], [0.0]])
    other = side(expert_ids=torch.tensor([[0, 1], [2, 3], [2, 3]]))
    result = judge(other, side(), side(peer), decisive=1.0)
    assert 4 * 1.5 * usual > float(choose_experts(LOGITS, Router(2, 2, 1)).group_margin[2])
    assert (result.passed, result.measurements["decisive_tokens"]) == (True, 2)


@pytest.mark.parametrize(("sure", "passed"), [(1, False), (2, True)])
def test_a_bound_on_few_decisive_tokens_alone_is_no_evidence(sure: int, passed: bool) -> None:
    logits = torch.tensor([[3.0, 2.0, 0.0, -1.0]] * sure + [[1.0, 0.999, 0.98, 0.98]] * (8 - sure))
    held = side(logits, expert_ids=torch.tensor([[0, 1]] * 8))
    other = side(logits, expert_ids=torch.tensor([[0, 1]] * sure + [[2, 3]] * (8 - sure)))
    result = judge(other, held, decisive=1.0, noise=0.01)
    assert result.passed is passed
    if not passed:
        assert (result.rule, result.measurements["score_noise"]) == ("evidence", 0.01)
        assert result.message.startswith("1 of 8 tokens are decisive, fewer than 0.25 of them")
    bounded = judge(held, held, decisive=1.0, all=0.5, noise=0.01)
    assert (bounded.passed, bounded.measurements["decisive_tokens"]) == (True, sure)


@pytest.mark.parametrize(("reference", "peer", "message"), [
    (side(expert_ids=torch.tensor([[0], [2], [0]])), side(), "choose experts of shape [3, 2], and its expert ids are"),
    (side(expert_ids=torch.tensor([[0, 1]] * 2)), side(), "expert ids are of shape [2, 2]"),
    (side(router={**ROUTER, "n_group": 3}), side(), "router logits do not fit its router: 4 experts, 3 groups"),
    (side(expert_bias=torch.zeros(3)), side(), "do not fit its router: a bias of shape [3] for 4 experts"),
    (side(), side(LOGITS[:2], expert_ids=None), "the peer's router logits do not show the score noise: router logits"),
    (side(torch.zeros(0, 4)), side(), "compared nothing: expert ids of shape [0, 2]"),
])  # fmt: skip
def test_what_does_not_fit_is_no_evidence(reference: Routed, peer: Routed, message: str) -> None:
    result = judge(side(), reference, peer, decisive=1.0)
    assert (result.passed, result.rule) == (False, "evidence")
    assert message in result.message


def test_all_needs_neither_logits_nor_router() -> None:
    bare = side(router=None, logits=LOGITS, expert_bias=None)
    assert judge(bare, bare, all=1.0).passed


def test_other_tensors_have_no_routing() -> None:
    rule = Rule("routing", {"decisive": None, "all": 1.0, "noise": None})
    assert "does not apply" in judge_routing("logits", rule, side(), side(), None, "").message
