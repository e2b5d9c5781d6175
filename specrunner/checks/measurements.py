"""What one pass over a pair of tensors found out: plain numbers, and their form in the reports."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch


def encode_number(value: float | int) -> float | int | str:
    """Return `value` as JSON can hold it: NaN and the infinities become "nan", "inf" and "-inf"."""
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value


MOST_BUCKETS = 256
"""How many numbers a row of a report's heat map has at most; longer prompts are told by the worst of neighbours."""


def fold_by_token(errors: torch.Tensor, tokens: int, most: int = MOST_BUCKETS) -> list[float | int | str]:
    """Return the worst error of each token, or of each run of neighbouring tokens where there are many.

    Args:
        errors: float64 [rows], the rows of a token one after the other.
        tokens: the length of the tensor's first axis, which divides the rows.
        most: how many numbers to return at most.

    Returns:
        `ceil(tokens / n)` numbers in three digits, each the largest of n neighbours; NaN is larger than any.
    """
    worst = errors.reshape(tokens, -1).nan_to_num(nan=math.inf, posinf=math.inf).amax(-1)
    size = bucket_size(tokens, most)
    padded = torch.nn.functional.pad(worst, (0, -tokens % size))
    return [encode_number(float(f"{value:.2e}")) for value in padded.reshape(-1, size).amax(-1).tolist()]


