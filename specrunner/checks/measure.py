"""The single pass over candidate and reference (and peer) that takes every measurement."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch.linalg import vecdot

from specrunner.checks.blocks import BLOCK_ELEMENTS, Block, cut, on_one_thread
from specrunner.checks.census import Census
from specrunner.checks.elements import ElementDistances
from specrunner.checks.extremes import Peak
from specrunner.checks.measurements import AllClose, At, Difference, Floor, Kl, Measurements, TopK
from specrunner.checks.rows import (
    CANDIDATE,
    DISTANCE,
    PEER,
    PRODUCT,
    REFERENCE,
    SQUARES_LOST,
    TINY,
    TINY_REFERENCE,
    RowErrors,
    needed_factor,
    relative_error,
)
from specrunner.checks.sources import TensorSource
from specrunner.checks.vocabulary import Divergence, Overlap


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the pass measures beyond the ordinary, because it costs.

    Attributes:
        allclose: pairs (rtol, atol).
        differing: count the elements that differ.
        kl: KL divergence over the last axis.
        top_k: the k of every overlap to measure.
    """

    allclose: tuple[tuple[float, float], ...] = ()
    differing: bool = False
    kl: bool = False
    top_k: tuple[int, ...] = ()


@on_one_thread()
def measure(
    candidate: TensorSource,
    reference: TensorSource,
    *,
    peer: TensorSource | None = None,
    wanted: Wanted | None = None,
    block_elements: int = BLOCK_ELEMENTS,
) -> Measurements:
    """Measure how far two float tensors are apart, in one pass and in memory that does not grow with them.

    All arithmetic is float64 on exactly upcast values. Pairs in which a side is NaN or infinite are counted and left
    out of every distance, except that KL and top-k see all of a row.

    Args:
        candidate: any float dtype, at least one element.
        reference: the same shape, any float dtype.
        peer: the same shape again, or None.
        wanted: what to measure beyond the ordinary.
        block_elements: elements worked on at a time; beyond rounding in float64 the result does not depend on it.

    Returns:
        All measurements.

    Raises:
        ValueError: the shapes differ, there is no element, or a dtype is not floating point.
    """
    sources = (candidate, reference) if peer is None else (candidate, reference, peer)
    if any(source.shape != reference.shape for source in sources):
        raise ValueError(f"shapes differ: {[source.shape for source in sources]}")
    if not all(source.dtype.is_floating_point for source in sources):
        raise ValueError(f"not floating point: {[str(source.dtype) for source in sources]}")
    if not reference.row_count or not reference.width:
        raise ValueError(f"no element in shape {reference.shape}")
    survey = _Survey(sources, wanted or Wanted(), block_elements)
    for block in cut(sources, block_elements):
        survey.update(block)
    return survey.result()


