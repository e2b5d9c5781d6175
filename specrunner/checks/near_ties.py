"""Near ties: whether a first differing token is within the noise of the logits, and the verdict on a re-forced run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from specrunner.checks.measurements import encode_number
from specrunner.checks.units import unit_in_last_place
from specrunner.results import CheckResult
from specrunner.token_ids import common_prefix


@dataclass(frozen=True, slots=True)
class NearTie:
    """Two engines' choices at the first position where they differ.

    Attributes:
        candidate_token: what the candidate chose.
        reference_token: what the reference chose.
        reference_gap: the reference's logit of its own token minus that of the candidate's token.
        reference_limit: kappa units in the last place of the candidate's dtype at the larger |logit| of the two in the
            reference (see `find_logit_noise`).
        candidate_gap: the mirror image: the candidate's logit of its own token minus that of the reference's token.
        candidate_limit: the same limit in the candidate.
    """

    candidate_token: int
    reference_token: int
    reference_gap: float
    reference_limit: float
    candidate_gap: float
    candidate_limit: float

    @property
    def is_tie(self) -> bool:
        """Whether both gaps are within their limits.

        A gap far below zero means that a side did not choose its own larger logit: that is another fault, not a tie.
        """
        return abs(self.reference_gap) <= self.reference_limit and abs(self.candidate_gap) <= self.candidate_limit

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {
            "candidate_token": self.candidate_token,
            "reference_token": self.reference_token,
            "reference_gap": encode_number(self.reference_gap),
            "reference_limit": encode_number(self.reference_limit),
            "candidate_gap": encode_number(self.candidate_gap),
            "candidate_limit": encode_number(self.candidate_limit),
            "is_tie": self.is_tie,
        }


def find_tie(
    candidate_token: int,
    reference_token: int,
    candidate_logits: torch.Tensor,
    reference_logits: torch.Tensor,
    *,
    dtype: torch.dtype,
    kappa: float,
) -> NearTie:
    """Apply the gap rule and its mirror image at one position.

    The rule: |ref_logit(ref_token) - ref_logit(candidate_token)| <= kappa * ulp, the noise of these two logits
    (`find_logit_noise`); and the same in the candidate's logits with the roles exchanged.

    Args:
        candidate_token: what the candidate chose.
        reference_token: what the reference chose.
        candidate_logits: [vocabulary], any float dtype, from the same prefix.
        reference_logits: [vocabulary], likewise.
        dtype: the dtype the candidate computed in.
        kappa: how many units are noise.

    Returns:
        The gaps and limits. NaN in the logits, or an infinite logit of either token, makes them NaN: never a tie.

    Raises:
        ValueError: a token is outside the vocabulary, or the shapes differ.
    """
    if candidate_logits.dim() != 1 or candidate_logits.shape != reference_logits.shape:
        raise ValueError(f"logits of shapes {tuple(candidate_logits.shape)} and {tuple(reference_logits.shape)}")
    for token in (candidate_token, reference_token):
        if not 0 <= token < reference_logits.shape[0]:
            raise ValueError(f"token {token} is outside the vocabulary of {reference_logits.shape[0]}")
    reference_gap, reference_limit = _gap(reference_logits, reference_token, candidate_token, dtype, kappa)
    candidate_gap, candidate_limit = _gap(candidate_logits, candidate_token, reference_token, dtype, kappa)
    return NearTie(candidate_token, reference_token, reference_gap, reference_limit, candidate_gap, candidate_limit)


def _gap(logits: torch.Tensor, own: int, other: int, dtype: torch.dtype, kappa: float) -> tuple[float, float]:
    if bool(logits.isnan().any()):
        return math.nan, math.nan
    gap = float(logits[own].double() - logits[other].double())
    return (gap if math.isfinite(gap) else math.nan), find_logit_noise(logits[[own, other]], dtype, kappa)


def find_logit_noise(logits: torch.Tensor, dtype: torch.dtype, kappa: float) -> float:
    """Return how far two logits that are compared may move against each other by noise.

    A dtype holds a number to half its unit in the last place, so that rounding alone moves two of them by one unit,
    that of the larger; kappa says how many units the arithmetic before it makes of that. The rest of the vocabulary has
    no say: a filler far below (-1e6, the dtype's lowest number) would else make every gap a tie.

    Args:
        logits: [n], those compared, any float dtype.
        dtype: whose unit counts.
        kappa: how many units are noise.

    Returns:
        The largest difference that is noise, or NaN when a logit is not finite.
    """
    return kappa * unit_in_last_place(float(logits.double().abs().amax()), dtype)


@dataclass(frozen=True, slots=True)
class Segment:
    """What the candidate generated after it was forced to the reference's first `start` tokens.

    Attributes:
        start: how many of the reference's tokens it was given; 0 for the free run from the prompt.
        token_ids: what it went on with, to the end.
    """

    start: int
    token_ids: Sequence[int]


def compare_near_ties(
    reference_ids: Sequence[int],
    segments: Sequence[Segment],
    ties: Mapping[int, NearTie],
    *,
    max_share: float,
    subject: str = "tokens",
    location: str = "",
) -> CheckResult:
    """Judge a run that was forced back to the reference after every near tie.

    It passes when every segment follows the reference up to a near tie, the next segment starts right behind that tie,
    the last one follows to the end, and no more than `max_share` of the reference's tokens were ties.

    Args:
        reference_ids: what the reference generated.
        segments: the candidate's runs in order, the first with start 0.
        ties: what was found at each mismatch, by position in `reference_ids`.
        max_share: the largest share of ties among the reference's tokens.
        subject: what the ids are, for the report.
        location: where the rule stands.

    Returns:
        The result, with every tie and its gaps in the measurements.
    """
    reference = list(reference_ids)
    message = "compared nothing: the reference generated no token" if not reference else ""
    if reference and not segments:
        message = "compared nothing: the candidate generated nothing"
    position, passed_ties = 0, []
    for number, segment in enumerate(segments if not message else ()):
        if segment.start != position:
            message = f"evidence is missing: the run goes on at position {segment.start}, not at {position}"
            break
        ours = list(segment.token_ids)
        place = position + common_prefix(ours, reference[position:])
        if place == len(reference) == position + len(ours):
            position = place
            if number + 1 < len(segments):
                message = "evidence is in disorder: a run goes on after the end"
            break
        tie = ties.get(place)
        if place >= len(reference) or place - position >= len(ours):
            message = f"the candidate ends after {position + len(ours)} tokens, the reference after {len(reference)}"
        elif tie is None:
            message = f"mismatch at position {place} without logits to judge it by"
        elif (tie.candidate_token, tie.reference_token) != (ours[place - position], reference[place]):
            message = f"the logits at position {place} belong to other tokens"
        elif not tie.is_tie:
            message = (
                f"mismatch at position {place} is no near tie: token {tie.candidate_token} against "
                f"{tie.reference_token}, gaps {tie.reference_gap:.4g} (limit {tie.reference_limit:.4g}) and "
                f"{tie.candidate_gap:.4g} (limit {tie.candidate_limit:.4g})"
            )
        else:
            passed_ties.append(place)
            position = place + 1
            continue
        break
    if not message and position < len(reference):
        message = f"evidence is missing: the run was not taken up again after the tie at position {position - 1}"
    share = len(passed_ties) / len(reference) if reference else 0.0
    if not message and not share <= max_share:
        message = f"{len(passed_ties)} of {len(reference)} tokens are near ties, more than {max_share:.3g} of them"
    numbers = {
        "reference_length": len(reference),
        "followed": position,
        "tie_count": len(passed_ties),
        "mismatch_count": sum(not tie.is_tie for tie in ties.values()),
        "share": share,
        "ties": [{"position": place, **tie.to_json()} for place, tie in sorted(ties.items())],
    }
    return CheckResult(subject, "near_tie", not message, message, numbers, {"max_share": max_share}, location)
