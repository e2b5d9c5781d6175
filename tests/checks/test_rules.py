"""What passes and what never passes under each rule."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from specrunner.checks.sources import MemorySource
from specrunner.checks.tensors import compare_tensors, measure_all
from specrunner.results import CheckResult
from specrunner.spec.model import Rule

NAN, INF = math.nan, math.inf
LOOSE: dict[str, dict[str, Any]] = {
    "exact": {},
    "allclose": {"rtol": 1e300, "atol": 1e300, "outliers": 0.999},
    "ulp": {"max": 1 << 60, "over_one": 1.0},
    "cosine": {"min": -1.0},
    "sqnr": {"min": -1000.0},
    "kl": {"mean": 1e300, "p99": 1e300},
    "top_k": {"k": 2, "overlap": 1e-9},
    "noise_floor": {"k": 1e300},
}
"""The loosest limits of every rule: what fails under them fails for good."""


def compare(
    candidate: Any, reference: Any, rule: str, limits: Mapping[str, Any] | None = None, peer: Any = None
) -> CheckResult:
    sides = [MemorySource("x", torch.as_tensor(side)) for side in (candidate, reference)]
    peer_source = None if peer is None else MemorySource("x", torch.as_tensor(peer))
    rules = [Rule(rule, limits if limits is not None else LOOSE[rule])]
    (result,) = compare_tensors("logits", *sides, rules, peer=peer_source, location="specs/x.yaml:7")
    assert (result.subject, result.rule, result.location) == ("logits", rule, "specs/x.yaml:7")
    assert dict(result.limits) == dict(rules[0].parameters)
    assert bool(result.message) != result.passed
    assert "\n" not in result.message
    json.dumps(dict(result.measurements), allow_nan=False)
    return result


REFERENCE = torch.tensor([[1.0, 2.0, 3.0, -4.0], [0.5, 0.25, 8.0, 1.0]])
PEER = REFERENCE * 1.001


@pytest.mark.parametrize("rule", LOOSE)
def test_an_equal_tensor_passes_under_the_strictest_limits(rule: str) -> None:
    strictest = {
        "exact": {},
        "allclose": {"rtol": 0.0, "atol": 0.0, "outliers": 0.0},
        "ulp": {"max": 0, "over_one": 0.0},
        "cosine": {"min": 1.0},
        "sqnr": {"min": 10_000.0},
        "kl": {"mean": 0.0, "p99": 0.0},
        "top_k": {"k": 2, "overlap": 1.0},
        "noise_floor": {"k": 0.0},
    }
    result = compare(REFERENCE, REFERENCE, rule, strictest[rule], PEER)
    assert result.passed, result.message
    assert result.measurements["max_abs"] == 0.0


@pytest.mark.parametrize(
    ("rule", "passes", "fails", "message"),
    [
        ("exact", None, {}, "max |a-r| 0.0625 at token 1 exceeds 0: 1 of 8 elements differ, first at token 1: 0.3125"),
        (
            "allclose",
            {"rtol": 0.0, "atol": 0.0625, "outliers": 0.0},
            {"rtol": 0.0, "atol": 0.0624, "outliers": 0.0},
            "max |a-r| 0.0625 at token 1: 1 of 8 elements exceed 0.0624 + 0 * |r| (allowed 0 %), worst at token 1",
        ),
        (
            "allclose",
            {"rtol": 0.25, "atol": 0.0, "outliers": 0.0},
            {"rtol": 0.2499, "atol": 0.0, "outliers": 0.0},
            "exceed 0 + 0.2499 * |r|",
        ),
        (
            "allclose",
            {"rtol": 0.0, "atol": 0.0, "outliers": 0.125},
            {"rtol": 0.0, "atol": 0.0, "outliers": 0.1249},
            "allowed 12.5 %",
        ),
        ("ulp", {"max": 1 << 21, "over_one": 0.125}, {"max": (1 << 21) - 1, "over_one": 1.0}, "at token 1 exceeds"),
        ("ulp", {"max": 1 << 21, "over_one": 0.125}, {"max": 1 << 21, "over_one": 0.12}, "over 1 ulp"),
        ("cosine", {"min": 0.99997}, {"min": 0.999975}, "cosine 0.99997014 at token 1 is below 0.999975"),
        ("sqnr", {"min": 42.2}, {"min": 42.3}, "sqnr 42.23 dB at token 1 is below 42.3 dB"),
        ("kl", {"mean": 1e-5, "p99": None}, {"mean": 1e-9, "p99": None}, "mean kl"),
        ("kl", {"mean": None, "p99": 1e-5}, {"mean": None, "p99": 1e-9}, "p99 kl"),
        ("noise_floor", {"k": 7.8}, {"k": 7.7}, "at token 1 is 7.73 times the floor 0.001 and exceeds 7.7 times"),
    ],
)
def test_one_wrong_element(rule: str, passes: Any, fails: Any, message: str) -> None:
    candidate = REFERENCE.clone()
    candidate[1, 1] = 0.3125
    if passes is not None:
        result = compare(candidate, REFERENCE, rule, passes, PEER)
        assert result.passed, result.message
        assert result.measurements["max_abs"] == 0.0625
    result = compare(candidate, REFERENCE, rule, fails, PEER)
    assert not result.passed
    assert message in result.message
    assert result.measurements["max_abs"] == 0.0625


def test_top_k() -> None:
    candidate = REFERENCE.clone()
    candidate[1, 2] = -9.0
    assert compare(candidate, REFERENCE, "top_k", {"k": 2, "overlap": 0.75}).passed
    result = compare(candidate, REFERENCE, "top_k", {"k": 2, "overlap": 0.76})
    assert result.message == "mean overlap of the 2 largest 0.75 is below 0.76, worst 0.5 at token 1"
    assert result.measurements["top_1_agreement"] == 0.5


def test_what_can_only_be_equal_compares_nothing() -> None:
    other = REFERENCE.flip(-1)
    assert compare(other, REFERENCE, "top_k", {"k": 3, "overlap": 0.1}).passed
    for k in (4, 5):
        assert "compared nothing" in compare(other, REFERENCE, "top_k", {"k": k, "overlap": 0.1}).message
    one = torch.ones(3, 1)
    assert "compared nothing" in compare(one * 2, one, "kl", {"mean": 1.0, "p99": None}).message


@pytest.mark.parametrize("rule", LOOSE)
@pytest.mark.parametrize(
    ("candidate", "reference"),
    [
        ([[NAN, 1.0, 2.0]], [[1.0, 1.0, 2.0]]),
        ([[INF, 1.0, 2.0]], [[1.0, 1.0, 2.0]]),
        ([[-INF, 1.0, 2.0]], [[INF, 1.0, 2.0]]),
        ([[1.0, 1.0, 2.0]], [[INF, 1.0, 2.0]]),
        ([[1.0, 1.0, 2.0]], [[NAN, 1.0, 2.0]]),
        ([[NAN, 1.0, 2.0]], [[NAN, 1.0, 2.0]]),
        ([[INF, 1.0, 2.0]], [[NAN, 1.0, 2.0]]),
        ([[NAN, NAN, NAN]], [[NAN, NAN, NAN]]),
    ],
)
def test_unmatched_non_finite_never_passes(rule: str, candidate: Any, reference: Any) -> None:
    result = compare(candidate, reference, rule, peer=[[1.0, 1.0, 2.01]])
    assert not result.passed
    assert "NaN" in result.message or "infinities" in result.message
    assert "at token 0" in result.message


@pytest.mark.parametrize("rule", LOOSE)
def test_equal_infinities_pass_as_a_mask_does(rule: str) -> None:
    masked = [[-INF, 1.0, 2.0], [3.0, -INF, -INF]]
    result = compare(masked, masked, rule, peer=[[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]])
    assert result.passed == (rule in {"exact", "allclose"})
    assert result.measurements["equal_infinities"] == 3
    assert (result.measurements["max_ulp"], result.measurements["max_relative"]) == (0, 0.0)
    assert result.measurements["compared"] == 3


@pytest.mark.parametrize("rule", LOOSE)
def test_nothing_but_infinities_compares_nothing(rule: str) -> None:
    assert not compare([[-INF, -INF]], [[-INF, -INF]], rule, peer=[[1.0, 1.0]]).passed


@pytest.mark.parametrize("rule", LOOSE)
@pytest.mark.parametrize(
    ("candidate", "reference"),
    [
        ((2, 3), (2, 4)),
        ((2, 3), (1, 3)),
        ((2, 3), (3,)),
        ((1, 3), (3,)),
        ((2, 3), (2, 3, 1)),
        ((), (1,)),
        ((6,), (2, 3)),
    ],
)
def test_another_shape_never_passes(rule: str, candidate: tuple[int, ...], reference: tuple[int, ...]) -> None:
    result = compare(torch.ones(candidate), torch.ones(reference), rule, peer=torch.ones(reference))
    assert not result.passed
    assert result.message == f"shape {list(candidate)} differs from the reference's {list(reference)}"
    assert result.measurements["candidate_shape"] == list(candidate)


@pytest.mark.parametrize("rule", LOOSE)
@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0), (2, 0, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_a_comparison_of_nothing_never_passes(rule: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    empty = torch.zeros(shape, dtype=dtype)
    result = compare(empty, empty, rule, peer=empty)
    assert not result.passed
    assert "compared nothing" in result.message


@pytest.mark.parametrize("rule", LOOSE)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_integers_and_booleans_are_exact_or_nothing(rule: str, dtype: torch.dtype) -> None:
    value = torch.tensor([[1, 0, 1]]).to(dtype)
    result = compare(value, value, rule, peer=value)
    assert result.passed == (rule == "exact")
    if rule != "exact":
        assert result.message == f"`{rule}` does not apply to {str(dtype).removeprefix('torch.')}: only `exact` does"


def test_integers_that_differ() -> None:
    candidate = torch.tensor([[1, 2], [3, 4], [5, 6]])
    reference = torch.tensor([[1, 2], [3, 5], [6, 5]], dtype=torch.int32)
    result = compare(candidate, reference, "exact")
    assert result.message == "3 of 6 elements differ, at 2 tokens; first at token 1: 4 against 5"
    assert (result.measurements["differing"], result.measurements["tokens_differing"]) == (3, 2)


def test_large_integers_are_not_rounded() -> None:
    assert not compare(torch.tensor([2**62 + 1]), torch.tensor([2**62]), "exact").passed
    unsigned = torch.tensor([2**64 - 1], dtype=torch.uint64)
    assert compare(unsigned, unsigned, "exact").passed
    assert not compare(torch.tensor([-1]), unsigned, "exact").passed


@pytest.mark.parametrize(
    ("candidate", "reference"),
    [
        (torch.ones(2), torch.ones(2, dtype=torch.int64)),
        (torch.ones(2, dtype=torch.int64), torch.ones(2)),
        (torch.ones(2, dtype=torch.bool), torch.ones(2, dtype=torch.int64)),
        (torch.ones(2, dtype=torch.complex64), torch.ones(2, dtype=torch.complex64)),
    ],
)
def test_kinds_of_numbers_do_not_mix(candidate: torch.Tensor, reference: torch.Tensor) -> None:
    assert "cannot be compared" in compare(candidate, reference, "exact").message


def test_float_dtypes_are_compared_as_the_numbers_they_hold() -> None:
    assert compare(REFERENCE.bfloat16(), REFERENCE.double(), "exact").passed
    assert not compare(torch.tensor([0.1]), torch.tensor([0.1], dtype=torch.float64), "exact").passed


@pytest.mark.parametrize("rule", ["allclose", "cosine", "sqnr", "noise_floor", "ulp", "exact"])
def test_only_the_reference_is_zero(rule: str) -> None:
    reference = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    candidate = torch.tensor([[1.0, 1.0], [0.1, 0.1]])
    result = compare(candidate, reference, rule, peer=reference * 1.01)
    # The loosest allclose and ulp allow any finite distance; the others have no number here.
    assert result.passed == (rule in {"allclose", "ulp"})


@pytest.mark.parametrize("rule", ["cosine", "sqnr", "noise_floor", "kl"])
def test_both_zero_is_equal(rule: str) -> None:
    zero = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    assert compare(zero, zero, rule, peer=zero * 1.01).passed


@pytest.mark.parametrize("rule", LOOSE)
@pytest.mark.parametrize("factor", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_reference_of_zeros_alone_is_nothing_to_be_relative_to(rule: str, factor: float, dtype: torch.dtype) -> None:
    zeros = torch.zeros(2, 4, dtype=dtype)
    result = compare(REFERENCE * factor, zeros, rule, peer=PEER)
    if rule in {"exact", "allclose", "ulp"}:
        assert result.passed == (factor == 0.0 or rule != "exact")
    else:
        assert (
            result.message == f"compared nothing: all of the reference is zero, against which `{rule}` weighs nothing"
        )


def test_numbers_whose_squares_vanish_are_not_zeros() -> None:
    small = torch.tensor([[0.0, 5e-324]], dtype=torch.float64)
    assert compare(small, small, "top_k", {"k": 1, "overlap": 1.0}).passed


@pytest.mark.parametrize("rule", ["cosine", "sqnr", "noise_floor"])
@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_sizes_that_float64_cannot_square_never_pass(rule: str, size: float) -> None:
    reference = torch.tensor([[size, size]], dtype=torch.float64)
    result = compare(reference, reference, rule, peer=reference)
    assert not result.passed


def test_the_largest_number_of_a_dtype_is_not_next_to_a_larger_reference() -> None:
    largest, beyond = torch.full((2, 4), 65504.0, dtype=torch.float16), torch.full((2, 4), 1e30)
    result = compare(largest, beyond, "ulp", {"max": 1, "over_one": 1.0})
    assert (result.passed, result.measurements["max_ulp"]) == (False, 2 * 0x7BFF)


def test_a_large_error_in_one_token_does_not_hide_in_the_mean() -> None:
    reference = torch.ones(1000, 8)
    candidate = reference.clone()
    candidate[0] = torch.tensor([1.0, -1.0] * 4)
    assert not compare(candidate, reference, "cosine", {"min": 0.99}).passed
    assert not compare(candidate, reference, "sqnr", {"min": 20.0}).passed
    assert not compare(candidate, reference, "noise_floor", {"k": 3.0}, peer=reference * 1.1).passed


def test_zero_limits_are_not_replaced() -> None:
    close = REFERENCE * (1 + 1e-6)
    closer = REFERENCE.double() * (1 + 1e-12)
    assert not compare(closer, REFERENCE, "allclose", {"rtol": 0.0, "atol": 0.0, "outliers": 0.0}).passed
    assert not compare(close, REFERENCE, "ulp", {"max": 0, "over_one": 0.0}).passed
    assert not compare(close, REFERENCE, "kl", {"mean": 0.0, "p99": 0.0}).passed
    assert not compare(close, REFERENCE, "noise_floor", {"k": 0.0}, peer=close).passed


def test_rules_that_bound_nothing_or_are_unknown_fail() -> None:
    assert compare(REFERENCE, REFERENCE, "kl", {"mean": None, "p99": None}).message == "the rule bounds nothing"
    assert "does not apply" in compare(REFERENCE, REFERENCE, "near_tie", {}).message
    (result,) = compare_tensors("x", MemorySource("x", REFERENCE), MemorySource("x", REFERENCE), [])
    assert not result.passed
    assert result.rule == "evidence"


def test_several_rules_share_the_measurements_and_judge_each_for_itself() -> None:
    rules = [
        Rule("allclose", {"rtol": 0.0, "atol": 1.0, "outliers": 0.0}),
        Rule("allclose", {"rtol": 0.0, "atol": 1e-9, "outliers": 0.0}),
        Rule("top_k", {"k": 1, "overlap": 1.0}),
        Rule("top_k", {"k": 3, "overlap": 1.0}),
    ]
    sources = (MemorySource("x", REFERENCE + 0.5), MemorySource("x", REFERENCE))
    results = compare_tensors("x", *sources, rules)
    assert [result.passed for result in results] == [True, False, True, True]
    assert [result.measurements.get("outside") for result in results] == [0, 8, None, None]
    assert all(result.measurements["max_abs"] == 0.5 for result in results)


class TestNoiseFloor:
    def test_needs_a_peer(self) -> None:
        assert compare(REFERENCE, REFERENCE, "noise_floor").message.startswith("no peer")

    def test_a_peer_of_another_shape_or_kind(self) -> None:
        assert "the peer's shape" in compare(REFERENCE, REFERENCE, "noise_floor", peer=REFERENCE[:1]).message
        assert "the peer's dtype" in compare(REFERENCE, REFERENCE, "noise_floor", peer=REFERENCE.long()).message

    @pytest.mark.parametrize("value", [NAN, INF, -INF])
    def test_a_peer_that_is_not_finite_is_no_floor(self, value: float) -> None:
        peer = PEER.clone()
        peer[0, 0] = value
        result = compare(REFERENCE * 2, REFERENCE, "noise_floor", peer=peer)
        assert "of the peer are NaN or infinite" in result.message
        assert result.measurements["peer_non_finite"] == 1

    def test_a_peer_without_noise(self) -> None:
        result = compare(REFERENCE * 1.1, REFERENCE, "noise_floor", peer=REFERENCE)
        assert "the peer equals the reference" in result.message

    def test_what_the_reference_cannot_resolve_is_allowed(self) -> None:
        close = REFERENCE.double() * (1 + 2.0**-24)
        assert compare(close, REFERENCE, "noise_floor", {"k": 1.0}, peer=REFERENCE).passed
        assert not compare(close, REFERENCE.double(), "noise_floor", {"k": 1.0}, peer=REFERENCE.double()).passed

    def test_a_row_without_a_floor_fails_only_where_the_candidate_errs(self) -> None:
        reference = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
        peer = torch.tensor([[1.001, 1.0], [0.1, 0.0]])
        assert compare(reference, reference, "noise_floor", {"k": 3.0}, peer=peer).passed
        wrong = torch.tensor([[1.0, 1.0], [1e-9, 0.0]])
        assert not compare(wrong, reference, "noise_floor", {"k": 1e9}, peer=peer).passed

    def test_a_coarse_reference_is_refused(self) -> None:
        reference = REFERENCE.bfloat16()
        assert "float32 or float64" in compare(reference, reference, "noise_floor", peer=PEER).message

    def test_ratio_and_margin_are_stated(self) -> None:
        result = compare(REFERENCE * 1.002, REFERENCE.double(), "noise_floor", {"k": 3.0}, peer=PEER)
        assert result.passed
        assert result.measurements["floor_ratio"] == pytest.approx(2.0, rel=1e-3)
        assert result.measurements["margin"] == pytest.approx(1.5, rel=1e-3)

    @pytest.mark.parametrize("factor", [0.0, -1.0, 2.0])
    def test_what_is_as_far_as_zeros_passes_above_no_floor(self, factor: float) -> None:
        result = compare(REFERENCE * factor, REFERENCE, "noise_floor", {"k": 1e300}, peer=REFERENCE * 3)
        assert not result.passed
        error = f"{abs(1 - factor):.4g}"
        assert result.message == f"rel l2 {error} at token 0: as far from the reference as zeros are"

    def test_a_zeroed_row_passes_under_no_floor_of_that_row(self) -> None:
        peer, candidate = PEER.clone(), REFERENCE.clone()
        peer[1] = REFERENCE[1].flip(-1)
        candidate[1] = 0.0
        result = compare(candidate, REFERENCE, "noise_floor", {"k": 3.0}, peer=peer)
        assert result.message == "rel l2 1 at token 1: as far from the reference as zeros are"

    def test_a_large_floor_alone_does_not_fail(self) -> None:
        assert compare(REFERENCE * 1.999, REFERENCE, "noise_floor", {"k": 3.0}, peer=REFERENCE * 3).passed

    def test_an_error_does_not_hide_behind_noise_elsewhere(self) -> None:
        # Noise of the peer sits in the small row, the candidate's error in the large one.
        reference = torch.tensor([[1e-3, 1e-3], [1e3, 1e3]])
        peer = torch.tensor([[2e-3, 2e-3], [1e3, 1e3]])
        candidate = torch.tensor([[1e-3, 1e-3], [1.1e3, 1.1e3]])
        assert not compare(candidate, reference, "noise_floor", {"k": 3.0}, peer=peer).passed


def test_measure_all_goes_in_model_order_and_names_what_is_missing() -> None:
    def sources(**tensors: torch.Tensor) -> dict[str, MemorySource]:
        return {name.replace("_", "."): MemorySource(name, tensor) for name, tensor in tensors.items()}

    candidate = sources(logits=REFERENCE, layers_10_output=REFERENCE, layers_2_output=REFERENCE, embeddings=REFERENCE)
    reference = sources(logits=REFERENCE + 1, layers_10_output=REFERENCE[:1], embeddings=REFERENCE)
    found = measure_all(candidate, reference)
    assert [comparison.name for comparison in found] == ["embeddings", "layers.2.output", "layers.10.output", "logits"]
    assert [comparison.problem for comparison in found] == [
        "",
        "missing in reference",
        "shape [2, 4] differs from the reference's [1, 4]",
        "",
    ]
    assert found[3].measured is not None
    assert found[3].measured.max_abs.value == 1.0


def test_integers_are_compared_and_not_measured() -> None:
    ids = torch.tensor([[1, 2], [3, 4]])
    sides = [{"tokens": MemorySource("x", side)} for side in (ids, ids + torch.tensor([[0, 0], [0, 1]]))]
    (equal,) = measure_all(sides[0], sides[0])
    assert (equal.measured, equal.problem) == (None, "integers, all equal")
    (other,) = measure_all(*sides)
    assert (other.measured, other.problem) == (
        None,
        "1 of 4 elements differ, at 1 tokens; first at token 1: 4 against 5",
    )
    (missing,) = measure_all({}, sides[0])
    assert missing.problem == "missing in candidate"


def test_both_bounds_of_the_noise_floor_hold_by_themselves() -> None:
    # The rows hold, and so does the whole; then one row alone does not; and the message tells the row that fails.
    reference = torch.ones(2, 2, dtype=torch.float64)
    peer = reference * torch.tensor([[1.01], [1.01]])
    candidate = reference * torch.tensor([[1.0], [1.025]])
    assert compare(candidate, reference, "noise_floor", {"k": 2.6}, peer).passed
    result = compare(candidate, reference, "noise_floor", {"k": 2.0}, peer)
    assert "at token 1 is 2.5 times the floor 0.01 and exceeds 2 times" in result.message
    assert result.measurements["margin"] == pytest.approx(0.8, rel=1e-3)
    assert result.measurements["floor_ratio_by_token"] == pytest.approx(2.5, rel=1e-3)
    assert result.measurements["floor_ratio"] == pytest.approx(2.5 / 2**0.5, rel=1e-3)


def test_a_small_row_without_a_floor_does_not_hide_in_the_whole() -> None:
    # Over the whole tensor the error is below what float32 resolves; in the second row it is not.
    reference = torch.tensor([[1e6, 1e6], [1.0, 1.0]])
    candidate = torch.tensor([[1e6, 1e6], [1.001, 1.0]])
    result = compare(candidate, reference, "noise_floor", {"k": 1e9}, peer=reference)
    assert "at token 1 is inf times the floor 0 and exceeds 1e+09 times" in result.message
    assert (result.measurements["floor_needed"], result.measurements["floor_needed_by_token"]) == (0.0, "inf")
    assert result.measurements["margin"] == 0.0
