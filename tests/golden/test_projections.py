"""Random projections: the same signs everywhere, and estimates within their bound."""

from __future__ import annotations

import math

import numpy
import pytest
import torch

from specrunner.checks.sources import MemorySource
from specrunner.golden.projections import bound_factor, make_signs, project


def read_signs(columns: range, projections: int, seed: int) -> list[list[float]]:
    """splitmix64 in plain Python integers, one bit at a time."""

    def mix(word: int) -> int:
        mask = (1 << 64) - 1
        word = (word * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) & mask
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & mask
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & mask
        return word ^ (word >> 31)

    words = -(-projections // 64)
    table = []
    for column in columns:
        row: list[float] = []
        for word in range(words):
            bits = mix((column * words + word + mix(seed)) % (1 << 64))
            row += [1.0 if bits >> place & 1 else -1.0 for place in range(64)]
        table.append(row[:projections])
    return table


@pytest.mark.parametrize("projections", [1, 64, 100, 640])
@pytest.mark.parametrize("start", [0, 4090])
def test_signs_are_those_of_the_published_hash(projections: int, start: int) -> None:
    signs = make_signs(start, start + 9, projections, 7)
    assert signs.tolist() == read_signs(range(start, start + 9), projections, 7)


def test_signs_are_balanced_and_independent() -> None:
    signs = make_signs(0, 4096, 256, 1)
    assert abs(float(signs.mean())) < 4 / math.sqrt(signs.numel())
    products = signs.T @ signs / 4096 - torch.eye(256)
    assert float(products.abs().max()) < 6 / math.sqrt(4096)
    assert not torch.equal(signs, make_signs(0, 4096, 256, 2))


def test_projecting_in_pieces_is_the_whole_product() -> None:
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(5, 9000, generator=generator)
    expected = values.double() @ torch.tensor(read_signs(range(9000), 64, 11), dtype=torch.float64)
    assert torch.allclose(project(MemorySource("x", values), 64, 11), expected, rtol=1e-12, atol=1e-9)


def test_a_single_changed_element_is_measured_exactly() -> None:
    values = torch.zeros(1, 5000)
    values[0, 1234] = 0.75
    projected = project(MemorySource("x", values), 128, 5)
    assert float(projected.norm()) / math.sqrt(128) == pytest.approx(0.75, rel=1e-12)


def test_the_bound_holds_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(4)
    values = torch.randn(4000, 512, generator=generator, dtype=torch.float64)
    for projections in (160, 640):
        estimates = project(MemorySource("x", values), projections, 9).norm(dim=-1) / math.sqrt(projections)
        exceeded = (estimates * bound_factor(projections) < values.norm(dim=-1)).double().mean()
        assert float(exceeded) <= 1e-3
    assert bound_factor(640) < 1.14
    assert bound_factor(4) == math.inf


@pytest.mark.parametrize("projections", [640, 1000])
def test_the_bound_is_the_published_tail(projections: int) -> None:
    e = 1 - 1 / bound_factor(projections) ** 2
    assert numpy.exp(-projections / 2 * (e**2 / 2 - e**3 / 3)) == pytest.approx(1e-3, rel=1e-6)
