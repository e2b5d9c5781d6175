"""Counting NaN and infinities, and taking them out of the arithmetic."""

from __future__ import annotations

from dataclasses import replace

import torch

from specrunner.checks.measurements import NonFinite


class Census:
    """Counts the non-finite values of candidate, reference and peer.

    Attributes:
        counts: without the first unmatched pair.
        masked: pairs taken out.
    """

    def __init__(self) -> None:
        self.counts = NonFinite()
        self.masked = 0

    def mask(self, candidate: torch.Tensor, reference: torch.Tensor) -> tuple[torch.Tensor | None, int | None]:
        """Count, and set both sides to 0 where either is not finite.

        Args:
            candidate: float64, overwritten.
            reference: float64 of the same shape, overwritten.

        Returns:
            Where they were not finite (None: everything is finite, only a sum of squares overflowed), and the flat
            place of the first pair that is not two equal infinities.
        """
        bad = ~(torch.isfinite(candidate) & torch.isfinite(reference))
        if not bool(bad.any()):
            return None, None
        equal = bad & (candidate == reference)
        unmatched = bad & ~equal
        counts, count = self.counts, torch.count_nonzero
        lonely = int(count(unmatched))
        self.counts = NonFinite(
            candidate_nan=counts.candidate_nan + int(count(candidate.isnan())),
            candidate_inf=counts.candidate_inf + int(count(candidate.isinf())),
            reference_nan=counts.reference_nan + int(count(reference.isnan())),
            reference_inf=counts.reference_inf + int(count(reference.isinf())),
            equal_infinities=counts.equal_infinities + int(count(equal)),
            unmatched=counts.unmatched + lonely,
            peer=counts.peer,
        )
        self.masked += int(count(bad))
        candidate.masked_fill_(bad, 0.0)
        reference.masked_fill_(bad, 0.0)
        return bad, int(unmatched.view(-1).int().argmax()) if lonely else None

    def count_peer(self, peer: torch.Tensor) -> None:
        """Count the peer's NaN and infinities; its rows are [rows, width] of any float dtype."""
        found = int(torch.count_nonzero(~torch.isfinite(peer)))
        if found:
            self.counts = replace(self.counts, peer=self.counts.peer + found)
