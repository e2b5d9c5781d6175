"""Block-diffusion decoding judged pass by pass: at each state of the reference, would the candidate do the same?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from specrunner.checks.measurements import encode_number
from specrunner.checks.near_ties import find_logit_noise, find_tie
from specrunner.checks.sampling import SamplingRule, Sides, decide
from specrunner.results import CheckResult

MOST_TIES = 64
"""How many ties and mismatches are recorded."""


@dataclass(frozen=True, slots=True)
class ForcedPass:
    """One denoising pass from the reference's state.

    Attributes:
        start: absolute position of the block.
        masked: [block_length] bool, positions still masked before the pass.
        accepted: [block_length] bool, positions that the reference filled. To put the mask there is not to fill it: the
            log of one sampler has such positions, that of another leaves them out.
        tokens: [block_length] int64, what it filled them with, the mask elsewhere.
        candidate: [block_length, vocabulary], the candidate's logits at this state.
        reference: likewise the reference's.
        mask_id: the mask token.
        step: number of the pass within its block, from 0.
    """

    start: int
    masked: torch.Tensor
    accepted: torch.Tensor
    tokens: torch.Tensor
    candidate: torch.Tensor
    reference: torch.Tensor
    mask_id: int
    step: int = 0

    @classmethod
    def read(
        cls, entry: Mapping[str, Any], candidate: torch.Tensor, reference: torch.Tensor, mask_id: int, step: int = 0
    ) -> ForcedPass:
        """Read an entry of a trajectory.

        Args:
            entry: of the reference (`PassLog.facts`): `block_start`, `tokens_before`, `accepted` (absolute positions),
                `accepted_token_ids`.
            candidate: [block_length, vocabulary], any float dtype, its logits at this state.
            reference: likewise.
            mask_id: the mask token.
            step: number of the pass within its block, from 0.

        Raises:
            ValueError: the logits are of different shapes, or not one row a position; or a token is outside the
                vocabulary.
        """
        before = torch.tensor(entry["tokens_before"])
        tokens = torch.full((len(before),), mask_id, dtype=torch.int64)
        for place, token in zip(entry["accepted"], entry["accepted_token_ids"], strict=True):
            tokens[place - entry["block_start"]] = token
        if candidate.shape != reference.shape or candidate.shape[:-1] != before.shape:
            shapes = f"{list(candidate.shape)} and {list(reference.shape)}"
            raise ValueError(f"logits of shapes {shapes} for a block of {len(before)} tokens")
        accepted = tokens != mask_id
        outside = tokens[accepted & ~((tokens >= 0) & (tokens < reference.shape[-1]))].tolist()
        if outside:
            raise ValueError(f"token {outside[0]} is outside the vocabulary of {reference.shape[-1]}")
        return cls(int(entry["block_start"]), before == mask_id, accepted, tokens, candidate, reference, mask_id, step)


def compare_forced_passes(
    passes: Sequence[ForcedPass],
    *,
    rule: SamplingRule,
    dtype: torch.dtype,
    kappa: float,
    max_share: float,
    location: str = "",
) -> CheckResult:
    """Judge every decision of the candidate at the reference's states.

    A position that both fill must get the same token, or the two tokens are a near tie on both sides (`find_tie`). A
    position that one side alone fills is a near tie when its confidence is as close to what separates the two, on
    both sides, as the logit noise can move it. The softmax gives dp/dz = p (1 - p) for a token's own logit z, and the
    others' together move p by the same at most; so noise n on each (`find_logit_noise`) moves p by 2 n p (1 - p), to
    the first order.

    Args:
        passes: in order; those in which the reference filled nothing are judged, too.
        rule: the sampler's.
        dtype: what the candidate computes in.
        kappa: units in the last place that are noise.
        max_share: the largest share of ties among all decisions.
        location: where the rule stands.

    Returns:
        The result for `tokens`, with the first `MOST_TIES` ties and mismatches. No pass, no filled position, and logits
        of a masked position that give no probabilities (NaN, infinity) fail.

    Raises:
        ValueError: logits or tokens of a pass do not fit together; those of `ForcedPass.read` do.
    """
    ties: list[dict[str, Any]] = []
    decisions = 0
    message = "" if passes else "compared nothing: the reference made no denoising pass"
    for number, one in enumerate(passes):
        if not bool(one.masked.any()):
            continue
        ours, theirs = (decide(logits, one.masked, rule, one.step) for logits in (one.candidate, one.reference))
        filled = ours.accepted & (ours.tokens != one.mask_id)
        sure = one.accepted | (theirs.accepted & (theirs.tokens == one.mask_id))
        for place in (filled | one.accepted).nonzero().flatten().tolist():
            decisions += 1
            entry: dict[str, Any] | None = None
            if bool(ours.accepted[place]) and bool(sure[place]):
                ours_token, their_token = int(ours.tokens[place]), int(one.tokens[place])
                if ours_token != their_token or bool(ours.confidence[place].isnan()):
                    tie = find_tie(
                        ours_token, their_token, one.candidate[place], one.reference[place], dtype=dtype, kappa=kappa
                    )
                    entry = tie.to_json()
            else:
                entry = _judge_acceptance(one, place, ours, theirs, dtype, kappa)
            if entry is not None:
                entry = {"position": one.start + place, "pass": number, **entry}
                ties.append(entry)
                message = message or ("" if entry["is_tie"] else _describe(entry))
        for side, decided in (("candidate", ours), ("reference", theirs)):
            for place in (one.masked & decided.confidence.isnan()).nonzero().flatten().tolist():
                where = f"at position {one.start + place} in pass {number}"
                message = message or f"the {side}'s logits {where} give no probabilities: they hold NaN or infinity"
    count = sum(entry["is_tie"] for entry in ties)
    if not message and not decisions:
        message = "compared nothing: no position was filled"
    share = count / decisions if decisions else 0.0
    if not message and not share <= max_share:
        message = f"{count} of {decisions} decisions are near ties, more than {max_share:.3g} of them"
    numbers = {
        "passes": len(passes),
        "decisions": decisions,
        "tie_count": count,
        "mismatch_count": len(ties) - count,
        "share": share,
        "ties": ties[:MOST_TIES],
    }
    limits = {"kappa": kappa, "max_share": max_share}
    return CheckResult("tokens", "near_tie", not message, message, numbers, limits, location)


def _judge_acceptance(
    one: ForcedPass, place: int, ours: Sides, theirs: Sides, dtype: torch.dtype, kappa: float
) -> dict[str, Any]:
    gaps: dict[str, Any] = {}
    within = True
    for side, decided, logits in (("candidate", ours, one.candidate), ("reference", theirs, one.reference)):
        p = float(decided.confidence[place])
        gap = abs(p - decided.boundary)
        limit = 2 * find_logit_noise(logits[place, decided.tokens[place]], dtype, kappa) * p * (1 - p)
        numbers = {f"{side}_confidence": p, f"{side}_gap": gap, f"{side}_limit": limit}
        gaps |= {name: encode_number(value) for name, value in numbers.items()}
        within = within and gap <= limit
    who = "candidate" if bool(ours.accepted[place]) else "reference"
    return {"accepted_by": who, **gaps, "is_tie": within}


def _describe(entry: Mapping[str, Any]) -> str:
    where = f"at position {entry['position']} in pass {entry['pass']}"
    said = {
        name: value if isinstance(value, str) else f"{value:.4g}"
        for name, value in entry.items()
        if name.endswith(("_gap", "_limit"))
    }
    gaps = (
        f"gaps {said['reference_gap']} (limit {said['reference_limit']}) and "
        f"{said['candidate_gap']} (limit {said['candidate_limit']})"
    )
    if "accepted_by" in entry:
        return f"the {entry['accepted_by']} alone fills a token {where}, which is no near tie: {gaps}"
    tokens = f"token {entry['candidate_token']} against {entry['reference_token']}"
    return f"mismatch {where} is no near tie: {tokens}, {gaps}"
