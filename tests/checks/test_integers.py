"""Integer tensors against a plain reading, for any cut into blocks."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specrunner.checks.integers import compare_integers
from specrunner.checks.sources import MemorySource

SHAPES = st.lists(st.integers(1, 4), min_size=0, max_size=3).map(tuple)


@given(SHAPES, st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 3, 5, 7, 49_152]))
def test_what_differs_is_counted_and_the_first_is_named(shape: tuple[int, ...], seed: int, blocks: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    reference, candidate = (torch.randint(0, 3, shape, generator=generator) for _ in range(2))
    message, numbers = compare_integers(
        MemorySource("x", candidate), MemorySource("x", reference), block_elements=blocks
    )
    pairs = list(zip(candidate.flatten().tolist(), reference.flatten().tolist(), strict=True))
    wrong = [index for index, (ours, theirs) in enumerate(pairs) if ours != theirs]
    # A vector is one token; with more axes, the first one counts the tokens.
    per_token = len(pairs) // shape[0] if len(shape) > 1 else len(pairs)
    tokens = {index // per_token for index in wrong}
    assert (numbers["elements"], numbers["differing"]) == (math.prod(shape), len(wrong))
    assert numbers["tokens_differing"] == len(tokens)
    if not wrong:
        assert message == "" and "first_difference" not in numbers
        return
    ours, theirs = pairs[wrong[0]]
    token = wrong[0] // per_token
    assert numbers["first_difference"] == {"index": wrong[0], "token": token, "candidate": ours, "reference": theirs}
    assert message == (
        f"{len(wrong)} of {len(pairs)} elements differ, at {len(tokens)} tokens; "
        f"first at token {token}: {ours} against {theirs}"
    )


DTYPES = (torch.int8, torch.uint8, torch.int32, torch.int64, torch.uint64)


@pytest.mark.parametrize(("one", "other"), [*itertools.product(DTYPES, DTYPES)])
def test_widths_are_compared_as_the_numbers_they_hold(one: torch.dtype, other: torch.dtype) -> None:
    for left, right in itertools.product((-1, 0, 1, 127, 2**62, 2**64 - 1), repeat=2):
        held = [
            torch.iinfo(dtype).min <= value <= torch.iinfo(dtype).max for value, dtype in ((left, one), (right, other))
        ]
        if not all(held):
            continue
        sources = [
            MemorySource("x", torch.tensor([value], dtype=dtype)) for value, dtype in ((left, one), (right, other))
        ]
        assert (compare_integers(*sources)[0] == "") == (left == right), (left, right)


def test_the_first_difference_is_found_in_the_middle_of_a_later_block() -> None:
    reference = torch.zeros(6, 3, dtype=torch.int64)
    candidate = reference.clone()
    candidate[3, 0] = candidate[5, 2] = 7
    _, numbers = compare_integers(MemorySource("x", candidate), MemorySource("x", reference), block_elements=6)
    assert numbers["first_difference"] == {"index": 9, "token": 3, "candidate": 7, "reference": 0}
    assert (numbers["differing"], numbers["tokens_differing"]) == (2, 2)
