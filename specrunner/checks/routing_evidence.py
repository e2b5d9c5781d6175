"""The rule `routing` on captures: the reference's margins and the score noise, found in the tensors of its roles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from specrunner.checks.measurements import encode_number
from specrunner.checks.routing import Choice, Router, choose_experts, compare_routing, score_noise
from specrunner.checks.sources import TensorSource
from specrunner.results import CheckResult
from specrunner.spec.model import Rule

NOISE_MARGIN = 1.5
"""The score noise is this many times what the peer shows; without a margin every fourth honest run raised an alarm."""

LEAST_DECISIVE = 0.25
"""The smallest share of decisive tokens on which a bound on them says something, where `all` bounds nothing. On
tiny-llada2-unscaled (16, 41 and 100 tokens, every router) it was 1.0 in float32 and at least 0.38 in bfloat16."""

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
    reference's at this token, or at the median token of the layer where that is more. One token that went astray in the
    peer thus hides no other, and one on which the peer was lucky is not held to its luck.

    Args:
        name: `layers.{i}.router.expert_ids`, present on both sides.
        rule: `routing` with complete parameters.
        candidate: the engine under test.
        reference: what it is held against; a limit on decisive tokens needs its logits and its `router`.
        peer: the reference engine at the candidate's dtype, or None.
        location: where the rule stands.

    Returns:
        The result; what is missing to judge it fails, and so does a bound on decisive tokens alone where fewer than
        `LEAST_DECISIVE` of the tokens are. `score_noise` in the measurements is the largest of any token.

    Raises:
        KeyError: a side lacks the tensor `name`.
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
        found = _choose(name, rule, theirs, reference, peer)
        message = found if isinstance(found, str) else ""
        if not isinstance(found, str):
            choice, noise = found
            decisive = choice.decisive(noise)
            facts = {"score_noise": encode_number(float(noise.max()))}
            message = _object(choice, decisive, theirs, alone=limits["all"] is None)
        if message:
            return CheckResult(name, "evidence", False, message, facts, dict(rule.parameters), location)
    return compare_routing(name, ours, theirs, limits, decisive=decisive, choice=choice, facts=facts, location=location)


def _read(source: TensorSource) -> torch.Tensor:
    return source.rows(0, source.row_count)


def _object(choice: Choice, decisive: torch.Tensor, reference_ids: torch.Tensor, *, alone: bool) -> str:
    """Say why the decisive tokens, [tokens] bool, prove nothing, or "".

    Args:
        choice: the reference's, made again from its logits.
        decisive: the tokens of which noise cannot decide.
        reference_ids: [tokens, k] integers, what the reference chose.
        alone: whether nothing bounds the other tokens.
    """
    strange = decisive & (choice.expert_ids != reference_ids.long().sort(dim=-1).values).any(-1)
    if bool(strange.any()):
        return f"the reference's experts do not follow from its own router logits (token {int(strange.int().argmax())})"
    count, tokens = int(decisive.sum()), decisive.numel()
    if alone and count < LEAST_DECISIVE * tokens:
        return (
            f"{count} of {tokens} tokens are decisive, fewer than {LEAST_DECISIVE:.3g} of them; "
            "the others may have any experts, since the rule bounds `all` by nothing"
        )
    return ""


def _choose(
    name: str, rule: Rule, reference_ids: torch.Tensor, reference: Routed, peer: Routed | None
) -> tuple[Choice, torch.Tensor] | str:
    """Return the reference's choice and the score noise, [tokens] float64, or why they cannot be known."""
    router = _router(name, reference)
    if isinstance(router, str):
        return router
    logits = _read(reference.tensors[_sibling(name, "logits")])
    try:
        choice = choose_experts(logits, router)
    except ValueError as error:
        return f"the reference's router logits do not fit its router: {error}"
    if choice.expert_ids.shape != reference_ids.shape:
        made, given = list(choice.expert_ids.shape), list(reference_ids.shape)
        return f"the reference's router logits choose experts of shape {made}, and its expert ids are of shape {given}"
    if not reference_ids.numel():
        return f"compared nothing: expert ids of shape {list(reference_ids.shape)}"
    if rule.parameters["noise"] is not None:
        return choice, torch.full(logits.shape[:1], float(rule.parameters["noise"]), dtype=torch.float64)
    other = peer.tensors.get(_sibling(name, "logits")) if peer is not None else None
    if other is None:
        return "missing in peer: the router logits, which show the score noise"
    try:
        noise = NOISE_MARGIN * score_noise(_read(other), logits, router)
    except ValueError as error:
        return f"the peer's router logits do not show the score noise: {error}"
    return choice, noise.clamp(min=noise.median())


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
