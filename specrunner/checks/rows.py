"""Relative error and cosine of every row, from the sums of its products."""

from __future__ import annotations

import math

import torch

from specrunner.checks.extremes import HighPercentile, Peak

ROW_ERRORS_KEPT = 1 << 16
"""Up to this many rows, the error of each is kept for localisation."""

SQUARES_LOST = 1e-280
"""A sum of squares below this may have lost digits to underflow; only float64 values come here."""

CANDIDATE, REFERENCE, PRODUCT, DISTANCE, PEER, TINY, TINY_REFERENCE = range(7)
"""Places in the sums of a row: a.a, r.r, a.r, |a-r|^2, |p-r|^2, and marks of what is too small to square in a, in r."""


def relative_error(distance: float, norm: float) -> float:
    """Return the relative L2 error.

    Args:
        distance: |a-r|^2, a sum of squares.
        norm: |r|^2, likewise.

    Returns:
        sqrt(distance) / sqrt(norm): 0 for 0 / 0, inf for x / 0, NaN where a sum overflowed.
    """
    if not math.isfinite(distance) or not math.isfinite(norm):
        return math.nan
    if norm == 0:
        return math.inf if distance else 0.0
    return math.sqrt(distance) / math.sqrt(norm)


def needed_factor(error: float, peer_error: float, epsilon: float) -> float:
    """Return the smallest k >= 0 with error <= k * peer_error + epsilon.

    Args:
        error: the candidate's relative L2 error.
        peer_error: the peer's.
        epsilon: what is allowed without any noise, see `Floor`.

    Returns:
        The factor; inf: there is none, NaN: an error is no number.
    """
    if error <= epsilon:
        return 0.0
    if math.isnan(error) or not math.isfinite(peer_error):
        return math.nan
    return (error - epsilon) / peer_error if peer_error else math.inf


class RowErrors:
    """Accumulates the errors of all rows.

    Args:
        row_count: rows of the tensor.
        epsilon: what the noise floor adds, see `Floor`.
        peered: whether there is a peer.
        capacity: how many rows are summed up before they are turned into errors; at least those of one block.

    Attributes:
        error: the largest relative L2 and its row.
        cosine: the negated smallest cosine and its row.
        undefined: rows of which exactly one side is zero.
        needed: the largest k a row needs and its row.
        worst: the candidate's and the peer's error in that row.
        totals: the seven sums over all rows.
    """

    def __init__(self, row_count: int, epsilon: float, peered: bool, capacity: int) -> None:
        self.error, self.cosine, self.needed = Peak(), Peak(), Peak()
        self.undefined = 0
        self.worst = (math.nan, math.nan)
        self.totals = torch.zeros(7, dtype=torch.float64)
        self.percentile = HighPercentile(row_count)
        self.kept: list[torch.Tensor] | None = [] if row_count <= ROW_ERRORS_KEPT else None
        self.peer_kept: list[torch.Tensor] | None = [] if peered and row_count <= ROW_ERRORS_KEPT else None
        self._epsilon = epsilon
        self._peered = peered
        self._buffer = torch.zeros(7, min(capacity, max(1, row_count)), dtype=torch.float64)
        self._filled = 0
        self._done = 0

    def slots(self, rows: int) -> torch.Tensor:
        """Return [7, rows] sums to add to, for the rows that come next; zero unless a piece of the row came before."""
        if self._filled + rows > self._buffer.shape[1]:
            self.flush()
        return self._buffer[:, self._filled : self._filled + rows]

    def complete(self, rows: int) -> None:
        """Say that the slots of these rows hold all their products."""
        self._filled += rows

    def flush(self) -> None:
        """Turn the completed sums into errors."""
        if not self._filled:
            return
        sums = self._buffer[:, : self._filled]
        self.totals += sums.sum(-1)
        squares, norms, products, distances = sums[CANDIDATE], sums[REFERENCE], sums[PRODUCT], sums[DISTANCE]
        lost = ~torch.isfinite(sums[:4].sum(0))
        lost |= (sums[TINY] > 0) & (squares < SQUARES_LOST)
        lost |= (sums[TINY_REFERENCE] > 0) & (norms < SQUARES_LOST)
        errors = self._errors(distances, norms).masked_fill_(lost, math.nan)
        one_zero = ((squares == 0) ^ (norms == 0)) & ~lost
        cosines = (products / (squares.sqrt() * norms.sqrt())).clamp_(-1.0, 1.0)
        cosines.masked_fill_(one_zero, 0.0).masked_fill_(distances == 0, 1.0).masked_fill_(lost, math.nan)
        self.undefined += int(one_zero.sum())
        self.error.update(errors, self._done)
        self.cosine.update(-cosines, self._done)
        self.percentile.update(errors)
        if self.kept is not None:
            self.kept.append(errors)
        if self._peered:
            self._compare_with_peer(errors, self._errors(sums[PEER], norms).masked_fill_(lost, math.nan))
        self._done += self._filled
        self._filled = 0
        self._buffer.zero_()

    @staticmethod
    def _errors(distances: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        return (distances.sqrt() / norms.sqrt()).masked_fill_((distances == 0) & (norms == 0), 0.0)

    def _compare_with_peer(self, errors: torch.Tensor, peer_errors: torch.Tensor) -> None:
        needed = ((errors - self._epsilon) / peer_errors).masked_fill_(~torch.isfinite(peer_errors), math.nan)
        needed.masked_fill_(errors <= self._epsilon, 0.0)
        before = self.needed.index
        self.needed.update(needed, self._done)
        if self.needed.index != before and self.needed.index is not None:
            place = self.needed.index - self._done
            self.worst = (float(errors[place]), float(peer_errors[place]))
        if self.peer_kept is not None:
            self.peer_kept.append(peer_errors)
