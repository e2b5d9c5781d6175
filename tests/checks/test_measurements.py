"""What a pass measured, as the reports have it: every number under its name, and the errors folded by token."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specrunner.checks.measure import Wanted, measure
from specrunner.checks.measurements import Measurements, bucket_size, encode_number, fold_by_token
from specrunner.checks.sources import MemorySource


@pytest.mark.parametrize(
    ("value", "encoded"),
    [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf"), (0.0, 0.0), (-1.5, -1.5), (3, 3)],
)
def test_numbers_that_json_has_no_word_for(value: float, encoded: Any) -> None:
    assert encode_number(value) == encoded


@given(st.integers(1, 40), st.integers(1, 3), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_neighbours_are_told_by_their_worst(tokens: int, per_token: int, most: int, seed: int) -> None:
    errors = torch.rand(tokens * per_token, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    size = bucket_size(tokens, most)
    assert (size - 1) * most < tokens <= size * most
    by_token = errors.view(tokens, per_token).amax(-1).tolist()
    expected = [max(by_token[start : start + size]) for start in range(0, tokens, size)]
    assert fold_by_token(errors, tokens, most) == pytest.approx(expected, rel=6e-3)


def test_nan_is_worse_than_any_error() -> None:
    assert fold_by_token(torch.tensor([0.5, math.nan, 2.0, math.inf, 0.25, 0.125]), 6, 3) == ["inf", "inf", 0.25]
    assert fold_by_token(torch.tensor([0.123456]), 1) == [0.123]


def take(candidate: Any, reference: Any, peer: Any = None, wanted: Wanted | None = None) -> Measurements:
    sources = [MemorySource("x", torch.as_tensor(side)) for side in (candidate, reference)]
    noise = None if peer is None else MemorySource("x", torch.as_tensor(peer))
    return measure(*sources, peer=noise, wanted=wanted)


def test_errors_by_token_for_a_heat_map() -> None:
    reference = torch.ones(2, 2, 4)
    candidate, peer = reference.clone(), reference.clone()
    candidate[1, 0] += 0.5
    peer[0, 1] += 0.25
    told = take(candidate, reference, peer).describe_tokens()["token_errors"]
    assert told == {"tokens": 2, "tokens_per_number": 1, "largest": [0.0, 0.5], "peer": [0.25, 0.0]}
    assert "peer" not in take(candidate, reference).describe_tokens()["token_errors"]
    long = take(torch.ones(300, 1), torch.ones(300, 1)).describe_tokens()["token_errors"]
    assert (long["tokens"], long["tokens_per_number"], len(long["largest"])) == (300, 2, 150)
    # One row whose first axis is no count of tokens, and a scalar: nothing to draw.
    assert take(torch.ones(5), torch.ones(5)).describe_tokens() == {}
    assert take(torch.tensor(1.0), torch.tensor(1.0)).describe_tokens() == {}


def test_every_number_has_its_name() -> None:
    reference = torch.tensor([[3.0, 4.0], [0.0, 0.0], [6.0, 8.0]], dtype=torch.float64)
    candidate = torch.tensor([[3.0, 4.5], [0.0, 0.0], [6.0, 9.0]], dtype=torch.float64)
    peer = torch.tensor([[3.0, 4.25], [0.0, 0.0], [6.0, 8.0]], dtype=torch.float64)
    numbers = take(candidate, reference, peer, Wanted(differing=True, kl=True, top_k=(1,))).to_json()
    assert numbers["shape"] == [3, 2]
    assert (numbers["candidate_dtype"], numbers["reference_dtype"]) == ("float64", "float64")
    assert (numbers["elements"], numbers["rows"], numbers["differing"]) == (6, 3, 2)
    assert (numbers["max_abs"], numbers["max_abs_token"], numbers["mean_abs"]) == (1.0, 2, 0.25)
    assert (numbers["max_relative"], numbers["max_relative_token"]) == (0.125, 0)
    assert numbers["relative_l2"] == pytest.approx(math.sqrt(1.25 / 125))
    assert (numbers["max_relative_l2"], numbers["max_relative_l2_token"]) == (pytest.approx(0.1), 0)
    assert numbers["p99_relative_l2"] == pytest.approx(0.1)
    cosine = 27.0 / (5.0 * math.hypot(3.0, 4.5))
    assert (numbers["min_cosine"], numbers["min_cosine_token"]) == (pytest.approx(cosine), 0)
    assert (numbers["min_sqnr"], numbers["min_sqnr_token"]) == (pytest.approx(20.0), 0)
    assert (numbers["max_ulp"], numbers["max_ulp_token"]) == (2**49, 0)
    assert numbers["over_one_ulp"] == pytest.approx(1 / 3)
    assert (numbers["mean_top_1_overlap"], numbers["min_top_1_overlap"], numbers["top_1_agreement"]) == (1.0, 1.0, 1.0)
    assert numbers["max_kl_token"] == 2
    assert 0 < numbers["mean_kl"] < numbers["p99_kl"] == numbers["max_kl"]
    assert numbers["peer_relative_l2"] == pytest.approx(math.sqrt(0.0625 / 125))
    assert numbers["floor_needed"] == pytest.approx(math.sqrt(1.25 / 0.0625))
    assert (numbers["floor_needed_by_token"], numbers["floor_token"]) == ("inf", 2), "that row has no floor"
    assert numbers["floor_epsilon"] == 2.0**-52
    assert numbers["first_difference"] == {"index": 1, "token": 0, "candidate": 4.5, "reference": 4.0}
    assert not {"compared", "undefined_cosines", "peer_non_finite"} & numbers.keys()


def test_what_is_not_finite_is_told_only_where_it_is() -> None:
    numbers = take([[math.nan, 1.0, math.inf, -math.inf]], [[1.0, 1.0, math.inf, 1.0]], [[1.0, math.nan, 1.0, 1.0]])
    told = numbers.to_json()
    names = ("candidate_nan", "candidate_inf", "reference_nan", "reference_inf", "equal_infinities", "compared")
    assert [told[name] for name in names] == [1, 2, 0, 1, 1, 1]
    assert (told["unmatched_non_finite"], told["peer_non_finite"]) == (2, 1)
    assert take([[0.0, 0.0]], [[1.0, 0.0]]).to_json()["undefined_cosines"] == 1
