"""What can be measured between a tensor and a sketch: distances with a stated bound, KL between bounds, exact top-k."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from specrunner.checks.extremes import HighPercentile
from specrunner.checks.measure import signal_to_noise
from specrunner.checks.measurements import encode_number
from specrunner.checks.sources import TensorSource
from specrunner.checks.vocabulary import share_common
from specrunner.golden.projections import CONFIDENCE, bound_factor
from specrunner.golden.sketch import Sketch


@dataclass(frozen=True, slots=True)
class Estimates:
    """How far a candidate is from a sketched golden; a value per row, float64 [rows].

    Attributes:
        shape: of both.
        candidate_dtype: without `torch.`.
        reference_dtype: the golden's.
        rows_per_token: rows that belong to one index of the first axis.
        norms: the golden's.
        distances: estimated |a-r|.
        errors: estimated |a-r| / |r|; 0 where both are zero, inf where only r is.
        factor: what an estimate must be multiplied with to bound the true value, see `projections.bound_factor`.
        cosines: the smallest cosine that the bounded distance allows; 0 where exactly one side is zero.
        undefined: rows of which exactly one side is zero.
        kl: lower and upper bound of KL(golden || candidate), [2, rows]; None when the golden keeps no distribution, or
            the candidate is a sketch itself.
        overlaps: by k, the share of the k largest that both have.
        top_1: share of rows with the same largest element, or None.
        non_finite: NaN and infinities of the candidate.
    """

    shape: tuple[int, ...]
    candidate_dtype: str
    reference_dtype: str
    rows_per_token: int
    norms: torch.Tensor
    distances: torch.Tensor
    errors: torch.Tensor
    factor: float
    cosines: torch.Tensor
    undefined: int
    kl: torch.Tensor | None
    overlaps: dict[int, torch.Tensor]
    top_1: float | None
    non_finite: int = 0

    @property
    def bounds(self) -> torch.Tensor:
        """Errors, float64 [rows], that the true ones exceed at most once in `1 / CONFIDENCE` rows."""
        return self.errors * self.factor

    @property
    def relative_l2(self) -> float:
        """The estimated error over the whole tensor."""
        norm, distance = float(self.norms.norm()), float(self.distances.norm())
        return distance / norm if norm else (math.inf if distance else 0.0)

    def token_of(self, row: int) -> int:
        """Return the index on the first axis that a row belongs to."""
        return row // self.rows_per_token

    def worst(self, values: torch.Tensor) -> tuple[float, int]:
        """Return the largest of [rows] values (NaN counts as largest) and its token."""
        row = int(values.argmax())
        return float(values[row]), self.token_of(row)

    def to_json(self) -> dict[str, Any]:
        """Return all numbers under the names that measurements of whole tensors have, and how they were estimated."""
        error, token = self.worst(self.errors)
        cosine, cosine_token = self.worst(-self.cosines)
        numbers: dict[str, Any] = {
            "shape": list(self.shape),
            "candidate_dtype": self.candidate_dtype,
            "reference_dtype": self.reference_dtype,
            "rows": self.norms.numel(),
            "estimated": True,
            "estimate_bound": self.factor,
            "estimate_confidence": 1 - CONFIDENCE,
            "relative_l2": self.relative_l2,
            "max_relative_l2": error,
            "max_relative_l2_bound": error * self.factor,
            "max_relative_l2_token": token,
            "p99_relative_l2": percentile(self.errors),
            "min_cosine": -cosine,
            "min_cosine_token": cosine_token,
            "min_sqnr": signal_to_noise(error),
            "min_sqnr_token": token,
            "candidate_nan_or_inf": self.non_finite,
        }
        if self.undefined:
            numbers["undefined_cosines"] = self.undefined
        if self.kl is not None:
            numbers |= {
                "mean_kl": float(self.kl[1].mean()),
                "mean_kl_low": float(self.kl[0].mean()),
                "p99_kl": percentile(self.kl[1]),
                "max_kl": self.worst(self.kl[1])[0],
                "max_kl_token": self.worst(self.kl[1])[1],
            }
        for k, shares in self.overlaps.items():
            least, where = self.worst(-shares)
            numbers |= {
                f"mean_top_{k}_overlap": float(shares.mean()),
                f"min_top_{k}_overlap": -least,
                f"min_top_{k}_token": where,
            }
        if self.top_1 is not None:
            numbers["top_1_agreement"] = self.top_1
        return {name: encode_number(value) for name, value in numbers.items()}


def estimate(
    candidate: Sketch, golden: Sketch, *, source: TensorSource | None = None, top_k: tuple[int, ...] = ()
) -> Estimates:
    """Hold a candidate against a sketched golden.

    Args:
        candidate: the candidate's sketch, with the golden's seed and number of projections.
        golden: the golden.
        source: the candidate's whole tensor, for KL.
        top_k: the k of every overlap to measure; one that is larger than either side keeps is left out.

    Raises:
        ValueError: shapes, seeds or projections differ.
    """
    same = candidate.shape == golden.shape and candidate.seed == golden.seed
    if not same or candidate.projections.shape != golden.projections.shape:
        raise ValueError(f"sketches of {candidate.shape} and {golden.shape} cannot be compared")
    count = golden.projections.shape[-1]
    # Rounding the stored side alone must not look like a difference.
    ours = candidate.projections.to(golden.projections.dtype).double()
    distances = (ours - golden.projections.double()).norm(dim=-1) / math.sqrt(count)
    factor = bound_factor(count)
    errors = (distances / golden.norms).masked_fill((distances == 0) & (golden.norms == 0), 0.0)
    one_zero = (candidate.norms == 0) ^ (golden.norms == 0)
    bound = distances * factor
    products = (candidate.norms**2 + golden.norms**2 - bound**2) / 2
    cosines = (products / (candidate.norms * golden.norms)).clamp(-1.0, 1.0)
    cosines = cosines.masked_fill(one_zero, 0.0).masked_fill(distances == 0, 1.0)
    overlaps: dict[int, torch.Tensor] = {}
    top_1 = None
    if golden.top_ids is not None and candidate.top_ids is not None:
        kept = min(golden.top_ids.shape[-1], candidate.top_ids.shape[-1])
        overlaps = {k: share_common(candidate.top_ids[:, :k], golden.top_ids[:, :k]) for k in top_k if k <= kept}
        top_1 = float((candidate.top_ids[:, 0] == golden.top_ids[:, 0]).double().mean())
    return Estimates(
        shape=golden.shape,
        candidate_dtype=candidate.dtype,
        reference_dtype=golden.dtype,
        rows_per_token=golden.rows_per_token,
        norms=golden.norms,
        distances=distances,
        errors=errors,
        factor=factor,
        cosines=cosines,
        undefined=int(one_zero.sum()),
        kl=_bound_kl(source, golden, bound) if source is not None and golden.top_ids is not None else None,
        overlaps=overlaps,
        top_1=top_1,
        non_finite=int((~torch.isfinite(candidate.norms)).sum()),
    )


def _bound_kl(source: TensorSource, golden: Sketch, bound: torch.Tensor) -> torch.Tensor:
    """Return a lower and an upper bound of KL(golden || candidate) for each row, [2, rows].

    With p the golden's softmax, d = r - a the logits' difference and K the kept columns, KL is sum over K of p d, plus
    the same sum over the rest, minus logsumexp(r), plus logsumexp(a). The rest is at most |p_rest| |d|
    (Cauchy-Schwarz), where |p_rest|^2 <= max p_rest * sum p_rest, and max p_rest is at most the smallest kept p. From
    below it is also bounded by the log-sum inequality: at least P log(P / Q) for the masses P, Q of the rest.
    """
    assert golden.top_ids is not None and golden.top_values is not None and golden.logsumexp is not None
    bounds = torch.zeros(2, golden.norms.numel(), dtype=torch.float64)
    for row in range(golden.norms.numel()):
        logits = source.rows(row, row + 1)[0].double()
        total = torch.logsumexp(logits, -1)
        kept = golden.top_values[row].double()
        ours = logits[golden.top_ids[row].long()]
        p, q = torch.exp(kept - golden.logsumexp[row]), torch.exp(ours - total)
        rest_p, rest_q = max(0.0, 1.0 - float(p.sum())), max(0.0, 1.0 - float(q.sum()))
        inside = float((p * ((kept - golden.logsumexp[row]) - (ours - total))).sum())
        shift = rest_p * float(total - golden.logsumexp[row])
        # With few projections the bound is infinite, which must not become NaN where nothing is left out.
        spread = math.sqrt(min(float(p[-1]), rest_p) * rest_p) * float(bound[row]) if rest_p else 0.0
        least = rest_p * math.log(rest_p / rest_q) if rest_p > 0 and rest_q > 0 else 0.0
        low = inside + max(shift - spread, least)
        bounds[0, row], bounds[1, row] = max(0.0, low), max(0.0, inside + shift + spread)
    return bounds


def percentile(values: torch.Tensor) -> float:
    """Return the nearest-rank 99th percentile of values [n] of any float dtype."""
    tracker = HighPercentile(values.numel())
    tracker.update(values)
    return tracker.value()
