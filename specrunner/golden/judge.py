"""Judging a candidate's tensor against a kept one, under the rules of DESIGN section 6."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from specrunner.checks.measure import measure, signal_to_noise
from specrunner.checks.measurements import encode_number
from specrunner.checks.rules import RELATIVE, describe_far
from specrunner.checks.sources import TensorSource
from specrunner.checks.tensors import compare_tensors
from specrunner.golden.estimates import Estimates, estimate, percentile
from specrunner.golden.kept import KeptTensor, digest_content
from specrunner.golden.sketch import sketch_tensor
from specrunner.results import CheckResult
from specrunner.spec.golden_rules import NEEDS_FULL
from specrunner.spec.model import Rule

AGAINST = "golden"

FLOOR, ROUTING = "noise_floor", "routing"


@dataclass(frozen=True, slots=True)
class NoiseFloor:
    """The noise of honest arithmetic that this run measured: the peer's error against the reference.

    Attributes:
        errors: relative L2 of every row, float64 [rows].
        whole: over the whole tensor.
        epsilon: the machine epsilon of the reference's dtype.
    """

    errors: torch.Tensor
    whole: float
    epsilon: float


def measure_floor(peer: TensorSource | None, reference: TensorSource | None) -> NoiseFloor | None:
    """Measure the noise floor of a tensor; None where one side is missing or they cannot be compared."""
    if peer is None or reference is None or peer.shape != reference.shape:
        return None
    if not peer.dtype.is_floating_point or reference.dtype not in (torch.float32, torch.float64):
        return None
    measured = measure(peer, reference)
    if measured.row_errors is None or measured.non_finite.any:
        return None
    return NoiseFloor(measured.row_errors, measured.rel_l2, float(torch.finfo(reference.dtype).eps))


def judge_tensor(
    name: str,
    candidate: TensorSource,
    golden: KeptTensor,
    rules: Sequence[Rule],
    *,
    floor: NoiseFloor | None = None,
    location: str = "",
) -> list[CheckResult]:
    """Judge a tensor against its golden.

    A full golden is judged as any reference is. On a compact one, `exact` compares digests; `sqnr`, `cosine` and
    `noise_floor` are judged on the bound of the estimated error, so what passes holds with probability 0.999 a row;
    `kl` on its upper bound; `top_k` on the kept ids, which is exact. `allclose` and `ulp` have no evidence there.

    `noise_floor: k` means that the candidate is no further from its golden than k times the noise that this run
    measured between the peer and the reference, and nearer than zeros are.

    Returns:
        One result a rule, in their order, all with `against="golden"`.
    """
    if not rules:
        return [_missing(name, "no rule is stated for this tensor: compared nothing", location)]
    if golden.source is not None:
        return _judge_full(name, candidate, golden.source, rules, floor, location)
    assert golden.sketch is not None
    if candidate.shape != golden.entry.shape:
        message = f"shape {list(candidate.shape)} differs from the golden's {list(golden.entry.shape)}"
        facts = {"candidate_shape": list(candidate.shape), "reference_shape": list(golden.entry.shape)}
        return [_result(name, rule, message, facts, location) for rule in rules]
    if not candidate.dtype.is_floating_point:
        message = f"dtype {candidate.dtype} cannot be compared with the golden's {golden.entry.dtype}"
        return [_result(name, rule, message, {}, location) for rule in rules]
    estimates = estimate_tensor(candidate, golden, tuple(int(r.parameters["k"]) for r in rules if r.name == "top_k"))
    return [_judge_compact(name, rule, candidate, golden, estimates, floor, location) for rule in rules]


def estimate_tensor(candidate: TensorSource, golden: KeptTensor, top_k: tuple[int, ...] = ()) -> Estimates:
    """Estimate how far a candidate is from a compact golden of its shape."""
    sketch = golden.sketch
    assert sketch is not None
    kept = 0 if sketch.top_ids is None else sketch.top_ids.shape[-1]
    ours = sketch_tensor(candidate, projections=sketch.projections.shape[-1], seed=sketch.seed, top_k=kept)
    return estimate(ours, sketch, source=candidate, top_k=top_k)


def _judge_full(
    name: str,
    candidate: TensorSource,
    golden: TensorSource,
    rules: Sequence[Rule],
    floor: NoiseFloor | None,
    location: str,
) -> list[CheckResult]:
    plain = [rule for rule in rules if rule.name not in (FLOOR, ROUTING)]
    judged = iter(compare_tensors(name, candidate, golden, plain, location=location) if plain else ())
    results = []
    for rule in rules:
        if rule.name == ROUTING:
            results.append(_describe_routing(name, rule, candidate, golden, location))
            continue
        if rule.name != FLOOR:
            results.append(replace(next(judged), against=AGAINST))
            continue
        probe = compare_tensors(name, candidate, golden, (Rule("sqnr", {"min": -math.inf}),), location=location)[0]
        if not probe.passed:  # another shape or dtype, NaN or infinity: the same under every rule
            results.append(_result(name, rule, probe.message, probe.measurements, location))
            continue
        measured = measure(candidate, golden)
        message = "the tensor has too many rows for a floor by row"
        extra: dict[str, Any] = {}
        if measured.row_errors is not None:
            message, extra = judge_floor(measured.row_errors, measured.rel_l2, floor, rule, golden.rows_per_token)
        results.append(_result(name, rule, message, {**measured.to_json(), **extra}, location))
    return results


def _describe_routing(
    name: str, rule: Rule, candidate: TensorSource, golden: TensorSource, location: str
) -> CheckResult:
    """Tell how many tokens got the same experts: a trend, since only live scores tell which of them were decisive."""
    if candidate.shape != golden.shape:
        message = f"shape {list(candidate.shape)} differs from the golden's {list(golden.shape)}"
        return _result(name, rule, message, {}, location)
    ours = candidate.rows(0, candidate.row_count).sort(-1).values
    theirs = golden.rows(0, golden.row_count).sort(-1).values
    same = (ours == theirs).all(-1)
    numbers = {"tokens": same.numel(), "agreement": float(same.double().mean())}
    first = "" if bool(same.all()) else f"other experts at token {int((~same).int().argmax())}"
    return replace(_result(name, rule, first, numbers, location), gates=False)


def judge_floor(
    errors: torch.Tensor, whole: float, floor: NoiseFloor | None, rule: Rule, rows_per_token: int
) -> tuple[str, dict[str, Any]]:
    """Judge relative L2 errors, float64 [rows], or their bounds, under `noise_floor`: what is wrong, the numbers."""
    if floor is None or floor.errors.shape != errors.shape:
        return "no floor: the peer or the reference of this tensor was not measured", {}
    k = float(rule.parameters["k"])
    needed = ((errors - floor.epsilon) / floor.errors).masked_fill(errors <= floor.epsilon, 0.0)
    row = int(needed.argmax())
    worst, token = float(needed[row]), row // rows_per_token
    whole_needed = 0.0 if whole <= floor.epsilon else (whole - floor.epsilon) / floor.whole if floor.whole else math.inf
    numbers = {
        "peer_relative_l2": encode_number(floor.whole),
        "floor_needed": encode_number(whole_needed),
        "floor_needed_by_token": encode_number(worst),
        "floor_token": token,
    }
    if worst <= k and whole_needed <= k:
        farthest = int(errors.argmax())
        return describe_far(float(errors[farthest]), farthest // rows_per_token, whole), numbers
    error, noise = (float(errors[row]), float(floor.errors[row])) if not worst <= k else (whole, floor.whole)
    return f"rel l2 {error:.4g} at token {token} exceeds {k:g} times the floor {noise:.4g}", numbers


def _judge_compact(
    name: str,
    rule: Rule,
    candidate: TensorSource,
    golden: KeptTensor,
    estimates: Estimates,
    floor: NoiseFloor | None,
    location: str,
) -> CheckResult:
    if rule.name == FLOOR and not estimates.non_finite and bool(estimates.norms.any()):
        whole = estimates.relative_l2 * estimates.factor
        wrong, extra = judge_floor(estimates.bounds, whole, floor, rule, estimates.rows_per_token)
        return _result(name, rule, wrong, estimates.to_json() | extra, location)
    same = False
    if rule.name == "exact":
        same = golden.entry.dtype == estimates.candidate_dtype and digest_content(candidate) == golden.entry.content
    return judge_estimates(name, rule, estimates, same, location)


def judge_estimates(name: str, rule: Rule, estimates: Estimates, same: bool, location: str = "") -> CheckResult:
    """Judge estimates under a rule other than `noise_floor`.

    Args:
        name: the tensor's name.
        rule: the rule.
        estimates: how far the two are apart.
        same: whether their contents have equal digests, for `exact`.
        location: where the rule stands.
    """
    numbers = estimates.to_json()
    if rule.name in NEEDS_FULL:
        message = f"`{rule.name}` cannot be judged on a compact golden"
        return _missing(name, f"{message}; raise golden.full_tokens or choose another rule", location)
    if rule.name == "exact":
        error, token = estimates.worst(estimates.errors)
        wrong = f"the content differs: rel l2 about {error:.4g} at token {token} (compact golden)"
        return _result(name, rule, "" if same else wrong, numbers, location)
    if estimates.non_finite:
        wrong = f"NaN or infinities in {estimates.non_finite} rows of the candidate"
        return _result(name, rule, wrong, numbers, location)
    if rule.name in RELATIVE and not bool(estimates.norms.any()):
        wrong = f"compared nothing: all of the golden is zero, against which `{rule.name}` weighs nothing"
        return _result(name, rule, wrong, numbers, location)
    judge = _JUDGES.get(rule.name)
    if judge is None:
        return _missing(name, f"`{rule.name}` cannot be judged on a compact golden", location)
    return _result(name, rule, judge(estimates, rule.parameters), numbers, location)


def _judge_sqnr(estimates: Estimates, limits: Mapping[str, Any]) -> str:
    bound, token = estimates.worst(estimates.bounds)
    ratio = signal_to_noise(bound)
    if ratio >= limits["min"]:
        return ""
    guess = signal_to_noise(float(estimates.errors.max()))
    return f"sqnr {ratio:.4g} dB at token {token} is below {limits['min']:.4g} dB (estimated {guess:.4g} dB)"


def _judge_cosine(estimates: Estimates, limits: Mapping[str, Any]) -> str:
    if estimates.undefined:
        return f"only one side is zero in {estimates.undefined} rows: no cosine"
    cosine, token = estimates.worst(-estimates.cosines)
    if -cosine >= limits["min"]:
        return ""
    return f"cosine {-cosine:.9g} at token {token} is below {limits['min']:.9g} (bounded from projections)"


def _judge_kl(estimates: Estimates, limits: Mapping[str, Any]) -> str:
    if estimates.kl is None:
        return "the golden keeps no distribution of this tensor"
    low, high = estimates.kl
    for name, bound in (("mean", limits["mean"]), ("p99", limits["p99"])):
        if bound is None:
            continue
        most, least = (float(high.mean()), float(low.mean())) if name == "mean" else (percentile(high), percentile(low))
        if not most <= bound:
            worst, token = estimates.worst(high)
            text = f"{name} kl is between {least:.4g} and {most:.4g}, and {bound:.4g} is allowed"
            advice = "; raise golden.top_k for closer bounds" if least <= bound else ""
            return f"{text}, worst {worst:.4g} at token {token}{advice}"
    return ""


def _judge_top_k(estimates: Estimates, limits: Mapping[str, Any]) -> str:
    k = int(limits["k"])
    shares = estimates.overlaps.get(k)
    if shares is None:
        return f"the golden keeps too few of the largest elements for k = {k}; raise golden.top_k"
    if k >= estimates.shape[-1]:
        return f"compared nothing: all {estimates.shape[-1]} elements of a row are among the {k} largest"
    if float(shares.mean()) >= limits["overlap"]:
        return ""
    least, token = estimates.worst(-shares)
    return (
        f"mean overlap of the {k} largest {float(shares.mean()):.4g} is below {limits['overlap']:.4g}, "
        f"worst {-least:.4g} at token {token}"
    )


_JUDGES: dict[str, Callable[[Estimates, Mapping[str, Any]], str]] = {
    "sqnr": _judge_sqnr,
    "cosine": _judge_cosine,
    "kl": _judge_kl,
    "top_k": _judge_top_k,
}


def _result(name: str, rule: Rule, message: str, numbers: Mapping[str, Any], location: str) -> CheckResult:
    return CheckResult(name, rule.name, not message, message, numbers, dict(rule.parameters), location, against=AGAINST)


def _missing(name: str, message: str, location: str) -> CheckResult:
    return CheckResult(name, "evidence", False, message, {}, {}, location, against=AGAINST)
