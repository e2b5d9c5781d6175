"""Comparing token ids."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specrunner.checks.tokens import compare_prompt_ids, compare_tokens
from specrunner.token_ids import common_prefix

IDS = st.lists(st.integers(0, 3), max_size=6)


@given(IDS, IDS)
def test_exact_passes_only_on_equal_ids_and_at_least_one(candidate: list[int], reference: list[int]) -> None:
    result = compare_tokens(candidate, reference, location="specs/x.yaml:3")
    assert result.passed == (candidate == reference and bool(candidate))
    assert bool(result.message) != result.passed
    assert result.measurements["candidate_length"] == len(candidate)
    assert result.measurements["reference_length"] == len(reference)
    prefix = result.measurements["common_prefix"]
    assert candidate[:prefix] == reference[:prefix]
    assert candidate[prefix : prefix + 1] != reference[prefix : prefix + 1] or candidate == reference
    json.dumps(dict(result.measurements))


def test_the_first_mismatch_is_named() -> None:
    result = compare_tokens([5, 6, 7, 8], [5, 6, 9], location="specs/x.yaml:3")
    assert result.message == "first mismatch at position 2: token 7 against token 9 (4 tokens against 3)"
    assert (result.subject, result.rule, result.location) == ("tokens", "exact", "specs/x.yaml:3")
    numbers = result.measurements
    assert (numbers["first_mismatch"], numbers["candidate_token"], numbers["reference_token"]) == (2, 7, 9)


@pytest.mark.parametrize(("candidate", "ours"), [([5, 6], "the end"), ([5, 6, 9, 1], "token 1")])
def test_a_side_that_ends_first_is_a_mismatch(candidate: list[int], ours: str) -> None:
    result = compare_tokens(candidate, [5, 6, 9])
    assert not result.passed
    assert ours in result.message


def test_nothing_never_passes() -> None:
    assert compare_tokens([], []).message == "compared nothing: both sides are empty"
    for candidate, reference, message in (
        (None, [1], "missing in candidate"),
        ([1], None, "missing in reference"),
        (None, None, "missing in candidate and reference"),
    ):
        result = compare_tokens(candidate, reference)
        assert (result.passed, result.rule, result.message) == (False, "evidence", message)


def test_other_rules_are_not_judged_from_ids() -> None:
    assert not compare_tokens([1], [1], rule="near_tie").passed


def test_prompts() -> None:
    assert compare_prompt_ids([1, 2], (1, 2)).passed
    result = compare_prompt_ids([1], [2])
    assert (result.subject, result.passed) == ("tokenization", False)


def test_common_prefix() -> None:
    assert [common_prefix(*pair) for pair in (([], []), ([1], []), ([1, 2], [1, 2]), ([1, 2], [1, 3]))] == [0, 0, 2, 1]


@pytest.mark.parametrize(("place", "start"), [(0, 0), (3, 0), (6, 2), (19, 15)])
def test_the_ids_around_a_mismatch_are_kept_for_the_reader(place: int, start: int) -> None:
    reference = list(range(100, 120))
    candidate = [*reference[:place], 7, *reference[place + 1 :]]
    numbers = compare_tokens(candidate, reference).measurements
    assert (numbers["window_start"], numbers["common_prefix"]) == (start, place)
    assert numbers["candidate_window"] == candidate[start : place + 5]
    assert numbers["reference_window"] == reference[start : place + 5]
    assert (numbers["candidate_length"], numbers["reference_length"]) == (20, 20)