def bucket_size(tokens: int, most: int = MOST_BUCKETS) -> int:
    """Return how many neighbouring tokens share a number so that `most` numbers suffice."""
    return -(-tokens // most)


@dataclass(frozen=True, slots=True)
class Difference:
    """One pair of elements that differ.

    Attributes:
        index: the flat index.
        token: the index on the first axis.
        candidate: the candidate's value.
        reference: the reference's value.
    """

    index: int
    token: int
    candidate: float | int
    reference: float | int

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {
            "index": self.index,
            "token": self.token,
            "candidate": encode_number(self.candidate),
            "reference": encode_number(self.reference),
        }


@dataclass(frozen=True, slots=True)
class At:
    """An extreme value and the token (index on the first axis) where it first stood; None when nothing was compared."""

    value: float
    token: int | None


@dataclass(frozen=True, slots=True)
class NonFinite:
    """Counts of NaN and infinity.

    Attributes:
        candidate_nan: NaN in the candidate.
        candidate_inf: infinities in the candidate.
        reference_nan: NaN in the reference.
        reference_inf: infinities in the reference.
        equal_infinities: pairs of equal infinities, as a mask leaves them.
        unmatched: pairs with NaN or an infinity that are not equal infinities; NaN on both sides is one of them.
        first: the first unmatched pair.
        peer: NaN and infinities in the peer.
    """

    candidate_nan: int = 0
    candidate_inf: int = 0
    reference_nan: int = 0
    reference_inf: int = 0
    equal_infinities: int = 0
    unmatched: int = 0
    first: Difference | None = None
    peer: int = 0

    @property
    def any(self) -> bool:
        """Whether candidate or reference holds a single one."""
        return bool(self.candidate_nan or self.candidate_inf or self.reference_nan or self.reference_inf)


@dataclass(frozen=True, slots=True)
class AllClose:
    """How a pair stands to one |a-r| <= atol + rtol * |r|.

    Attributes:
        outside: elements that do not hold it; unmatched non-finite pairs are among them.
        worst: the largest |a-r| - (atol + rtol * |r|).
    """

    outside: int
    worst: At


@dataclass(frozen=True, slots=True)
class Kl:
    """KL(reference || candidate) in nats over the rows; NaN when a row holds NaN or an infinity."""

    mean: float
    p99: float
    max: At


@dataclass(frozen=True, slots=True)
class TopK:
    """Overlap of the k largest: mean and smallest share over the rows, and the share of rows with the same largest."""

    mean: float
    min: At
    top_1: float


@dataclass(frozen=True, slots=True)
class Floor:
    """The candidate's relative L2 error against the peer's.

    Attributes:
        epsilon: the machine epsilon of the reference's dtype: an error that the reference cannot resolve.
        whole: E(candidate), E(peer) over the whole tensor.
        needed: the smallest k with E(candidate) <= k * E(peer) + epsilon over the whole tensor.
        needed_by_token: the largest such k of a single row.
        worst: E(candidate), E(peer) of that row.
    """

    epsilon: float
    whole: tuple[float, float]
    needed: float
    needed_by_token: At
    worst: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Measurements:
    """Everything one pass measured on a candidate and a reference of one shape.

    Distances are over the pairs in which both sides are finite. `token` is the index on the first axis; a row is one
    vector of the last axis, and there is one row a token in the layout [tokens, vector].

    Attributes:
        shape: of both tensors.
        candidate_dtype: without `torch.`.
        reference_dtype: likewise.
        elements: pairs in all.
        compared: pairs in which both sides are finite.
        rows: vectors.
        max_abs: the largest |a-r|.
        mean_abs: the mean |a-r|.
        max_rel: the largest |a-r| / |r|; 0 where both are 0, inf where only r is.
        rel_l2: |a-r| / |r| in the L2 norm over the whole tensor; 0 when both are zero, inf when only r is.
        token_rel_l2: the same row by row, largest.
        token_rel_l2_p99: its 99th percentile over the rows (nearest rank).
        cosine: the smallest cosine of a row; 1 where both are zero.
        cosine_undefined: rows in which exactly one side is zero; they count as cosine 0.
        sqnr: the smallest 20 * log10(|r| / |r-a|) of a row in dB; inf where they are equal, -inf where only r is zero.
        ulp: the largest distance in units of the last place of the candidate's dtype; None for integers.
        ulp_over_one: the share of pairs further apart than one unit.
        non_finite: counts.
        first: the first pair that differs, or None.
        differing: how many pairs differ, when counted.
        allclose: by (rtol, atol), when asked for.
        kl: when asked for.
        top_k: by k, when asked for.
        floor: when there was a peer.
        row_errors: relative L2 of every row, float64 [rows], or None when there are very many.
        peer_row_errors: the peer's, likewise.
        reference_zero: whether every finite element of the reference is 0.
    """

    shape: tuple[int, ...]
    candidate_dtype: str
    reference_dtype: str
    elements: int
    compared: int
    rows: int
    max_abs: At
    mean_abs: float
    max_rel: At
    rel_l2: float
    token_rel_l2: At
    token_rel_l2_p99: float
    cosine: At
    cosine_undefined: int
    sqnr: At
    ulp: At
    ulp_over_one: float
    non_finite: NonFinite
    first: Difference | None
    differing: int | None = None
    allclose: dict[tuple[float, float], AllClose] = field(default_factory=dict)
    kl: Kl | None = None
    top_k: dict[int, TopK] = field(default_factory=dict)
    floor: Floor | None = None
    row_errors: torch.Tensor | None = field(default=None, compare=False)
    peer_row_errors: torch.Tensor | None = field(default=None, compare=False)
    reference_zero: bool = False

    @property
    def width(self) -> int:
        """Elements in a row."""
        return self.elements // self.rows

    def describe_tokens(self) -> dict[str, Any]:
        """Return `token_errors`, the relative L2 error by token for a heat map; empty when the rows were too many.

        Its `largest` are the candidate's, its `peer` (where there was one) the noise floor's, each number the worst of
        `tokens_per_number` neighbours; "inf" stands for NaN too.
        """
        tokens = self.shape[0] if self.shape else 0
        if self.row_errors is None or not tokens or self.row_errors.numel() % tokens:
            return {}
        errors: dict[str, Any] = {
            "tokens": tokens,
            "tokens_per_number": bucket_size(tokens),
            "largest": fold_by_token(self.row_errors, tokens),
        }
        if self.peer_row_errors is not None and self.peer_row_errors.numel() == self.row_errors.numel():
            errors["peer"] = fold_by_token(self.peer_row_errors, tokens)
        return {"token_errors": errors}

    def to_json(self) -> dict[str, Any]:
        """Return all numbers under flat names, as every `CheckResult` on this pair records them."""
        counts = self.non_finite
        numbers: dict[str, Any] = {
            "shape": list(self.shape),
            "candidate_dtype": self.candidate_dtype,
            "reference_dtype": self.reference_dtype,
            "elements": self.elements,
            "rows": self.rows,
            "max_abs": self.max_abs.value,
            "max_abs_token": self.max_abs.token,
            "mean_abs": self.mean_abs,
            "max_relative": self.max_rel.value,
            "max_relative_token": self.max_rel.token,
            "relative_l2": self.rel_l2,
            "max_relative_l2": self.token_rel_l2.value,
            "p99_relative_l2": self.token_rel_l2_p99,
            "max_relative_l2_token": self.token_rel_l2.token,
            "min_cosine": self.cosine.value,
            "min_cosine_token": self.cosine.token,
            "min_sqnr": self.sqnr.value,
            "min_sqnr_token": self.sqnr.token,
            "max_ulp": int(self.ulp.value),
            "max_ulp_token": self.ulp.token,
            "over_one_ulp": self.ulp_over_one,
            "candidate_nan": counts.candidate_nan,
            "candidate_inf": counts.candidate_inf,
            "reference_nan": counts.reference_nan,
            "reference_inf": counts.reference_inf,
        }
        if self.cosine_undefined:
            numbers["undefined_cosines"] = self.cosine_undefined
        if counts.any:
            numbers["compared"] = self.compared
            numbers["equal_infinities"] = counts.equal_infinities
            numbers["unmatched_non_finite"] = counts.unmatched
        if self.differing is not None:
            numbers["differing"] = self.differing
        if self.kl is not None:
            numbers |= {
                "mean_kl": self.kl.mean,
                "p99_kl": self.kl.p99,
                "max_kl": self.kl.max.value,
                "max_kl_token": self.kl.max.token,
            }
        for k, overlap in self.top_k.items():
            numbers |= {
                f"mean_top_{k}_overlap": overlap.mean,
                f"min_top_{k}_overlap": overlap.min.value,
                f"min_top_{k}_token": overlap.min.token,
                "top_1_agreement": overlap.top_1,
            }
        if self.floor is not None:
            numbers |= {
                "peer_relative_l2": self.floor.whole[1],
                "floor_needed": self.floor.needed,
                "floor_needed_by_token": self.floor.needed_by_token.value,
                "floor_token": self.floor.needed_by_token.token,
                "floor_epsilon": self.floor.epsilon,
            }
            if counts.peer:
                numbers["peer_non_finite"] = counts.peer
        encoded: dict[str, Any] = {name: encode_number(value) for name, value in numbers.items()}
        if self.first is not None:
            encoded["first_difference"] = self.first.to_json()
        return encoded
