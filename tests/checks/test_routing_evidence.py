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


def test_all_needs_neither_logits_nor_router() -> None:
    bare = side(router=None, logits=LOGITS, expert_bias=None)
    assert judge(bare, bare, all=1.0).passed


def test_other_tensors_have_no_routing() -> None:
    rule = Rule("routing", {"decisive": None, "all": 1.0, "noise": None})
    assert "does not apply" in judge_routing("logits", rule, side(), side(), None, "").message
