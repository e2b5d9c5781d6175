"""Distances of single elements: absolute, relative, in units of the last place, and against allclose bounds."""

from __future__ import annotations

import math

import torch

from specrunner.checks.extremes import Peak
from specrunner.checks.measurements import Difference
from specrunner.checks.units import ulp_distances


class ElementDistances:
    """Accumulates the distances of all pairs in which both sides are finite.

    Args:
        allclose: pairs (rtol, atol) to count violations of.
        count_differing: whether to count the pairs that differ.
        elements_per_token: elements that belong to one index of the first axis.

    Attributes:
        absolute: the largest |a-r| and its flat index.
        absolute_sum: the sum of |a-r|.
        relative: the largest |a-r| / |r|.
        ulp: the largest distance in units of the last place of the candidate's dtype.
        ulp_over_one: pairs further apart than one unit.
        excess: for each allclose pair, the largest |a-r| - (atol + rtol * |r|).
        outside: for each allclose pair, how many elements are beyond their bound.
        differing: pairs that differ, when counted.
        first: the first pair that differs.
    """

    def __init__(
        self, allclose: tuple[tuple[float, float], ...], count_differing: bool, elements_per_token: int
    ) -> None:
        self.absolute, self.relative, self.ulp = Peak(), Peak(), Peak()
        self.absolute_sum = 0.0
        self.ulp_over_one = 0
        self.excess = [Peak() for _ in allclose]
        self.outside = [0 for _ in allclose]
        self.differing = 0
        self.first: Difference | None = None
        self._allclose = allclose
        self._count_differing = count_differing
        self._elements_per_token = elements_per_token

    def update(
        self,
        stored: tuple[torch.Tensor, torch.Tensor],
        distance: torch.Tensor,
        magnitude: torch.Tensor,
        scratch: torch.Tensor,
        bad: torch.Tensor | None,
        start: int,
    ) -> None:
        """Take in one block.

        Args:
            stored: candidate and reference in their dtypes.
            distance: |a-r| in float64, 0 where `bad`.
            magnitude: |r| in float64, 0 where `bad`.
            scratch: float64 of the same shape, overwritten.
            bad: where a side is not finite, or None when nowhere.
            start: the flat index of the block's first element.
        """
        self.absolute.update(distance, start)
        self.absolute_sum += float(distance.sum())
        if self._count_differing:
            self.differing += int(torch.count_nonzero(distance))
        torch.div(distance, magnitude, out=scratch)
        if math.isnan(float(scratch.amax())):
            scratch.nan_to_num_(nan=0.0, posinf=math.inf)
        self.relative.update(scratch, start)
        for place, (rtol, atol) in enumerate(self._allclose):
            torch.mul(magnitude, rtol, out=scratch)
            scratch.add_(atol)
            torch.sub(distance, scratch, out=scratch)
            if self.excess[place].update(scratch, start) > 0:
                self.outside[place] += int(torch.count_nonzero(scratch.clamp_(min=0.0)))
        self._measure_units(stored, bad, start)
        if self.first is None and self.absolute.value > 0:
            self.first = self.pair(int((distance.view(-1) > 0).int().argmax()), stored, start)

    def _measure_units(self, stored: tuple[torch.Tensor, torch.Tensor], bad: torch.Tensor | None, start: int) -> None:
        units = ulp_distances(*stored)
        if bad is not None:
            units.masked_fill_(bad, 0)
        if self.ulp.update(units, start) > 1:
            self.ulp_over_one += int(torch.count_nonzero(units.sub_(1).clamp_(min=0)))

    def pair(self, place: int, stored: tuple[torch.Tensor, torch.Tensor], start: int) -> Difference:
        """Return a pair of elements.

        Args:
            place: its flat place within the block.
            stored: the block of candidate and reference in their dtypes.
            start: the flat index of the block's first element.
        """
        values = [float(tensor.reshape(-1)[place]) for tensor in stored]
        index = start + place
        return Difference(index, index // self._elements_per_token, values[0], values[1])
