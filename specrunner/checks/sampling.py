"""The rule of low-confidence decoding, on its own: what a step must accept, and what it may within the noise.

Nothing here is shared with an engine or with the decoding loops: a sampler is held against this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from specrunner.checks.units import unit_in_last_place
from specrunner.spec.model import Decode

NEAR_BEST = 1e-5
"""How far below the highest confidence the fallback `near_best` puts the threshold."""


@dataclass(frozen=True, slots=True)
class SamplingRule:
    """How a step accepts positions; the fields are those of `Decode`.

    Attributes:
        threshold: a probability.
        accept: `gt` or `ge`.
        fallback: `schedule`, `best` or `near_best`.
        steps: steps a block gets, or None for one a token.
        excluded: the mask token's id where it is never predicted, or None.
    """

    threshold: float
    accept: str = "gt"
    fallback: str = "schedule"
    steps: int | None = None
    excluded: int | None = None

    @classmethod
    def of(cls, decode: Decode, mask_id: int | None) -> SamplingRule:
        """Return the rule that a spec states.

        Args:
            decode: what stands under `decode`.
            mask_id: the mask token's id, which `exclude_mask_id` takes out; None where it is not known.
        """
        excluded = mask_id if decode.exclude_mask_id else None
        return cls(float(decode.threshold or 0.0), decode.accept, decode.fallback, decode.steps, excluded)

    def quota(self, step: int, length: int) -> int:
        """Return how many positions a step accepts at least.

        Args:
            step: number of the step within its block, from 0.
            length: tokens in the block, those that are not masked among them.
        """
        if self.fallback != "schedule" or self.steps is None:
            return 1
        return length // self.steps + (step < length % self.steps)

    def read(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Read the logits of a block.

        Args:
            logits: [block_length, vocabulary], any float dtype.

        Returns:
            The logits, float64 [block_length, vocabulary], -inf at the excluded token; by position the likeliest
            token, int64 [block_length], and its probability, float64 [block_length].
        """
        wide = logits.double()
        if self.excluded is not None:
            wide = wide.clone()
            wide[:, self.excluded] = -torch.inf
        confidence, tokens = torch.softmax(wide, dim=-1).max(-1)
        return wide, tokens, confidence


@dataclass(frozen=True, slots=True)
class Sides:
    """What one side makes of a step.

    Attributes:
        tokens: the likeliest token of each position, int64 [block_length].
        confidence: its probability, float64 [block_length].
        accepted: which positions are accepted, bool [block_length].
        boundary: the probability that separates them from the others: the threshold, which `near_best` may lower, or
            the least of those that the schedule takes.
    """

    tokens: torch.Tensor
    confidence: torch.Tensor
    accepted: torch.Tensor
    boundary: float


def decide(logits: torch.Tensor, masked: torch.Tensor, rule: SamplingRule, step: int = 0) -> Sides:
    """Apply the rule to the letter.

    Args:
        logits: [block_length, vocabulary], any float dtype.
        masked: [block_length] bool, at least one true.
        rule: the rule.
        step: number of the step within its block, from 0.

    Returns:
        The step that the rule takes: as many positions are accepted as its quota asks for at least, all of them masked.
    """
    _, tokens, confidence = rule.read(logits)
    boundary = rule.threshold
    if rule.fallback == "near_best":
        boundary = min(boundary, float(confidence[masked].max()) - NEAR_BEST)
    accepted = masked & (confidence >= boundary if rule.accept == "ge" else confidence > boundary)
    quota = min(rule.quota(step, len(masked)), int(masked.sum()))
    if int(accepted.sum()) < quota:
        best = confidence.masked_fill(~masked, -1.0).sort(descending=True, stable=True).indices[:quota]
        accepted = torch.zeros_like(masked).index_fill(0, best, True)
        boundary = float(confidence[best[-1]])
    return Sides(tokens, confidence, accepted, boundary)


@dataclass(frozen=True, slots=True)
class Objection:
    """Why a step cannot have been made under the rule.

    Attributes:
        offset: the position within the block.
        reason: in words, without the position.
        numbers: what it was judged by, JSON values.
    """

    offset: int
    reason: str
    numbers: Mapping[str, Any]


