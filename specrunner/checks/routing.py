"""Comparing which experts a router chose, and telling which tokens noise could have decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from specrunner.checks.measurements import encode_number
from specrunner.results import CheckResult

MOST_DIFFERING = 32
"""How many tokens with other experts are recorded."""


@dataclass(frozen=True, slots=True)
class Router:
    """How a group-limited router chooses (DeepSeek-V3, LLaDA2): `s + bias` ranks, groups first, then experts.

    Attributes:
        experts_per_token: k, how many experts a token gets.
        n_group: groups of equal size the experts are split into, in order; 1 is no group limit.
        topk_group: groups kept; a group's score is the sum of its two best biased scores.
        score: `sigmoid` or `softmax` of the logits.
        bias: [experts], added for the choice alone, or None.
    """

    experts_per_token: int
    n_group: int = 1
    topk_group: int = 1
    score: str = "sigmoid"
    bias: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """A router's choice and how sure it was.

    Attributes:
        expert_ids: [tokens, k] int64, ascending within a token.
        expert_margin: [tokens] float64, the k-th biased score minus the next one within the kept groups; inf when the
            kept groups hold no other expert.
        group_margin: [tokens] float64, the last kept group's score minus the next group's; inf when all are kept.
    """

    expert_ids: torch.Tensor
    expert_margin: torch.Tensor
    group_margin: torch.Tensor

    def decisive(self, score_noise: float | torch.Tensor) -> torch.Tensor:
        """Tell for which tokens no noise of the stated size can change the choice.

        When every biased score may be off by `score_noise`, two of them move by twice that against each other, and two
        sums of two by four times. A token is decisive when both margins are larger: its choice is then proof.

        Args:
            score_noise: the largest error of a biased score, for all tokens or [tokens].

        Returns:
            [tokens] bool. A token with NaN scores is not decisive.
        """
        return (self.expert_margin > 2 * score_noise) & (self.group_margin > 4 * score_noise)


def biased_scores(logits: torch.Tensor, router: Router) -> torch.Tensor:
    """Return the scores that rank the experts.

    Args:
        logits: [tokens, experts], before the score function, any float dtype.
        router: how to score; of it, `score` and `bias` are read.

    Returns:
        [tokens, experts] float64, probabilities plus the bias.

    Raises:
        ValueError: the router's score function is unknown, or its bias is not [experts].
    """
    if router.bias is not None and router.bias.shape != logits.shape[-1:]:
        raise ValueError(f"a bias of shape {list(router.bias.shape)} for {logits.shape[-1]} experts")
    logits = logits.double()
    if router.score == "sigmoid":
        scores = torch.sigmoid(logits)
    elif router.score == "softmax":
        scores = torch.softmax(logits, dim=-1)
    else:
        raise ValueError(f"unknown score function {router.score!r}")
    return scores if router.bias is None else scores + router.bias.double()


def choose_experts(logits: torch.Tensor, router: Router) -> Choice:
    """Choose the experts of each token in float64; among equals the lower number wins.

    Args:
        logits: [tokens, experts], before the score function, any float dtype.
        router: how to choose.

    Returns:
        The choice with its margins.

    Raises:
        ValueError: the experts do not split into the groups, the kept groups hold fewer than k experts, or the router
            does not fit the logits (see `biased_scores`).
    """
    tokens, experts = logits.shape
    size, remainder = divmod(experts, router.n_group)
    if remainder or not 1 <= router.topk_group <= router.n_group:
        raise ValueError(f"{experts} experts, {router.n_group} groups of which {router.topk_group} are kept")
    if not 1 <= router.experts_per_token <= size * router.topk_group:
        raise ValueError(f"{router.experts_per_token} experts of {size * router.topk_group} in the kept groups")
    scores = biased_scores(logits, router)
    grouped = scores.view(tokens, router.n_group, size)
    group_scores = grouped.topk(min(2, size), dim=-1).values.sum(-1)
    kept, group_margin = _best(group_scores, router.topk_group)
    allowed = torch.zeros(tokens, router.n_group, dtype=torch.bool).scatter_(1, kept, True)
    limited = grouped.masked_fill(~allowed.unsqueeze(-1), -torch.inf).view(tokens, experts)
    chosen, expert_margin = _best(limited, router.experts_per_token)
    return Choice(chosen.sort(dim=-1).values, expert_margin, group_margin)


def score_noise(logits: torch.Tensor, reference_logits: torch.Tensor, router: Router) -> torch.Tensor:
    """Return how far the biased scores of two runs are apart.

    Args:
        logits: [tokens, experts], before the score function, any float dtype.
        reference_logits: likewise.
        router: how to score.

    Returns:
        [tokens] float64, each token's largest difference; NaN where a score is NaN.

    Raises:
        ValueError: the shapes differ, or the router does not fit them (see `biased_scores`).
    """
    if logits.shape != reference_logits.shape:
        raise ValueError(f"router logits of shapes {list(logits.shape)} and {list(reference_logits.shape)}")
    return (biased_scores(logits, router) - biased_scores(reference_logits, router)).abs().amax(-1)


def _best(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    values, places = scores.sort(dim=-1, descending=True, stable=True)
    margin = torch.full(scores.shape[:1], torch.inf, dtype=torch.float64)
    if count < scores.shape[-1]:
        margin = values[:, count - 1] - values[:, count]
    margin = margin.masked_fill(scores.isnan().any(-1), torch.nan)
    return places[:, :count], margin


def compare_routing(
    name: str,
    candidate_ids: torch.Tensor,
    reference_ids: torch.Tensor,
    limits: Mapping[str, float | None],
    *,
    decisive: torch.Tensor | None = None,
    choice: Choice | None = None,
    facts: Mapping[str, Any] | None = None,
    location: str = "",
) -> CheckResult:
    """Compare the sets of chosen experts token by token, whatever their order.

    Args:
        name: the tensor's name.
        candidate_ids: [tokens, k] integers.
        reference_ids: [tokens, k] integers.
        limits: `decisive` and `all`, the smallest share of (decisive) tokens whose sets must be equal; None or absent
            is no limit, but at least one must be stated.
        decisive: [tokens] bool from `Choice.decisive` of the reference; needed for the limit `decisive`.
        choice: the reference's choice, whose margins are then reported with the tokens that differ.
        facts: further measurements to report.
        location: where the rule stands.

    Returns:
        The result, with the first `MOST_DIFFERING` tokens whose sets differ. No tokens, no decisive token under a
        `decisive` limit, other shapes and other than integer ids fail.
    """
    numbers: dict[str, Any] = {
        "candidate_shape": list(candidate_ids.shape),
        "reference_shape": list(reference_ids.shape),
        **(facts or {}),
    }
    message = _refuse(candidate_ids, reference_ids, limits, decisive)
    if not message:
        ours, theirs = (ids.long().sort(dim=-1).values for ids in (candidate_ids, reference_ids))
        agree = (ours == theirs).all(-1)
        wrong = ~agree
        numbers |= {"tokens": agree.numel(), "agreeing": int(agree.sum()), "agreement": float(agree.double().mean())}
        found = {"all": (numbers["agreement"], wrong)}
        if decisive is not None:
            count = int(decisive.sum())
            share = float(agree[decisive].double().mean()) if count else None
            numbers |= {"decisive_tokens": count, "decisive_agreement": share}
            found["decisive"] = (share, wrong & decisive)
        numbers["differing"] = _describe_differing(wrong, ours, theirs, decisive, choice)
        for limit in ("decisive", "all"):
            message = message or _judge(limit, limits.get(limit), found, ours, theirs)
    return CheckResult(name, "routing", not message, message, numbers, dict(limits), location)


def _describe_differing(
    wrong: torch.Tensor,
    candidate_ids: torch.Tensor,
    reference_ids: torch.Tensor,
    decisive: torch.Tensor | None,
    choice: Choice | None,
) -> list[dict[str, Any]]:
    tokens: list[int] = wrong.nonzero().flatten().tolist()
    return [
        {
            "token": token,
            "candidate": candidate_ids[token].tolist(),
            "reference": reference_ids[token].tolist(),
            "expert_margin": encode_number(float(choice.expert_margin[token])) if choice else None,
            "group_margin": encode_number(float(choice.group_margin[token])) if choice else None,
            "decisive": bool(decisive[token]) if decisive is not None else None,
        }
        for token in tokens[:MOST_DIFFERING]
    ]


def _judge(
    limit: str,
    bound: float | None,
    found: Mapping[str, tuple[float | None, torch.Tensor]],
    candidate_ids: torch.Tensor,
    reference_ids: torch.Tensor,
) -> str:
    if bound is None:
        return ""
    share, wrong = found[limit]
    kind = "decisive token" if limit == "decisive" else "token"
    if share is None:
        return "no token is decisive: compared nothing"
    if share >= bound:
        return ""
    token = int(wrong.int().argmax())
    return (
        f"experts agree on {share:.4g} of the {kind}s, fewer than {bound:.4g}; "
        f"first at token {token}: {candidate_ids[token].tolist()} against {reference_ids[token].tolist()}"
    )


def _refuse(
    candidate_ids: torch.Tensor,
    reference_ids: torch.Tensor,
    limits: Mapping[str, float | None],
    decisive: torch.Tensor | None,
) -> str:
    if candidate_ids.shape != reference_ids.shape:
        return f"shape {list(candidate_ids.shape)} differs from the reference's {list(reference_ids.shape)}"
    if reference_ids.dim() != 2 or not reference_ids.numel():
        return f"compared nothing: expert ids of shape {list(reference_ids.shape)}"
    for side, ids in (("candidate", candidate_ids), ("reference", reference_ids)):
        if ids.dtype.is_floating_point or ids.dtype.is_complex or ids.dtype == torch.bool:
            return f"the {side}'s expert ids are not integers but {str(ids.dtype).removeprefix('torch.')}"
        if bool((ids.sort(dim=-1).values.diff(dim=-1) == 0).any()):
            return f"the {side} chose one expert twice for a token"
    if limits.get("decisive") is None and limits.get("all") is None:
        return "the rule bounds nothing"
    if limits.get("decisive") is not None and decisive is None:
        return "the router's logits are needed to tell which tokens are decisive"
    if decisive is not None and decisive.shape != reference_ids.shape[:1]:
        return f"decisive tokens of shape {list(decisive.shape)} for {reference_ids.shape[0]} tokens"
    return ""
