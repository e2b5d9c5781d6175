"""Slow, separate readings of every formula: plain Python floats, one element at a time, no torch arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import strategies as st

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
MANTISSA = {torch.float64: 52, torch.float32: 23, torch.bfloat16: 7, torch.float16: 10}
LOWEST = {torch.float64: -1022, torch.float32: -126, torch.bfloat16: -126, torch.float16: -14}

Matrix = list[list[float]]


def read_row_error(a: Sequence[float], r: Sequence[float]) -> float:
    distance = math.fsum((x - y) ** 2 for x, y in zip(a, r, strict=True))
    norm = math.fsum(y * y for y in r)
    if norm == 0:
        return math.inf if distance else 0.0
    return math.sqrt(distance / norm)


def read_cosine(a: Sequence[float], r: Sequence[float]) -> float:
    """0 where exactly one side is zero, 1 where both are."""
    squares = [math.fsum(x * x for x in row) for row in (a, r)]
    if 0 in squares:
        return 1.0 if squares == [0, 0] else 0.0
    product = math.fsum(x * y for x, y in zip(a, r, strict=True))
    return product / math.sqrt(squares[0]) / math.sqrt(squares[1])


def read_percentile(values: Sequence[float], percent: int = 99) -> float:
    """The smallest value that at least `percent` % of the values do not exceed."""
    return min(v for v in values if sum(w <= v for w in values) * 100 >= percent * len(values))


def rank(value: float, dtype: torch.dtype) -> int:
    """The number of representable numbers from 0 up to |value|, with the sign of value; by arithmetic, not by bits."""
    if value == 0:
        return 0
    mantissa, exponent = math.frexp(abs(value))
    exponent -= 1
    steps, lowest = 1 << MANTISSA[dtype], LOWEST[dtype]
    if exponent < lowest:
        whole, part = 0, math.ldexp(abs(value), MANTISSA[dtype] - lowest)
    else:
        whole, part = (exponent - lowest + 1) * steps, (2 * mantissa - 1) * steps
    assert part == int(part)
    count = whole + int(part)
    return count if value > 0 else -count


def read_kl(candidate: Sequence[float], reference: Sequence[float]) -> float:
    def log_softmax(row: Sequence[float]) -> list[float]:
        top = max(row)
        total = math.log(math.fsum(math.exp(x - top) for x in row))
        return [x - top - total for x in row]

    theirs, ours = log_softmax(reference), log_softmax(candidate)
    return math.fsum(math.exp(p) * (p - q) for p, q in zip(theirs, ours, strict=True))


def read_top(row: Sequence[float], k: int) -> list[int]:
    return sorted(range(len(row)), key=lambda index: (-row[index], index))[:k]


def values(dtype: torch.dtype) -> st.SearchStrategy[float]:
    """Finite numbers that meet the corners: zeros, ties, subnormals, sizes far apart."""
    info = torch.finfo(dtype)
    corners = [0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 3.0, 1e-3, -1e-3, 100.0, info.tiny, -info.tiny, info.tiny / 4]
    if dtype != torch.float64:
        corners += [info.max, info.min]
    return st.one_of(st.sampled_from(corners), st.floats(-1000, 1000, width=32))


@st.composite
def pairs(draw: Any, dtypes: Sequence[torch.dtype] = DTYPES, most_rows: int = 6, most_columns: int = 9) -> Any:
    """A candidate and a reference [rows, columns] of drawn dtypes; the candidate is often close to the reference."""
    rows, columns = draw(st.integers(1, most_rows)), draw(st.integers(1, most_columns))
    theirs, ours = draw(st.sampled_from(dtypes)), draw(st.sampled_from(dtypes))
    size = rows * columns
    reference = torch.tensor(draw(st.lists(values(theirs), min_size=size, max_size=size)), dtype=torch.float64)
    reference = reference.to(theirs).view(rows, columns)
    if draw(st.booleans()):
        factors = draw(st.lists(st.sampled_from([1.0, 1.0, 1.001, 0.99, 1 + 1e-7]), min_size=size, max_size=size))
        candidate = reference.double().view(-1) * torch.tensor(factors, dtype=torch.float64)
        limit = torch.finfo(ours).max
        candidate = candidate.clamp(-limit, limit).to(ours).view(rows, columns)
    else:
        candidate = torch.tensor(draw(st.lists(values(ours), min_size=size, max_size=size)), dtype=torch.float64)
        candidate = candidate.to(ours).view(rows, columns)
    return candidate, reference


def numbers(tensor: torch.Tensor) -> Matrix:
    """The rows of a tensor as Python floats, exactly."""
    return [[float(value) for value in row] for row in tensor.reshape(-1, tensor.shape[-1] if tensor.dim() else 1)]


def flat(tensor: torch.Tensor) -> list[float]:
    """All elements as Python floats, exactly."""
    return [value for row in numbers(tensor) for value in row]
