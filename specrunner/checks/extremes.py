"""Running extremes: the largest value of a stream with its place, and an exact high percentile in bounded memory."""

from __future__ import annotations

import math

import torch


class Peak:
    """The largest value seen and the index where it first stood; NaN counts as larger than everything.

    Attributes:
        value: the largest value, or -inf before the first one.
        index: its place, or None before the first one.
    """

    __slots__ = ("index", "value")

    def __init__(self) -> None:
        self.value = -math.inf
        self.index: int | None = None

    def update(self, values: torch.Tensor, start: int) -> float:
        """Take in values of any float or integer dtype and shape [n, …], n > 0; return their largest.

        Args:
            values: in the order of their indices.
            start: the index of the first of them.
        """
        top = float(values.amax())
        if self.index is None or top > self.value or (math.isnan(top) and not math.isnan(self.value)):
            self.value = top
            self.index = start + int(values.argmax())
        return top


class HighPercentile:
    """The nearest-rank percentile of a stream of known length: the smallest value not exceeded by `percent` %.

    Only the values from the percentile up are kept, so the 99th of n values needs memory for about n / 50 of them, and
    the result is exact: it does not depend on how the stream is cut. NaN anywhere makes it NaN.

    Args:
        count: how many values will come.
        percent: for example 99.
    """

    def __init__(self, count: int, percent: int = 99) -> None:
        self._keep = max(1, count + 1 + (-percent * count) // 100)
        # One buffer for all values: thousands of small tensors between large ones would fragment the heap.
        self._buffer = torch.empty(max(1, min(count, 2 * self._keep + 65536)), dtype=torch.float64)
        self._held = 0

    def update(self, values: torch.Tensor) -> None:
        """Take in values [n] of any float dtype; NaN counts as larger than everything."""
        room = max(1, self._buffer.numel() - self._keep)
        for start in range(0, values.numel(), room):
            part = values[start : start + room]
            if self._held + part.numel() > self._buffer.numel():
                self._shrink()
            self._buffer[self._held : self._held + part.numel()] = part
            self._held += part.numel()

    def _shrink(self) -> None:
        if self._held > self._keep:
            self._buffer[: self._keep] = self._buffer[: self._held].topk(self._keep).values
            self._held = self._keep

    def value(self) -> float:
        """Return the percentile of all values seen; all of them must have come."""
        self._shrink()
        values = self._buffer[: self._held]
        return math.nan if bool(values.isnan().any()) else float(values.amin())
