"""Each rule at its boundary, on estimates made by hand, so that nothing but the judgement is tried."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from specrunner.checks.sources import MemorySource
from specrunner.golden import kept as kept_module
from specrunner.golden.estimates import Estimates, estimate
from specrunner.golden.judge import NoiseFloor, judge_estimates, judge_floor, judge_tensor, measure_floor
from specrunner.golden.kept import KeptTensor, digest_content, is_distribution, keep_tensor, pack_tensors
from specrunner.golden.manifest import GoldenError
from specrunner.golden.projections import CONFIDENCE, bound_factor
from specrunner.golden.sketch import sketch_tensor
from specrunner.spec.model import GoldenChoice, Rule


def source(value: Any, name: str = "x") -> MemorySource:
    return MemorySource(name, torch.as_tensor(value))


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def make_estimates(**changes: Any) -> Estimates:
    """Four rows of two tokens, the second row the worst; the bound is twice the estimate."""
    errors = doubles(0.01, 0.05, 0.02, 0.0)
    estimates = Estimates(
        shape=(2, 2, 8),
        candidate_dtype="float32",
        reference_dtype="bfloat16",
        rows_per_token=2,
        norms=doubles(1.0, 1.0, 1.0, 1.0),
        distances=errors,
        errors=errors,
        factor=2.0,
        cosines=doubles(0.9, 0.99, 0.8, 1.0),
        undefined=0,
        kl=torch.tensor([[0.0, 0.1, 0.2, 0.1], [0.2, 0.3, 0.4, 0.3]], dtype=torch.float64),
        overlaps={4: doubles(1.0, 0.5, 0.75, 0.75)},
        top_1=0.75,
    )
    return replace(estimates, **changes)


def judge(rule: str, estimates: Estimates, *, same: bool = False, **limits: Any) -> str:
    result = judge_estimates("x", Rule(rule, limits), estimates, same, "s.yaml:1")
    assert (result.subject, result.location, result.against) == ("x", "s.yaml:1", "golden")
    assert result.passed == (not result.message)
    assert result.rule in (rule, "evidence")
    return result.message if result.rule == rule else f"no evidence: {result.message}"


# --- sqnr: -20 log10 of the bound, 0.1 ---


def test_sqnr_is_judged_on_the_bound() -> None:
    assert judge("sqnr", make_estimates(), min=20.0) == ""
    assert judge("sqnr", make_estimates(), min=20.001) == ("sqnr 20 dB at token 0 is below 20 dB (estimated 26.02 dB)")
    late = make_estimates(errors=doubles(0.0, 0.0, 0.0, 0.05))
    assert "at token 1" in judge("sqnr", late, min=30.0)


# --- cosine ---


def test_cosine_is_judged_on_the_smallest() -> None:
    assert judge("cosine", make_estimates(), min=0.8) == ""
    assert judge("cosine", make_estimates(), min=0.81) == (
        "cosine 0.8 at token 1 is below 0.81 (bounded from projections)"
    )
    assert judge("cosine", make_estimates(undefined=1), min=0.0) == "only one side is zero in 1 rows: no cosine"


# --- kl: mean of the upper bounds 0.3, of the lower ones 0.1; p99 0.4 and 0.2 ---


@pytest.mark.parametrize(
    ("mean", "p99", "message"),
    [
        (0.31, 0.4, ""),
        (0.31, None, ""),
        (None, 0.4, ""),
        (None, None, ""),
        (
            0.29,
            None,
            "mean kl is between 0.1 and 0.3, and 0.29 is allowed, worst 0.4 at token 1"
            "; raise golden.top_k for closer bounds",
        ),
        (0.09, None, "mean kl is between 0.1 and 0.3, and 0.09 is allowed, worst 0.4 at token 1"),
        (
            0.31,
            0.39,
            "p99 kl is between 0.2 and 0.4, and 0.39 is allowed, worst 0.4 at token 1"
            "; raise golden.top_k for closer bounds",
        ),
        (None, 0.19, "p99 kl is between 0.2 and 0.4, and 0.19 is allowed, worst 0.4 at token 1"),
    ],
)
def test_kl_is_judged_on_its_upper_bound(mean: float | None, p99: float | None, message: str) -> None:
    assert judge("kl", make_estimates(), mean=mean, p99=p99) == message


def test_kl_that_is_none_does_not_pass() -> None:
    assert "no distribution" in judge("kl", make_estimates(kl=None), mean=9.0, p99=None)
    nan = torch.full((2, 4), math.nan, dtype=torch.float64)
    assert judge("kl", make_estimates(kl=nan), mean=9.0, p99=None)


# --- top_k: mean overlap 0.75 ---


def test_top_k_is_judged_on_the_mean_overlap() -> None:
    assert judge("top_k", make_estimates(), k=4, overlap=0.75) == ""
    assert judge("top_k", make_estimates(), k=4, overlap=0.76) == (
        "mean overlap of the 4 largest 0.75 is below 0.76, worst 0.5 at token 0"
    )
    assert judge("top_k", make_estimates(), k=5, overlap=0.0) == (
        "the golden keeps too few of the largest elements for k = 5; raise golden.top_k"
    )
    narrow = make_estimates(shape=(2, 2, 4))
    assert judge("top_k", narrow, k=4, overlap=0.0).startswith("compared nothing: all 4 elements")
    assert judge("top_k", make_estimates(shape=(2, 2, 5)), k=4, overlap=0.0) == ""


# --- exact, and what has no evidence ---


def test_exact_is_the_contents_digest() -> None:
    assert judge("exact", make_estimates(), same=True) == ""
    message = "the content differs: rel l2 about 0.05 at token 0 (compact golden)"
    assert judge("exact", make_estimates()) == message
    assert judge("exact", make_estimates(non_finite=1), same=False)


@pytest.mark.parametrize("rule", ["sqnr", "cosine", "kl", "top_k"])
def test_numbers_that_are_none_pass_no_rule(rule: str) -> None:
    limits = {"min": -math.inf, "mean": None, "p99": None, "k": 4, "overlap": 0.0}
    assert judge(rule, make_estimates(), **limits) == ""
    assert judge(rule, make_estimates(non_finite=3), **limits) == "NaN or infinities in 3 rows of the candidate"


@pytest.mark.parametrize("full_tokens", [0, 3])
@pytest.mark.parametrize(
    "rule",
    [
        Rule("sqnr", {"min": 1.0}),
        Rule("cosine", {"min": 0.5}),
        Rule("kl", {"mean": 1.0, "p99": None}),
        Rule("top_k", {"k": 3, "overlap": 0.5}),
        Rule("noise_floor", {"k": 3.0}),
    ],
    ids=lambda rule: rule.name,
)
def test_a_golden_of_zeros_alone_is_nothing_to_be_relative_to(rule: Rule, full_tokens: int) -> None:
    golden = keep(WIDE * 0, "logits", full_tokens=full_tokens)
    floor = NoiseFloor(torch.full((3,), 0.1, dtype=torch.float64), 0.1, 1e-7)
    (result,) = judge_tensor("logits", source(WIDE * 0), golden, (rule,), floor=floor)
    assert (result.rule, result.passed) == (rule.name, False)
    assert result.message.startswith("compared nothing: all of the ")


@pytest.mark.parametrize("rule", ["allclose", "ulp"])
def test_rules_on_single_elements_have_no_evidence(rule: str) -> None:
    message = f"no evidence: `{rule}` cannot be judged on a compact golden; raise golden.full_tokens"
    assert judge(rule, make_estimates(non_finite=1)).startswith(message)


def test_a_rule_that_is_unknown_here_has_no_evidence() -> None:
    assert judge("routing", make_estimates()) == "no evidence: `routing` cannot be judged on a compact golden"


def test_all_numbers_are_reported_with_their_tokens() -> None:
    numbers = make_estimates(undefined=2, non_finite=0).to_json()
    assert numbers.pop("shape") == [2, 2, 8]
    expected = {
        "candidate_dtype": "float32",
        "reference_dtype": "bfloat16",
        "rows": 4,
        "estimated": True,
        "estimate_bound": 2.0,
        "estimate_confidence": 1 - CONFIDENCE,
        "relative_l2": math.sqrt(0.0001 + 0.0025 + 0.0004) / 2,
        "max_relative_l2": 0.05,
        "max_relative_l2_bound": 0.1,
        "max_relative_l2_token": 0,
        "p99_relative_l2": 0.05,
        "min_cosine": 0.8,
        "min_cosine_token": 1,
        "min_sqnr": -20 * math.log10(0.05),
        "min_sqnr_token": 0,
        "candidate_nan_or_inf": 0,
        "undefined_cosines": 2,
        "mean_kl": 0.3,
        "mean_kl_low": 0.1,
        "p99_kl": 0.4,
        "max_kl": 0.4,
        "max_kl_token": 1,
        "mean_top_4_overlap": 0.75,
        "min_top_4_overlap": 0.5,
        "min_top_4_token": 0,
        "top_1_agreement": 0.75,
    }
    assert numbers.keys() == expected.keys()
    assert {name: numbers[name] for name in expected} == pytest.approx(expected)
    plain = make_estimates(kl=None, overlaps={}, top_1=None).to_json()
    assert not {"undefined_cosines", "mean_kl", "top_1_agreement"} & plain.keys()


def test_the_error_over_a_whole_tensor() -> None:
    assert make_estimates(norms=doubles(3.0, 0.0, 0.0, 4.0), distances=doubles(0, 0, 0, 1.0)).relative_l2 == 0.2
    nothing = doubles(0, 0, 0, 0)
    assert make_estimates(norms=nothing, distances=nothing).relative_l2 == 0.0
    assert make_estimates(norms=nothing, distances=doubles(0, 0, 0, 1.0)).relative_l2 == math.inf


# --- the floor ---

FLOOR = NoiseFloor(doubles(0.01, 0.02), whole=0.01, epsilon=0.001)


@pytest.mark.parametrize(
    ("errors", "whole", "needed", "message"),
    [
        ((0.02, 0.02), 0.02, 1.9, ""),
        ((0.021, 0.02), 0.021, 2.0, ""),
        ((0.0211, 0.02), 0.02, 2.01, "rel l2 0.0211 at token 0 exceeds 2 times the floor 0.01"),
        ((0.02, 0.0611), 0.02, 3.005, "rel l2 0.0611 at token 1 exceeds 2 times the floor 0.02"),
        ((0.02, 0.02), 0.0211, 1.9, "rel l2 0.0211 at token 0 exceeds 2 times the floor 0.01"),
        ((0.001, 0.0), 0.001, 0.0, ""),
        ((math.nan, 0.0), 0.0, math.nan, "rel l2 nan at token 0 exceeds 2 times the floor 0.01"),
    ],
)
def test_the_floor_by_row_and_as_a_whole(
    errors: tuple[float, float], whole: float, needed: float, message: str
) -> None:
    found, numbers = judge_floor(doubles(*errors), whole, FLOOR, Rule("noise_floor", {"k": 2.0 + 1e-12}), 1)
    assert found == message
    if not math.isnan(needed):
        assert numbers["floor_needed_by_token"] == pytest.approx(needed)
        assert numbers["floor_needed"] == pytest.approx(max(0.0, (whole - 0.001) / 0.01))
        assert numbers["peer_relative_l2"] == 0.01


def test_a_floor_of_zero_excuses_nothing_but_rounding() -> None:
    still = NoiseFloor(doubles(0.0, 0.0), whole=0.0, epsilon=0.001)
    rule = Rule("noise_floor", {"k": 1e9})
    assert judge_floor(doubles(0.001, 0.0), 0.001, still, rule, 1)[0] == ""
    assert judge_floor(doubles(0.0011, 0.0), 0.0, still, rule, 1)[0]
    message, numbers = judge_floor(doubles(0.0, 0.0), 0.0011, still, rule, 1)
    assert message and numbers["floor_needed"] == "inf"


def test_the_worst_row_tells_its_token() -> None:
    floor = NoiseFloor(doubles(*[0.01] * 4), 0.01, 0.0)
    message, numbers = judge_floor(doubles(0, 0, 0.5, 0), 0.0, floor, Rule("noise_floor", {"k": 1.0}), 2)
    assert (numbers["floor_token"], "at token 1" in message) == (1, True)


@pytest.mark.parametrize(
    ("errors", "whole", "message"),
    [
        ((0.0, 0.999), 0.999, ""),
        ((0.0, 1.0), 0.5, "rel l2 1 at token 1: as far from the reference as zeros are"),
        ((0.0, 0.5), 1.0, "rel l2 1 over the whole tensor: as far from the reference as zeros are"),
    ],
)
def test_what_is_as_far_as_zeros_passes_above_no_floor(errors: tuple[float, float], whole: float, message: str) -> None:
    high = NoiseFloor(doubles(3.0, 3.0), whole=3.0, epsilon=0.001)
    assert judge_floor(doubles(*errors), whole, high, Rule("noise_floor", {"k": 2.0}), 1)[0] == message


def test_zeros_pass_against_no_golden_whatever_the_floor() -> None:
    rule = (Rule("noise_floor", {"k": 3.0}),)
    floor = NoiseFloor(torch.full((3,), 0.4, dtype=torch.float64), 0.4, 1e-7)
    for full_tokens in (0, 3):
        (result,) = judge_tensor("x", source(WIDE * 0), keep(WIDE, full_tokens=full_tokens), rule, floor=floor)
        assert (result.rule, result.passed) == ("noise_floor", False)


def test_without_a_floor_there_is_no_judgement() -> None:
    rule = Rule("noise_floor", {"k": 2.0})
    for floor in (None, NoiseFloor(doubles(0.1), 0.1, 0.0)):
        message, numbers = judge_floor(doubles(0.0, 0.0), 0.0, floor, rule, 1)
        assert message.startswith("no floor")
        assert numbers == {}


def test_what_a_floor_can_be_measured_from() -> None:
    peer, reference = source([[1.0, 2.0], [3.0, 4.0]]), source([[1.0, 2.0], [3.0, 5.0]])
    floor = measure_floor(peer, reference)
    assert floor is not None
    assert floor.errors.tolist() == pytest.approx([0.0, 1 / math.sqrt(34)])
    assert floor.whole == pytest.approx(1 / math.sqrt(39))
    assert floor.epsilon == torch.finfo(torch.float32).eps
    double = source(torch.tensor([[1.0, 2.0], [3.0, 5.0]], dtype=torch.float64))
    found = measure_floor(peer, double)
    assert found is not None and found.epsilon == torch.finfo(torch.float64).eps
    assert measure_floor(source(torch.tensor([[1.0, 2.0], [3.0, 4.0]]).bfloat16()), reference) is not None
    for wrong in (None, source([[1.0, 2.0]]), source([[1, 2], [3, 4]]), source([[1.0, math.nan], [3.0, 4.0]])):
        assert measure_floor(wrong, reference) is None
    for wrong in (None, source([[1, 2], [3, 5]]), source(torch.tensor([[1.0, 2.0], [3.0, 5.0]]).bfloat16())):
        assert measure_floor(peer, wrong) is None


# --- whole tensors ---


def keep(value: torch.Tensor, name: str = "layers.0.output", **choice: int) -> KeptTensor:
    return keep_tensor(name, source(value), GoldenChoice(**choice), 7)


WIDE = torch.randn(3, 2000, generator=torch.Generator().manual_seed(3))


def test_without_a_rule_nothing_was_compared() -> None:
    (result,) = judge_tensor("x", source(WIDE), keep(WIDE), (), location="here")
    assert (result.passed, result.rule, result.against, result.location) == (False, "evidence", "golden", "here")
    assert "compared nothing" in result.message


def test_what_cannot_be_held_against_a_compact_golden() -> None:
    rules = (Rule("exact"), Rule("sqnr", {"min": 1.0}))
    kept = keep(WIDE)
    assert kept.sketch is not None
    short = judge_tensor("x", source(WIDE[:2]), kept, rules)
    assert [(one.rule, one.message) for one in short] == [
        (rule, "shape [2, 2000] differs from the golden's [3, 2000]") for rule in ("exact", "sqnr")
    ]
    assert short[0].measurements == {"candidate_shape": [2, 2000], "reference_shape": [3, 2000]}
    integers = judge_tensor("x", source(WIDE.int()), kept, rules)
    assert [one.message for one in integers] == ["dtype torch.int32 cannot be compared with the golden's float32"] * 2
    half = judge_tensor("x", source(WIDE.bfloat16()), keep(WIDE.bfloat16().float()), rules)
    assert [one.passed for one in half] == [False, True], "exact means the dtype too"


def test_the_same_experts_in_another_order_are_the_same() -> None:
    golden = keep(torch.tensor([[1, 2], [3, 4], [5, 6]]), "layers.0.router.expert_ids")
    rules = (Rule("routing", {"decisive": 1.0, "all": None}), Rule("exact"))
    first, exact = judge_tensor("ids", source([[2, 1], [4, 3], [6, 5]]), golden, rules)
    assert (first.passed, first.gates, first.measurements) == (True, False, {"tokens": 3, "agreement": 1.0})
    assert (exact.rule, exact.passed, exact.gates, exact.against) == ("exact", False, True, "golden")
    (other,) = judge_tensor("ids", source([[1, 2], [3, 7], [5, 8]]), golden, rules[:1])
    assert (other.passed, other.fails, other.message) == (False, False, "other experts at token 1")
    assert other.measurements["agreement"] == pytest.approx(1 / 3)
    (shape,) = judge_tensor("ids", source([[1, 2]]), golden, rules[:1])
    assert (shape.fails, shape.message) == (True, "shape [1, 2] differs from the golden's [3, 2]")


def test_a_full_golden_is_judged_rule_by_rule_in_order() -> None:
    golden = keep(WIDE, full_tokens=3)
    floor = NoiseFloor(torch.full((3,), 0.01, dtype=torch.float64), 0.01, 1e-9)
    rules = (Rule("exact"), Rule("noise_floor", {"k": 2.0}), Rule("sqnr", {"min": 10.0}))
    results = judge_tensor("x", source(WIDE * 1.01), golden, rules, floor=floor, location="here")
    assert [(one.rule, one.passed) for one in results] == [("exact", False), ("noise_floor", True), ("sqnr", True)]
    assert {one.against for one in results} == {"golden"}
    assert results[1].measurements["floor_needed"] == pytest.approx(1.0, rel=1e-3)
    assert "relative_l2" in results[1].measurements
    (far,) = judge_tensor("x", source(WIDE * 1.03), golden, rules[1:2], floor=floor)
    assert "exceeds 2 times the floor" in far.message
    (shape,) = judge_tensor("x", source(WIDE[:2]), golden, rules[1:2], floor=floor)
    assert (shape.rule, shape.passed) == ("noise_floor", False) and "shape" in shape.message
    (alone,) = judge_tensor("x", source(WIDE), golden, rules[1:2])
    assert alone.message.startswith("no floor")


# --- estimates against the true numbers ---


def test_rows_that_are_zero_on_one_side_have_no_cosine() -> None:
    golden, candidate = torch.zeros(4, 1000), torch.zeros(4, 1000)
    golden[1], candidate[2] = 1.0, 1.0
    golden[3], candidate[3] = 1.0, 2.0
    made = [sketch_tensor(source(value), projections=64, seed=5) for value in (candidate, golden)]
    found = estimate(made[0], made[1])
    assert found.undefined == 2
    assert found.errors[0] == 0
    assert found.errors[1] == pytest.approx(1.0, rel=0.3)
    assert found.errors[2] == math.inf
    assert found.errors[3] == pytest.approx(1.0, rel=0.3)
    assert found.cosines[:3].tolist() == [1.0, 0.0, 0.0]
    assert found.factor == bound_factor(64)
    assert (found.kl, found.overlaps, found.top_1) == (None, {}, None)


def test_only_sketches_of_a_kind_are_compared() -> None:
    def sketch(rows: int = 2, projections: int = 64, seed: int = 5) -> Any:
        return sketch_tensor(source(torch.ones(rows, 100)), projections=projections, seed=seed)

    assert estimate(sketch(), sketch()).relative_l2 == 0
    for other in (sketch(rows=3), sketch(projections=65), sketch(seed=6)):
        with pytest.raises(ValueError, match="cannot be compared"):
            estimate(other, sketch())


def bound_kl(golden: torch.Tensor, candidate: torch.Tensor, kept: int, distance: float) -> tuple[float, float]:
    """Return the bounds of the docstring for one row, with plain floats."""
    top = sorted(range(len(golden)), key=lambda column: -golden[column].item())[:kept]
    r, a = golden.double(), candidate.double()
    log_p, log_q = r - r.logsumexp(0), a - a.logsumexp(0)
    inside = sum(math.exp(log_p[i]) * float(log_p[i] - log_q[i]) for i in top)
    mass_p, mass_q = 1 - sum(math.exp(log_p[i]) for i in top), 1 - sum(math.exp(log_q[i]) for i in top)
    shift = mass_p * float(a.logsumexp(0) - r.logsumexp(0))
    spread = math.sqrt(min(math.exp(log_p[top[-1]]), mass_p) * mass_p) * distance
    low = inside + max(shift - spread, mass_p * math.log(mass_p / mass_q))
    return max(0.0, low), max(0.0, inside + shift + spread)


def test_kl_between_its_bounds() -> None:
    generator = torch.Generator().manual_seed(4)
    golden = torch.randn(3, 50, generator=generator) * 3
    candidate = golden + torch.randn(3, 50, generator=generator)
    for kept in (1, 8, 30):
        made = [sketch_tensor(source(value), projections=640, seed=5, top_k=kept) for value in (candidate, golden)]
        found = estimate(made[0], made[1], source=source(candidate), top_k=(1, 8, 31))
        assert found.kl is not None
        log_p, log_q = golden.double().log_softmax(-1), candidate.double().log_softmax(-1)
        true = (log_p.exp() * (log_p - log_q)).sum(-1)
        distances = found.distances * found.factor
        for row in range(3):
            low, high = bound_kl(golden[row], candidate[row], kept, float(distances[row]))
            assert found.kl[:, row].tolist() == pytest.approx([low, high], rel=1e-5)
            assert low <= float(true[row]) <= high
        assert set(found.overlaps) == {k for k in (1, 8, 31) if k <= kept}
        ours, theirs = candidate.topk(1).indices, golden.topk(1).indices
        assert found.top_1 == float((ours == theirs).double().mean())
        for k, shares in found.overlaps.items():
            sets = [
                (set(candidate[row].topk(k).indices.tolist()), set(golden[row].topk(k).indices.tolist()))
                for row in range(3)
            ]
            assert shares.tolist() == [len(one & other) / k for one, other in sets]


@pytest.mark.parametrize("projections", [64, 640])
def test_kl_is_exact_where_the_kept_hold_all_of_the_mass(projections: int) -> None:
    """Also where so few projections were kept that they bound nothing."""
    golden, candidate = torch.zeros(1, 5000), torch.zeros(1, 5000)
    golden[0, 3], candidate[0, 5] = 100.0, 100.0
    kept = keep(golden, "logits", projections=projections)
    (result,) = judge_tensor("logits", source(candidate), kept, (Rule("kl", {"mean": 1e-3, "p99": None}),))
    assert result.fails
    assert result.measurements["mean_kl"] == pytest.approx(100.0)
    assert result.measurements["mean_kl_low"] == pytest.approx(100.0)


# --- which form a tensor takes ---


@pytest.mark.parametrize(
    ("rows", "width", "settings", "form"),
    [
        (8, 5000, {}, "compact"),
        (8, 5000, {"full_tokens": 8}, "full"),
        (9, 5000, {"full_tokens": 8}, "compact"),
        (1, 1024, {"projections": 160}, "full"),
        (1, 1025, {"projections": 160}, "compact"),
        (2, 642, {}, "full"),
        (2, 643, {}, "compact"),
    ],
)
def test_a_tensor_is_kept_in_full_where_that_is_small(
    rows: int, width: int, settings: dict[str, int], form: str
) -> None:
    """4096 bytes are always kept, and so is what its 8 + 4 x projections bytes a row would not make smaller."""
    assert keep(torch.ones(rows, width), **settings).entry.form == form


def test_a_vector_and_a_scalar_are_one_token() -> None:
    assert keep(torch.ones(5000), full_tokens=5000).entry.form == "full"
    assert keep(torch.ones(5000), full_tokens=4999).entry.form == "compact"
    assert keep(torch.tensor(3.0)).entry.shape == ()


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("logits", True),
        ("passes.3.logits", True),
        ("passes.3.norms", False),
        ("layers.0.router.logits", False),
        ("logits.x", False),
    ],
)
def test_only_logits_over_the_vocabulary_keep_their_largest(name: str, found: bool) -> None:
    assert is_distribution(name) is found
    kept = keep(torch.ones(2, 5000), name)
    assert kept.sketch is not None and (kept.sketch.top_ids is not None) is found


def test_a_golden_has_to_live_in_version_control(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {"x": keep(torch.ones(3, 1000), full_tokens=3)}
    assert kept_module.LARGEST_BYTES == 64 * 1024 * 1024
    monkeypatch.setattr(kept_module, "LARGEST_BYTES", 12_000)
    assert len(pack_tensors(tensors)) > 12_000
    assert pack_tensors({}) == b""
    monkeypatch.setattr(kept_module, "LARGEST_BYTES", 11_999)
    with pytest.raises(GoldenError, match="it would take 0 MB, more than 0 MB") as caught:
        pack_tensors(tensors)
    assert (caught.value.kind, caught.value.help) == (
        "golden-refused",
        "lower golden.full_tokens, or keep fewer tensors",
    )


def test_minus_zero_is_zero_to_a_digest() -> None:
    assert digest_content(source([[0.0, 1.0]])) == digest_content(source([[-0.0, 1.0]]))
    assert digest_content(source([[0.0, 1.0]])) != digest_content(source([[0.0, -1.0]]))
    rows = torch.arange(200.0).view(100, 2)
    assert digest_content(source(rows)) == hashlib.sha256(rows.numpy().tobytes()).hexdigest()


def test_nothing_is_kept_of_an_empty_tensor() -> None:
    with pytest.raises(GoldenError, match="holds no element"):
        keep(torch.ones(0, 4))


def test_the_smallest_cosine_that_the_bound_allows() -> None:
    """The law of cosines, with the bounded distance as the third side."""
    candidate = WIDE + 0.1 * torch.randn(WIDE.shape, generator=torch.Generator().manual_seed(8))
    made = [sketch_tensor(source(value), projections=640, seed=5) for value in (candidate, WIDE)]
    found = estimate(made[0], made[1])
    for row in range(3):
        a, r = float(candidate[row].double().norm()), float(WIDE[row].double().norm())
        side = float(found.distances[row]) * bound_factor(640)
        lowest = (a * a + r * r - side * side) / (2 * a * r)
        assert float(found.cosines[row]) == pytest.approx(lowest, rel=1e-9)
        true = float(torch.nn.functional.cosine_similarity(candidate[row].double(), WIDE[row].double(), dim=0))
        assert 0.98 < lowest <= true < 1


@pytest.mark.parametrize(("shape", "rows"), [((2, 3, 50), 3), ((6, 50), 1), ((50,), 1), ((2, 2, 3, 50), 6)])
def test_the_rows_of_a_token(shape: tuple[int, ...], rows: int) -> None:
    assert sketch_tensor(source(torch.ones(shape)), projections=8, seed=5).rows_per_token == rows
