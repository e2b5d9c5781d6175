"""The rule `routing` on captures: the reference's margins and the score noise, found in the tensors of its roles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from specrunner.checks.routing import Choice, Router, choose_experts, compare_routing, score_noise
from specrunner.checks.sources import TensorSource
from specrunner.results import CheckResult
from specrunner.spec.model import Rule

NOISE_MARGIN = 1.5
"""The score noise is this many times what the peer shows; without a margin every fourth honest run raised an alarm."""

SUFFIX = ".router.expert_ids"


@dataclass(frozen=True, slots=True)
class Routed:
    """What one side of a case knows of its routers.

    Attributes:
        tensors: sources by name.
        router: the session fact `router` (see `name_maps.describe_router`), or None.
    """

    tensors: Mapping[str, TensorSource]
    router: Mapping[str, Any] | None = None


def judge_routing(
    name: str, rule: Rule, candidate: Routed, reference: Routed, peer: Routed | None, location: str
) -> CheckResult:
    """Judge `routing` on the expert ids of one layer.

    A token is decisive when the margins of the reference's choice, computed in float64 from its router logits, exceed
    the score noise: the rule's `noise`, else `NOISE_MARGIN` times the largest difference of the peer's scores from the
    reference's in this layer.

    Args:
        name: `layers.{i}.router.expert_ids`, present on both sides.
        rule: `routing` with complete parameters.
        candidate: the engine under test.
        reference: what it is held against; a limit on decisive tokens needs its logits and its `router`.
        peer: the reference engine at the candidate's dtype, or None.
        location: where the rule stands.

    Returns:
        The result; what is missing to judge it fails.
    """
    if not name.endswith(SUFFIX):
        message = f"`routing` does not apply to this tensor: only to layers.*{SUFFIX}"
        return CheckResult(name, rule.name, False, message, {}, dict(rule.parameters), location)
    limits = {key: rule.parameters[key] for key in ("decisive", "all")}
    ours, theirs = (_read(side.tensors[name]) for side in (candidate, reference))
    facts: dict[str, Any] = {}
    choice: Choice | None = None
    decisive: torch.Tensor | None = None
    if limits["decisive"] is not None:
        found = _choose(name, rule, reference, peer)
        if isinstance(found, str):
            return CheckResult(name, "evidence", False, found, {}, dict(rule.parameters), location)
        choice, noise = found
        decisive = choice.decisive(noise)
        strange = decisive & (choice.expert_ids != theirs.long().sort(dim=-1).values).any(-1)
        if bool(strange.any()):
            token = int(strange.int().argmax())
            message = f"the reference's experts do not follow from its own router logits (token {token})"
            return CheckResult(name, "evidence", False, message, {}, dict(rule.parameters), location)
        facts = {"score_noise": noise}
    return compare_routing(name, ours, theirs, limits, decisive=decisive, choice=choice, facts=facts, location=location)


def _read(source: TensorSource) -> torch.Tensor:
    return source.rows(0, source.row_count)


def _choose(name: str, rule: Rule, reference: Routed, peer: Routed | None) -> tuple[Choice, float] | str:
    """Return the reference's choice and the score noise, or why they cannot be known."""
    router = _router(name, reference)
    if isinstance(router, str):
        return router
    logits = _read(reference.tensors[_sibling(name, "logits")])
    choice = choose_experts(logits, router)
    if rule.parameters["noise"] is not None:
        return choice, float(rule.parameters["noise"])
    other = peer.tensors.get(_sibling(name, "logits")) if peer is not None else None
    if other is None:
        return "missing in peer: the router logits, which show the score noise"
    return choice, NOISE_MARGIN * float(score_noise(_read(other), logits, router).max())


def _router(name: str, reference: Routed) -> Router | str:
    facts = reference.router
    if facts is None:
        return "the reference engine does not say how this model's router chooses, so no token can be called decisive"
    if _sibling(name, "logits") not in reference.tensors:
        return "missing in reference: the router logits, which tell the decisive tokens"
    bias = reference.tensors.get(_sibling(name, "expert_bias"))
    if facts["bias"] and bias is None:
        return "missing in reference: the router's bias, which tells the decisive tokens"
    return Router(
        experts_per_token=facts["experts_per_token"],
        n_group=facts["n_group"],
        topk_group=facts["topk_group"],
        score=facts["score"],
        bias=None if bias is None else _read(bias).flatten(),
    )


def _sibling(name: str, last: str) -> str:
    return name.removesuffix("expert_ids") + last