class _Survey:
    """The accumulators of one pass."""

    def __init__(self, sources: tuple[TensorSource, ...], wanted: Wanted, block_elements: int) -> None:
        self.candidate, self.reference = sources[:2]
        self.width, self.row_count = self.reference.width, self.reference.row_count
        self.peered = len(sources) > 2
        self.doubles = any(source.dtype == torch.float64 for source in sources)
        self.buffers = torch.empty(5, max(1, min(block_elements, self.row_count * self.width)), dtype=torch.float64)
        self.shaped: dict[torch.Size, tuple[torch.Tensor, ...]] = {}
        self.epsilon = float(torch.finfo(self.reference.dtype).eps)
        self.wanted = wanted
        self.census = Census()
        self.first_unmatched: Difference | None = None
        self.distances = ElementDistances(wanted.allclose, wanted.differing, self.width * self.reference.rows_per_token)
        self.rows = RowErrors(self.row_count, self.epsilon, self.peered, max(4096, block_elements // self.width))
        self.divergence = Divergence(self.row_count) if wanted.kl else None
        self.overlaps = {k: Overlap(k) for k in wanted.top_k}

    def _workspace(self, shape: torch.Size) -> tuple[torch.Tensor, ...]:
        if shape not in self.shaped:
            self.shaped[shape] = tuple(buffer[: shape.numel()].view(shape) for buffer in self.buffers)
        return self.shaped[shape]

    def update(self, block: Block) -> None:
        """Take in one block."""
        stored = (block.tensors[0], block.tensors[1])
        start = block.row * self.width + block.column
        candidate, reference, peer, distance, scratch = self._workspace(stored[0].shape)
        candidate.copy_(stored[0])
        reference.copy_(stored[1])
        if self.divergence is not None:
            self.divergence.update(candidate, reference, block.row, block.completes, (distance, scratch))
        for overlap in self.overlaps.values():
            overlap.update(*stored, block.row, block.column, block.completes)
        bad = None
        squares, norms = vecdot(candidate, candidate), vecdot(reference, reference)
        if not math.isfinite(float(squares.sum() + norms.sum())):
            bad, place = self.census.mask(candidate, reference)
            if place is not None and self.first_unmatched is None:
                self.first_unmatched = self.distances.pair(place, stored, start)
            squares, norms = vecdot(candidate, candidate), vecdot(reference, reference)
        sums = self.rows.slots(stored[0].shape[0])
        sums[CANDIDATE] += squares
        sums[REFERENCE] += norms
        sums[PRODUCT] += vecdot(candidate, reference)
        if self.doubles:
            for mark, side, square in ((TINY, candidate, squares), (TINY_REFERENCE, reference, norms)):
                sums[mark] += (square < SQUARES_LOST) & (side.abs().amax(-1) > 0)
        torch.sub(candidate, reference, out=distance)
        sums[DISTANCE] += vecdot(distance, distance)
        if self.peered:
            sums[PEER] += self._peer_squares(block.tensors[2], peer, reference, bad)
        self.distances.update(stored, distance.abs_(), reference.abs_(), scratch, bad, start)
        if block.completes:
            self.rows.complete(stored[0].shape[0])

    def _peer_squares(
        self, stored: torch.Tensor, peer: torch.Tensor, reference: torch.Tensor, bad: torch.Tensor | None
    ) -> torch.Tensor:
        peer.copy_(stored)
        if bad is not None:
            peer.masked_fill_(bad, 0.0)
        peer.sub_(reference)
        squares: torch.Tensor = vecdot(peer, peer)
        if not math.isfinite(float(squares.sum())):
            self.census.count_peer(peer)
        return squares

    def _at(self, peak: Peak, per_token: int, sign: float = 1.0) -> At:
        return At(sign * peak.value, None if peak.index is None else peak.index // per_token)

    def result(self) -> Measurements:
        """Close the pass."""
        self.rows.flush()
        rows, distances, wanted = self.rows, self.distances, self.wanted
        counts = replace(self.census.counts, first=self.first_unmatched)
        per_row, per_element = self.reference.rows_per_token, self.width * self.reference.rows_per_token
        compared = self.row_count * self.width - self.census.masked
        totals = rows.totals.tolist()
        error = self._at(rows.error, per_row)
        first = [difference for difference in (distances.first, counts.first) if difference is not None]
        return Measurements(
            shape=self.reference.shape,
            candidate_dtype=str(self.candidate.dtype).removeprefix("torch."),
            reference_dtype=str(self.reference.dtype).removeprefix("torch."),
            elements=self.row_count * self.width,
            compared=compared,
            rows=self.row_count,
            max_abs=self._at(distances.absolute, per_element),
            mean_abs=distances.absolute_sum / compared if compared else math.nan,
            max_rel=self._at(distances.relative, per_element),
            rel_l2=relative_error(totals[DISTANCE], totals[REFERENCE])
            if rows.error.value == rows.error.value
            else math.nan,
            token_rel_l2=error,
            token_rel_l2_p99=rows.percentile.value(),
            cosine=self._at(rows.cosine, per_row, -1.0),
            cosine_undefined=rows.undefined,
            sqnr=At(signal_to_noise(error.value), error.token),
            ulp=self._at(distances.ulp, per_element),
            ulp_over_one=distances.ulp_over_one / compared if compared else math.nan,
            non_finite=counts,
            first=min(first, key=lambda difference: difference.index, default=None),
            differing=distances.differing + counts.unmatched if wanted.differing else None,
            allclose={
                key: AllClose(outside + counts.unmatched, self._at(peak, per_element))
                for key, outside, peak in zip(wanted.allclose, distances.outside, distances.excess, strict=True)
            },
            kl=self._kl(),
            top_k={
                k: TopK(
                    overlap.total / self.row_count,
                    self._at(overlap.worst, per_row, -1.0),
                    overlap.top_1 / self.row_count,
                )
                for k, overlap in self.overlaps.items()
            },
            floor=self._floor(totals) if self.peered else None,
            row_errors=torch.cat(rows.kept) if rows.kept else None,
            peer_row_errors=torch.cat(rows.peer_kept) if rows.peer_kept else None,
            reference_zero=totals[REFERENCE] == 0 and totals[TINY_REFERENCE] == 0,
        )

    def _kl(self) -> Kl | None:
        divergence = self.divergence
        if divergence is None:
            return None
        worst = self._at(divergence.worst, self.reference.rows_per_token)
        return Kl(divergence.total / self.row_count, divergence.percentile.value(), worst)

    def _floor(self, totals: list[float]) -> Floor:
        errors = (
            relative_error(totals[DISTANCE], totals[REFERENCE]),
            relative_error(totals[PEER], totals[REFERENCE]),
        )
        return Floor(
            epsilon=self.epsilon,
            whole=errors,
            needed=needed_factor(*errors, self.epsilon),
            needed_by_token=self._at(self.rows.needed, self.reference.rows_per_token),
            worst=self.rows.worst,
        )


def signal_to_noise(error: float) -> float:
    """Return the SQNR in dB that a relative L2 error amounts to: -20 * log10(error)."""
    if math.isnan(error):
        return math.nan
    if error == 0:
        return math.inf
    return -math.inf if math.isinf(error) else -20.0 * math.log10(error)