def object_to(
    logits: torch.Tensor,
    before: torch.Tensor,
    accepted: Mapping[int, int],
    rule: SamplingRule,
    *,
    mask_id: int,
    step: int,
    kappa: float,
) -> Objection | None:
    """Look for a decision that the rule cannot have made from these logits.

    A token must be the likeliest one. The positions must be those above the threshold, or the fallback's; a confidence
    counts on either side of what it is compared with when it is within kappa units in the last place of the logits'
    dtype. A position whose likeliest token is the mask may or may not be among `accepted`: it stays masked anyhow.

    Args:
        logits: [block_length, vocabulary], what the sampler read.
        before: int64 [block_length], the block before the step.
        accepted: by offset, the tokens that the step put there.
        rule: the rule.
        mask_id: the mask token.
        step: number of the step within its block, from 0.
        kappa: units that are noise.

    Returns:
        The first objection, or None.
    """
    wide, tokens, confidence = rule.read(logits)
    masked = before == mask_id
    for offset in (masked & confidence.isnan()).nonzero().flatten().tolist():
        return Objection(offset, "has no confidence: its logits hold NaN or infinity", {})
    for offset, token in accepted.items():
        if not bool(masked[offset]):
            return Objection(offset, f"token {token} is put where {int(before[offset])} was accepted already", {})
        gap = float(wide[offset].max() - wide[offset, token])
        if not gap <= 0.0:
            reason = f"token {token} is accepted and {int(tokens[offset])} is likelier, by a logit of {gap:.4g}"
            return Objection(offset, reason, {"gap": gap})
    dtype = logits.dtype if logits.dtype.is_floating_point else torch.float32
    noise = torch.tensor([kappa * unit_in_last_place(float(p), dtype) for p in confidence], dtype=torch.float64)
    silent = masked & (tokens == mask_id)
    chosen = torch.zeros_like(masked)
    chosen[list(accepted)] = True
    judged = _Judged(confidence, noise, masked, chosen, silent)
    if rule.fallback == "near_best":
        top = int(confidence.masked_fill(~masked, -1.0).argmax())
        lowered = float(confidence[top]) - NEAR_BEST
        slack = float(noise[top]) if lowered < rule.threshold else 0.0
        return judged.by_threshold(min(rule.threshold, lowered), slack)
    quota = min(rule.quota(step, len(masked)), int(masked.sum()))
    objection = judged.by_threshold(rule.threshold, 0.0)
    may = int((masked & (confidence + noise >= rule.threshold)).sum())
    must = int((masked & (confidence - noise > rule.threshold)).sum())
    enough = int((chosen | silent).sum()) >= quota
    if may >= quota and ((objection is None and enough) or must >= quota):
        return objection
    return judged.by_rank(quota)


@dataclass(frozen=True, slots=True)
class _Judged:
    confidence: torch.Tensor
    noise: torch.Tensor
    masked: torch.Tensor
    chosen: torch.Tensor
    silent: torch.Tensor

    def by_threshold(self, threshold: float, slack: float) -> Objection | None:
        """Object to a position on the wrong side of the threshold."""
        surely = self.masked & (self.confidence - self.noise > threshold + slack)
        never = self.confidence + self.noise < threshold - slack
        for offset in (surely & ~self.chosen & ~self.silent).nonzero().flatten().tolist():
            return self._about(offset, "stays masked, and its confidence {:.6g} is above {:.6g}", threshold)
        for offset in (self.chosen & never).nonzero().flatten().tolist():
            return self._about(offset, "is accepted, and its confidence {:.6g} is below {:.6g}", threshold)
        return None

    def by_rank(self, quota: int) -> Objection | None:
        """Object unless the `quota` surest positions are accepted, and no others."""
        ranked = self.confidence.masked_fill(~self.masked, -1.0).sort(descending=True, stable=True).indices.tolist()
        boundary = float(self.confidence[ranked[quota - 1]])
        band = float(self.noise[ranked[quota - 1]])
        for offset in self.chosen.nonzero().flatten().tolist():
            if float(self.confidence[offset] + self.noise[offset]) < boundary - band:
                what = "is accepted, and its confidence {:.6g} is below that of the surest, {:.6g}"
                return self._about(offset, what, boundary)
        for offset in ranked[:quota]:
            missed = not bool(self.chosen[offset]) and not bool(self.silent[offset])
            if missed and float(self.confidence[offset] - self.noise[offset]) > boundary + band:
                return self._about(offset, "stays masked, and is among the surest, {:.6g} against {:.6g}", boundary)
        count, silent = int(self.chosen.sum()), int(self.silent.sum())
        if count > quota or count + silent < quota:
            offset = next(iter(self.chosen.nonzero().flatten().tolist()), ranked[0])
            what = f"is one of {count} accepted, where none is above the threshold and the rule accepts {quota}"
            return Objection(offset, what, {"accepted": count, "quota": quota})
        return None

    def _about(self, offset: int, reason: str, boundary: float) -> Objection:
        confidence = float(self.confidence[offset])
        numbers = {"confidence": confidence, "boundary": boundary, "noise": float(self.noise[offset])}
        return Objection(offset, reason.format(confidence, boundary), numbers)
