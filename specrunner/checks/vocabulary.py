"""Logits as distributions over a vocabulary: KL divergence and the k largest, row by row as pieces stream in."""

from __future__ import annotations

import torch

from specrunner.checks.extremes import HighPercentile, Peak


class Divergence:
    """KL(reference || candidate) of the softmaxes of two rows of logits, in float64.

    With p the softmax of the reference r and c the candidate, KL = sum p * (r - c) - logsumexp(r) + logsumexp(c). The
    sums are kept relative to running maxima, so a row may come in pieces. A row with NaN or an infinity in either
    tensor has KL NaN. What rounding makes negative is clamped to 0, which no KL is below.

    Args:
        row_count: rows of the tensor.

    Attributes:
        total: the sum over all rows, in nats.
        worst: the largest value, in nats, and its row.
        percentile: the 99th of the rows, in nats.
    """

    def __init__(self, row_count: int) -> None:
        self.total = 0.0
        self.worst = Peak()
        self.percentile = HighPercentile(row_count)
        self._state: tuple[torch.Tensor, ...] | None = None

    def update(
        self,
        candidate: torch.Tensor,
        reference: torch.Tensor,
        row: int,
        completes: bool,
        scratch: tuple[torch.Tensor, torch.Tensor],
    ) -> None:
        """Take in a piece of the rows that come next.

        Args:
            candidate: logits, float64 [rows, columns].
            reference: likewise.
            row: the first row's number.
            completes: whether the piece ends its rows.
            scratch: two float64 tensors of the same shape, overwritten.
        """
        top_r, top_c = reference.amax(-1), candidate.amax(-1)
        if self._state is not None:
            top_r, top_c = torch.maximum(top_r, self._state[0]), torch.maximum(top_c, self._state[3])
        weights = torch.sub(reference, top_r.unsqueeze(-1), out=scratch[0]).exp_()
        sum_r = weights.sum(-1)
        moment = torch.linalg.vecdot(weights, torch.sub(reference, candidate, out=scratch[1]))
        sum_c = torch.sub(candidate, top_c.unsqueeze(-1), out=scratch[1]).exp_().sum(-1)
        if self._state is not None:
            old_top_r, old_sum_r, old_moment, old_top_c, old_sum_c = self._state
            shrink_r, shrink_c = torch.exp(old_top_r - top_r), torch.exp(old_top_c - top_c)
            sum_r, moment = sum_r + old_sum_r * shrink_r, moment + old_moment * shrink_r
            sum_c = sum_c + old_sum_c * shrink_c
        if not completes:
            self._state = (top_r, sum_r, moment, top_c, sum_c)
            return
        self._state = None
        divergence = moment / sum_r - (top_r + sum_r.log()) + (top_c + sum_c.log())
        divergence.clamp_(min=0.0)
        self.total += float(divergence.sum())
        self.worst.update(divergence, row)
        self.percentile.update(divergence)


class Largest:
    """The k largest elements of each row, as column indices; among equal values the lower column comes first.

    Args:
        k: how many; a row with fewer elements gives them all.
    """

    def __init__(self, k: int) -> None:
        self._k = k
        self._state: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(self, values: torch.Tensor, column: int, completes: bool) -> torch.Tensor | None:
        """Take in a piece of the rows that come next.

        Args:
            values: [rows, columns], any float dtype.
            column: the first column's number.
            completes: whether the piece ends its rows.

        Returns:
            The columns of the largest, [rows, k] int64, largest first, when the piece completes its rows; else None.
        """
        columns = _largest_columns(values, min(self._k, values.shape[-1]))
        best = values.gather(-1, columns)
        columns = columns + column
        if self._state is not None:
            best = torch.cat((self._state[0], best), -1)
            columns = torch.cat((self._state[1], columns), -1)
            order = best.sort(dim=-1, descending=True, stable=True).indices[:, : self._k]
            best, columns = best.gather(-1, order), columns.gather(-1, order)
        self._state = None if completes else (best, columns)
        return columns if completes else None


def _largest_columns(values: torch.Tensor, k: int) -> torch.Tensor:
    """Return the columns of the k largest of each row, [rows, k]; of equal values the lower column comes first."""
    best, columns = values.topk(min(k + 1, values.shape[-1]), dim=-1)
    tied = (best[:, 1:] == best[:, :-1]).any(-1).nonzero().view(-1).tolist()
    for row in tied:
        place = (values[row] >= best[row, k - 1]).nonzero().view(-1)
        order = values[row][place].sort(descending=True, stable=True).indices[:k]
        columns[row, :k] = place[order]
    return columns[:, :k]


def share_common(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Return how many of a row's ids are in the same row of both, of all of its ids: |A n B| / k, [rows] float64.

    Args:
        ours: [rows, k] integers, different ones in each row.
        theirs: likewise.
    """
    shared = torch.cat((ours, theirs), -1).sort(dim=-1).values
    return (shared[:, 1:] == shared[:, :-1]).sum(-1).double() / ours.shape[-1]


class Overlap:
    """The share of the reference's k largest logits that are also among the candidate's k largest: |A n B| / k.

    Args:
        k: how many; where a row has fewer elements, all of them.

    Attributes:
        total: the sum of the shares over all rows.
        worst: the negated smallest share, and its row.
        top_1: rows on which both have the same largest element.
    """

    def __init__(self, k: int) -> None:
        self._candidate = Largest(k)
        self._reference = Largest(k)
        self.total = 0.0
        self.worst = Peak()
        self.top_1 = 0

    def update(self, candidate: torch.Tensor, reference: torch.Tensor, row: int, column: int, completes: bool) -> None:
        """Take in a piece of the rows that come next.

        Args:
            candidate: logits, [rows, columns], any float dtype.
            reference: likewise.
            row: the first row's number.
            column: the first column's number.
            completes: whether the piece ends its rows.
        """
        ours = self._candidate.update(candidate, column, completes)
        theirs = self._reference.update(reference, column, completes)
        if ours is None or theirs is None:
            return
        self.top_1 += int((ours[:, 0] == theirs[:, 0]).sum())
        share = share_common(ours, theirs)
        self.total += float(share.sum())
        self.worst.update(-share, row)
