"""Units in the last place."""

from __future__ import annotations

import math
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specrunner.checks.units import ulp_distances, unit_in_last_place


@pytest.mark.parametrize(
    ("value", "dtype", "unit"),
    [
        (16.0, torch.bfloat16, 0.125),
        (31.9, torch.bfloat16, 0.125),
        (-20.0, torch.bfloat16, 0.125),
        (32.0, torch.bfloat16, 0.25),
        (1.0, torch.float32, 2.0**-23),
        (1.0, torch.float16, 2.0**-10),
        (0.0, torch.float16, 2.0**-24),
        (0.0, torch.float32, 2.0**-149),
        (2.0**-14, torch.float16, 2.0**-24),
    ],
)
def test_unit_in_last_place(value: float, dtype: torch.dtype, unit: float) -> None:
    assert unit_in_last_place(value, dtype) == unit


@given(st.floats(-(2.0**127), 2.0**127, width=32))
def test_unit_of_float32_is_numpys_spacing(value: float) -> None:
    assert unit_in_last_place(value, torch.float32) == abs(float(numpy.spacing(numpy.float32(value))))


def test_no_unit_without_a_number() -> None:
    assert math.isnan(unit_in_last_place(math.inf, torch.float32))
    assert math.isnan(unit_in_last_place(math.nan, torch.float32))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_distances_count_every_number_of_a_small_dtype(dtype: torch.dtype) -> None:
    """Sort all finite numbers; the distance of two is the difference of their places, both zeros sharing one."""
    integer = torch.int16 if dtype.itemsize == 2 else torch.int8
    every = torch.arange(torch.iinfo(integer).min, torch.iinfo(integer).max + 1).to(integer).view(dtype)
    every = every[torch.isfinite(every.float())]
    places = {value: place for place, value in enumerate(sorted(set(every.double().tolist())))}
    other = every[torch.randperm(every.numel(), generator=torch.Generator().manual_seed(0))]
    expected = [
        abs(places[x] - places[y]) for x, y in zip(every.double().tolist(), other.double().tolist(), strict=True)
    ]
    assert ulp_distances(every, other).tolist() == expected


def test_opposite_signs_do_not_overflow() -> None:
    largest = torch.tensor([torch.finfo(torch.float32).max, 3.0, 1e-45])
    distances = ulp_distances(largest, -largest)
    assert distances.tolist() == [2.0 * 0x7F7FFFFF, 2.0 * 0x40400000, 2.0]


def test_the_reference_is_rounded_first() -> None:
    reference = torch.tensor([1.0 + 2**-9, 1.0 + 2**-7])
    assert ulp_distances(torch.tensor([1.0, 1.0], dtype=torch.bfloat16), reference).tolist() == [0, 1]


def test_numbers_of_opposite_signs_whose_bits_are_all_opposite() -> None:
    one = torch.tensor([1.0])
    other = torch.bitwise_not(one.view(torch.int32)).view(torch.float32)  # just above -4
    assert float(other) < -3.9
    assert ulp_distances(one, other).tolist() == [0x3F800000 + 0x407FFFFF]


@pytest.mark.parametrize(
    ("dtype", "farthest"),
    [
        (torch.float8_e4m3fn, 2 * 0x7E),
        (torch.float8_e5m2, 2 * 0x7B),
        (torch.float16, 2 * 0x7BFF),
        (torch.bfloat16, 2 * 0x7F7F),
        (torch.float32, 2 * 0x7F7FFFFF),
    ],
)
def test_a_reference_beyond_the_dtype_is_next_to_none_of_its_numbers(dtype: torch.dtype, farthest: int) -> None:
    largest = torch.finfo(dtype).max
    candidate = torch.tensor([largest, -largest, largest, 1.0], dtype=dtype)
    reference = torch.tensor([1e300, -1e300, largest, 1.0], dtype=torch.float64)
    assert ulp_distances(candidate, reference).tolist() == [farthest, farthest, 0, 0]


def test_a_number_of_the_widest_small_dtype_is_beyond_the_narrowest() -> None:
    reference = torch.tensor([57344.0, 448.0]).to(torch.float8_e5m2)
    assert ulp_distances(torch.full((2,), 448.0).to(torch.float8_e4m3fn), reference).tolist() == [2 * 0x7E, 0]


NUMPYS: dict[torch.dtype, tuple[Any, Any]] = {
    torch.float16: (numpy.float16, numpy.int16),
    torch.float32: (numpy.float32, numpy.int32),
}


def count_by_numpy(candidate: float, reference: float, dtype: torch.dtype) -> int:
    """Return how many steps apart two numbers are on numpy's own line of the finite numbers of a dtype."""
    kind, integer = NUMPYS[dtype]
    with numpy.errstate(over="ignore"):
        rounded = kind(reference)
    if numpy.isinf(rounded):
        return 2 * int(numpy.finfo(kind).max.view(integer))
    places = [int(numpy.abs(x).view(integer)) * (-1 if x < 0 else 1) for x in (kind(candidate), rounded)]
    return abs(places[0] - places[1])


@given(
    st.sampled_from([torch.float16, torch.float32]),
    st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.floats(65000.0, 66000.0), st.floats(-2.0, 2.0)),
    st.data(),
)
def test_distances_are_numpys_up_to_what_overflows(dtype: torch.dtype, reference: float, data: st.DataObject) -> None:
    width = 8 * dtype.itemsize
    candidate = data.draw(st.floats(allow_nan=False, allow_infinity=False, width=width))  # type: ignore[arg-type]
    pair = torch.tensor([candidate], dtype=dtype), torch.tensor([reference], dtype=torch.float64)
    assert ulp_distances(*pair).tolist() == [count_by_numpy(candidate, reference, dtype)]
