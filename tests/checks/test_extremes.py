"""Peaks and percentiles of a stream do not depend on how it is cut."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specrunner.checks.extremes import HighPercentile, Peak
from tests.checks.readings import read_percentile


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, 2.5, 7.0, math.inf]), min_size=1, max_size=250), st.integers(1, 60))
def test_percentile_is_the_nearest_rank(values: list[float], piece: int) -> None:
    percentile = HighPercentile(len(values))
    for start in range(0, len(values), piece):
        percentile.update(torch.tensor(values[start : start + piece], dtype=torch.float64))
    assert percentile.value() == read_percentile(values)


def test_percentile_of_many_keeps_few() -> None:
    values = torch.randperm(1_000_000, generator=torch.Generator().manual_seed(1)).double()
    percentile = HighPercentile(values.numel())
    for part in values.split(70_001):
        percentile.update(part)
    # 990,000 of the numbers 0 ... 999,999 do not exceed 989,999.
    assert percentile.value() == 989_999
    assert percentile._buffer.numel() < 100_000


def test_percentile_with_nan_is_nan() -> None:
    percentile = HighPercentile(3)
    percentile.update(torch.tensor([1.0, math.nan, 2.0], dtype=torch.float64))
    assert math.isnan(percentile.value())


def test_peak_keeps_the_first_place() -> None:
    peak = Peak()
    assert peak.update(torch.tensor([1.0, 3.0]), 0) == 3.0
    peak.update(torch.tensor([3.0, 2.0]), 2)
    assert (peak.value, peak.index) == (3.0, 1)
    peak.update(torch.tensor([2.0, math.nan, math.nan]), 4)
    peak.update(torch.tensor([9.0, math.nan]), 7)
    assert math.isnan(peak.value)
    assert peak.index == 5


def test_peak_of_minus_infinity_has_a_place() -> None:
    peak = Peak()
    peak.update(torch.tensor([-math.inf, -math.inf]), 10)
    assert (peak.value, peak.index) == (-math.inf, 10)


@pytest.mark.parametrize("count", [1, 99, 100, 101, 200, 700])
def test_percentile_by_count(count: int) -> None:
    percentile = HighPercentile(count)
    percentile.update(torch.arange(count, dtype=torch.float64))
    assert percentile.value() == read_percentile([float(value) for value in range(count)])
