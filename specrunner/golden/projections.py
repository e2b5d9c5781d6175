"""Seeded random projections: a few numbers a row from which the distance of two rows can be estimated.

A row x of width w becomes P x / sqrt(m), where P is m x w and each entry is +1 or -1 with equal probability
(Achlioptas, "Database-friendly random projections", JCSS 66, 2003). |Px|^2 / m estimates |x|^2 without bias and with
relative variance at most 2/m; P is linear, so the projection of a difference is the difference of projections. P is
never stored: entry (i, j) is bit i of words hashed from the seed and the column j.
"""

from __future__ import annotations

import math
import sys
from functools import cache, lru_cache

import torch

from specrunner.checks.sources import TensorSource

COLUMNS = 4096
"""Columns whose signs are made at a time: 4096 x 640 signs take 21 MB as float64."""

ROWS = 1024
"""Rows that are read at a time."""

CONFIDENCE = 1e-3
"""How often, at most, a row's true distance exceeds the bound that `bound_factor` gives."""

_WORD = 64


def project(source: TensorSource, projections: int, seed: int) -> torch.Tensor:
    """Project every row.

    Args:
        source: any float dtype, finite.
        projections: m, how many numbers a row becomes.
        seed: which P; equal seeds give equal P on every machine.

    Returns:
        [rows, projections] float64, P x (not yet divided by sqrt(m)).
    """
    total = torch.zeros(source.row_count, projections, dtype=torch.float64)
    for start in range(0, source.row_count, ROWS):
        rows = source.rows(start, min(start + ROWS, source.row_count))
        for column in range(0, source.width, COLUMNS):
            stop = min(column + COLUMNS, source.width)
            total[start : start + ROWS] += rows[:, column:stop].double() @ make_signs(column, stop, projections, seed)
    return total


def make_signs(start: int, stop: int, projections: int, seed: int) -> torch.Tensor:
    """Return the columns from `start` up to `stop` of P, transposed: [stop - start, projections] float64 of +1, -1."""
    words = -(-projections // _WORD)
    columns = torch.arange(start, stop, dtype=torch.int64).unsqueeze(-1)
    counters = columns * words + torch.arange(words, dtype=torch.int64)
    bits = _mix(counters + _mix(torch.tensor(seed, dtype=torch.int64)))
    octets = bits.view(torch.uint8)
    if sys.byteorder == "big":
        octets = octets.view(-1, 8).flip(-1)
    return _signs_of_octets()[octets.flatten().int()].view(stop - start, -1)[:, :projections]


@cache
def _signs_of_octets() -> torch.Tensor:
    """Return the signs that the eight bits of every octet stand for, the lowest first: [256, 8] float64."""
    bits = torch.arange(256).unsqueeze(-1) >> torch.arange(8) & 1
    return bits.double() * 2 - 1


def _mix(words: torch.Tensor) -> torch.Tensor:
    """Hash 64-bit counters (splitmix64: Steele, Lea, Flood, OOPSLA 2014); int64 arithmetic wraps as uint64's does."""
    words = words * -7046029254386353131 + -7046029254386353131  # 0x9E3779B97F4A7C15
    words = (words ^ _shift_right(words, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    words = (words ^ _shift_right(words, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return words ^ _shift_right(words, 31)


def _shift_right(words: torch.Tensor, count: int) -> torch.Tensor:
    """Shift without the sign."""
    return (words >> count) & ((1 << (64 - count)) - 1)


@lru_cache
def bound_factor(projections: int, confidence: float = CONFIDENCE) -> float:
    """Return by how much an estimated distance must be multiplied to bound the true one from above.

    P(|Px|^2/m <= (1-e)|x|^2) <= exp(-m/2 (e^2/2 - e^3/3)) (Achlioptas 2003, lemma 5.1); e is chosen so that the right
    side is `confidence`, and the factor is 1 / sqrt(1-e).
    """
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        tail = math.exp(-projections / 2 * (middle**2 / 2 - middle**3 / 3))
        low, high = (middle, high) if tail > confidence else (low, middle)
    if high > 0.99:
        return math.inf
    return 1 / math.sqrt(1 - high)
