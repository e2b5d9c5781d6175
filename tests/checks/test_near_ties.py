"""The gap rule, its mirror image, and the verdict on a re-forced run."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specrunner.checks.near_ties import NearTie, Segment, compare_near_ties, find_tie

LOGIT = st.floats(-40, 40, width=16)


def find(candidate: list[float], reference: list[float], kappa: float = 1.0, ours: int = 1, theirs: int = 0) -> NearTie:
    return find_tie(ours, theirs, torch.tensor(candidate), torch.tensor(reference), dtype=torch.bfloat16, kappa=kappa)


def test_a_gap_of_one_unit_is_a_tie_and_more_is_not() -> None:
    # The largest logit is in [16, 32), so a bfloat16 unit is 0.125.
    assert find([20.0, 20.125, 0.0], [20.125, 20.0, 0.0]).is_tie
    tie = find([20.0, 20.125, 0.0], [20.25, 20.0, 0.0])
    assert (tie.reference_gap, tie.reference_limit, tie.candidate_gap, tie.candidate_limit) == (
        0.25,
        0.125,
        0.125,
        0.125,
    )
    assert not tie.is_tie
    assert not find([20.0, 20.25, 0.0], [20.125, 20.0, 0.0]).is_tie  # the mirror image
    assert find([20.0, 20.25, 0.0], [20.125, 20.0, 0.0], kappa=2.0).is_tie


def test_the_unit_is_that_of_the_larger_of_the_two_logits() -> None:
    assert not find([3.0, 3.1, 0.0], [3.1, 3.0, 0.0]).is_tie
    tie = find([4.0, 4.03, 0.0], [4.0, 3.99, 0.0])
    assert (tie.candidate_limit, tie.reference_limit, tie.is_tie) == (2.0**-5, 2.0**-5, True)


@pytest.mark.parametrize("filler", [-20.0, -1e6, torch.finfo(torch.float32).min, -math.inf])
def test_a_filler_elsewhere_makes_no_tie(filler: float) -> None:
    near, far = find([3.0, 3.01, filler], [3.01, 3.0, filler]), find([3.0, 9.0, filler], [3.1, 3.0, filler])
    assert (near.is_tie, near.reference_limit, far.is_tie) == (True, 2.0**-6, False)


def test_a_side_that_did_not_choose_its_larger_logit_is_no_tie() -> None:
    assert not find([20.0, 15.0, 0.0], [20.125, 20.0, 0.0]).is_tie
    assert not find([20.0, 20.125, 0.0], [15.0, 20.0, 0.0]).is_tie


def test_kappa_of_zero_means_equal_logits() -> None:
    assert find([20.0, 20.0], [20.0, 20.0], kappa=0.0).is_tie
    assert not find([20.0, 20.125], [20.0, 20.0], kappa=0.0).is_tie


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("place", [0, 1])
def test_logits_that_are_not_finite_are_no_tie(value: float, side: int, place: int) -> None:
    logits = [[20.0, 20.0, 1.0], [20.0, 20.0, 1.0]]
    assert find(*logits).is_tie
    logits[side][place] = value
    tie = find(*logits, kappa=1e9)
    assert not tie.is_tie
    json.dumps(tie.to_json(), allow_nan=False)


def test_a_masked_vocabulary_does_not_widen_the_limit() -> None:
    tie = find([20.0, 20.125, -math.inf], [20.125, 20.0, -math.inf])
    assert tie.reference_limit == 0.125


@settings(deadline=None)
@given(st.lists(st.tuples(LOGIT, LOGIT), min_size=2, max_size=8), st.floats(0, 8))
def test_ties_follow_the_formula(logits: list[tuple[float, float]], kappa: float) -> None:
    candidate, reference = ([pair[side] for pair in logits] for side in (0, 1))

    def limit(row: list[float]) -> float:
        exponent = math.floor(math.log2(max(abs(row[0]), abs(row[1]), 2.0**-126)))
        return kappa * 2.0 ** (exponent - 7)

    tie = find(candidate, reference, kappa)
    expected = abs(reference[0] - reference[1]) <= limit(reference)
    expected = expected and abs(candidate[1] - candidate[0]) <= limit(candidate)
    assert tie.is_tie == expected
    mirrored = find_tie(0, 1, torch.tensor(reference), torch.tensor(candidate), dtype=torch.bfloat16, kappa=kappa)
    assert mirrored.is_tie == tie.is_tie


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="outside"):
        find([1.0, 2.0], [1.0, 2.0], ours=2)
    with pytest.raises(ValueError, match="shapes"):
        find([1.0, 2.0], [1.0, 2.0, 3.0])


def tie(ours: int, theirs: int, gap: float = 0.0) -> NearTie:
    return NearTie(ours, theirs, gap, 0.125, gap, 0.125)


REFERENCE = [10, 11, 12, 13, 14]


def judge(segments: list[Segment], ties: dict[int, NearTie], max_share: float = 0.4) -> tuple[bool, str]:
    result = compare_near_ties(REFERENCE, segments, ties, max_share=max_share, location="specs/x.yaml:2")
    assert bool(result.message) != result.passed
    json.dumps(dict(result.measurements), allow_nan=False)
    return result.passed, result.message


def test_runs_that_follow_the_reference_up_to_ties_pass() -> None:
    assert judge([Segment(0, REFERENCE)], {}) == (True, "")
    assert judge([Segment(0, [10, 99, 98]), Segment(2, [12, 13, 14])], {1: tie(99, 11)}) == (True, "")
    two = [Segment(0, [10, 99]), Segment(2, [12, 97, 1]), Segment(4, [14])]
    assert judge(two, {1: tie(99, 11), 3: tie(97, 13)}) == (True, "")
    assert judge([Segment(0, [10, 11, 12, 13, 99]), Segment(5, [])], {4: tie(99, 14)}) == (True, "")


@pytest.mark.parametrize(
    ("segments", "ties", "message"),
    [
        ([], {}, "compared nothing"),
        ([Segment(0, [10, 99])], {}, "without logits"),
        ([Segment(0, [10, 99])], {1: tie(99, 11, 0.25)}, "is no near tie"),
        ([Segment(0, [10, 99])], {1: tie(98, 11)}, "belong to other tokens"),
        ([Segment(0, [10, 99])], {1: tie(99, 11)}, "the run was not taken up again after the tie at position 1"),
        ([Segment(0, [10, 99]), Segment(3, [13, 14])], {1: tie(99, 11)}, "evidence is missing"),
        ([Segment(1, [11, 12, 13, 14])], {}, "evidence is missing"),
        ([Segment(0, [10, 11])], {}, "the candidate ends after 2 tokens, the reference after 5"),
        ([Segment(0, [*REFERENCE, 15])], {}, "the candidate ends after 6 tokens"),
        ([Segment(0, REFERENCE), Segment(5, [1])], {}, "in disorder"),
    ],
)
def test_what_fails(segments: list[Segment], ties: dict[int, NearTie], message: str) -> None:
    passed, found = judge(segments, ties)
    assert not passed
    assert message in found


def test_the_share_of_ties_is_bounded() -> None:
    two = [Segment(0, [10, 99]), Segment(2, [12, 97, 1]), Segment(4, [14])]
    ties = {1: tie(99, 11), 3: tie(97, 13)}
    assert judge(two, ties, 0.4)[0]
    assert judge(two, ties, 0.39) == (False, "2 of 5 tokens are near ties, more than 0.39 of them")


def test_an_empty_reference_compares_nothing() -> None:
    assert not compare_near_ties([], [Segment(0, [])], {}, max_share=1.0).passed


def test_a_later_run_that_ends_early_is_told_from_the_start_of_the_output() -> None:
    early = [Segment(0, [10, 11, 99]), Segment(3, [13])]
    assert judge(early, {2: tie(99, 12)}) == (False, "the candidate ends after 4 tokens, the reference after 5")
    dropped = [Segment(0, [10, 11, 99])]
    assert judge(dropped, {2: tie(99, 12)}) == (
        False,
        "evidence is missing: the run was not taken up again after the tie at position 2",
    )


def test_every_tie_and_its_share_are_recorded() -> None:
    segments = [Segment(0, [10, 99]), Segment(2, [12, 97, 1])]
    ties = {3: tie(97, 13, 1.0), 1: tie(99, 11)}
    result = compare_near_ties(REFERENCE, segments, ties, max_share=0.4, subject="words", location="x:2")
    assert (result.subject, result.rule, result.location, result.limits) == (
        "words",
        "near_tie",
        "x:2",
        {"max_share": 0.4},
    )
    told = result.measurements
    assert [(one["position"], one["is_tie"]) for one in told["ties"]] == [(1, True), (3, False)]
    assert (told["reference_length"], told["followed"], told["tie_count"], told["mismatch_count"]) == (5, 2, 1, 1)
    assert told["share"] == 0.2
    nothing = compare_near_ties([], [], {}, max_share=0.4)
    assert (nothing.message, nothing.measurements["share"]) == (
        "compared nothing: the reference generated no token",
        0.0,
    )
