"""Block-diffusion decoding judged pass by pass: at each state of the reference, would the candidate do the same?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from specrunner.checks.measurements import encode_number
from specrunner.checks.near_ties import find_tie
from specrunner.checks.sampling import SamplingRule, Sides, decide
from specrunner.checks.units import unit_in_last_place
from specrunner.results import CheckResult

MOST_TIES = 64
"""How many ties and mismatches are recorded."""


@dataclass(frozen=True, slots=True)
class ForcedPass:
    """One denoising pass from the reference's state.

    Attributes:
        start: absolute position of the block.
        masked: [block_length] bool, positions still masked before the pass.
        accepted: [block_length] bool, positions that the reference filled.
        tokens: [block_length] int64, what it filled them with (0 elsewhere).
        candidate: [block_length, vocabulary], the candidate's logits at this state.
        reference: likewise the reference's.
        step: number of the pass within its block, from 0.
    """

    start: int
    masked: torch.Tensor
    accepted: torch.Tensor
    tokens: torch.Tensor
    candidate: torch.Tensor
    reference: torch.Tensor
    step: int = 0

    @classmethod
    def read(
        cls, entry: Mapping[str, Any], candidate: torch.Tensor, reference: torch.Tensor, step: int = 0
    ) -> ForcedPass:
        """Read an entry of a trajectory (`PassLog.facts`) with both sides' logits, [block_length, vocabulary]."""
        before = torch.tensor(entry["tokens_before"])
        accepted = torch.zeros(len(before), dtype=torch.bool)
        tokens = torch.zeros(len(before), dtype=torch.int64)
        for place, token in zip(entry["accepted"], entry["accepted_token_ids"], strict=True):
            accepted[place - entry["block_start"]] = True
            tokens[place - entry["block_start"]] = token
        masked = (before == before[accepted][0]) if bool(accepted.any()) else torch.zeros_like(accepted)
        return cls(int(entry["block_start"]), masked, accepted, tokens, candidate, reference, step)


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
    both sides, as the logit noise can move it: a shift of kappa ulp between two logits moves a probability p by at most
    2 kappa ulp p (1 - p).

    Args:
        passes: in order.
        rule: the sampler's.
        dtype: what the candidate computes in.
        kappa: units in the last place that are noise.
        max_share: the largest share of ties among all decisions.
        location: where the rule stands.
    """
    ties: list[dict[str, Any]] = []
    decisions = 0
    message = "" if passes else "compared nothing: the reference made no denoising pass"
    for number, one in enumerate(passes):
        if not bool(one.masked.any()) or not bool(one.accepted.any()):
            continue
        ours, theirs = (decide(logits, one.masked, rule, one.step) for logits in (one.candidate, one.reference))
        for place in (ours.accepted | one.accepted).nonzero().flatten().tolist():
            decisions += 1
            entry: dict[str, Any] | None = None
            if bool(ours.accepted[place]) and bool(one.accepted[place]):
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
        limit = 2 * kappa * unit_in_last_place(float(logits[place].abs().max()), dtype) * p * (1 - p)
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
