"""Judging measurements under the rules of DESIGN section 6."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from specrunner.checks.measure import Wanted
from specrunner.checks.measurements import At, Measurements, encode_number
from specrunner.results import CheckResult
from specrunner.spec.model import REFERENCE_DTYPES, Rule

MASKS_ALLOWED = frozenset({"exact", "allclose"})
"""Rules under which a pair of equal infinities, as an attention mask leaves them, counts as equal."""

RELATIVE = frozenset({"cosine", "sqnr", "noise_floor", "kl", "top_k"})
"""Rules that weigh by the reference's size or rank its elements; a reference that is all zeros tells them nothing."""

AS_FAR_AS_ZEROS = 1.0
"""The relative L2 error of a row of zeros: from here on `noise_floor` never passes, whatever the floor is."""


def wanted_by(rules: Sequence[Rule]) -> Wanted:
    """Return what has to be measured so that all of `rules` can be judged."""
    of = {name: [rule.parameters for rule in rules if rule.name == name] for name in {rule.name for rule in rules}}
    return Wanted(
        allclose=tuple(dict.fromkeys(_bounds(parameters) for parameters in of.get("allclose", []))),
        differing="exact" in of,
        kl="kl" in of,
        top_k=tuple(dict.fromkeys(int(parameters["k"]) for parameters in of.get("top_k", []))),
    )


def judge(name: str, rule: Rule, measured: Measurements, *, location: str = "") -> CheckResult:
    """Judge one rule on what was measured.

    What holds for all rules: an element that is NaN or infinite on either side fails, but for pairs of equal
    infinities under `exact` and `allclose`; a reference that is not finite is no evidence, whatever the candidate
    says; a pair without a single finite element on both sides compared nothing, and neither did a rule of `RELATIVE`
    on a reference of zeros alone. A limit is never replaced by a default, and a measurement that is NaN never holds.

    Args:
        name: the tensor's name.
        rule: one of the rules on tensors, with complete parameters.
        measured: what `measure` returned for `wanted_by` rules that include this one.
        location: where the rule stands.

    Returns:
        The result, with every measurement; one that fails also has the error token by token.
    """
    numbers = measured.to_json()
    judgement = _JUDGES.get(rule.name)
    if judgement is None:
        message = f"the rule `{rule.name}` does not apply to tensors"
    else:
        message = _refuse_non_finite(rule.name, measured) or _refuse_zeros(rule.name, measured)
        verdict, extra = judgement(measured, rule.parameters)
        message = message or verdict
        numbers |= extra
    if message:
        numbers |= measured.describe_tokens()
    return CheckResult(name, rule.name, not message, message, numbers, dict(rule.parameters), location)


def _refuse_non_finite(rule: str, measured: Measurements) -> str:
    counts = measured.non_finite
    if counts.unmatched:
        assert counts.first is not None
        token, pair = counts.first.token, f"{counts.first.candidate} against {counts.first.reference}"
        kinds = (
            (counts.candidate_nan, "NaN in the candidate"),
            (counts.candidate_inf, "infinities in the candidate"),
            (counts.reference_nan, "NaN in the reference"),
            (counts.reference_inf, "infinities in the reference"),
        )
        found = ", ".join(f"{count} {kind}" for count, kind in kinds if count)
        return f"{found}; first at token {token}: {pair}"
    if counts.any and rule not in MASKS_ALLOWED:
        return f"{counts.equal_infinities} infinities on both sides, which `{rule}` cannot compare"
    if not measured.compared:
        return "compared nothing: no element is finite on both sides"
    return ""


def _refuse_zeros(rule: str, measured: Measurements) -> str:
    if measured.reference_zero and rule in RELATIVE:
        return f"compared nothing: all of the reference is zero, against which `{rule}` weighs nothing"
    return ""


def _number(value: float) -> str:
    return f"{value:.4g}"


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"


def _worst(measured: Measurements) -> str:
    return f"max |a-r| {_number(measured.max_abs.value)} at token {measured.max_abs.token}"


Judgement = tuple[str, dict[str, Any]]


def _judge_exact(measured: Measurements, limits: Mapping[str, Any]) -> Judgement:
    if not measured.differing:
        return "", {}
    assert measured.first is not None
    first = measured.first
    return (
        f"{_worst(measured)} exceeds 0: {measured.differing} of {measured.elements} elements differ, "
        f"first at token {first.token}: {first.candidate:.9g} against {first.reference:.9g}"
    ), {}


def _bounds(limits: Mapping[str, Any]) -> tuple[float, float]:
    return float(limits["rtol"]), float(limits["atol"])


def _judge_allclose(measured: Measurements, limits: Mapping[str, Any]) -> Judgement:
    rtol, atol = _bounds(limits)
    close = measured.allclose[rtol, atol]
    share = close.outside / measured.elements
    extra = {"outside": close.outside, "outside_fraction": share}
    if share <= limits["outliers"]:
        return "", extra
    bound, allowed = f"{_number(atol)} + {_number(rtol)} * |r|", _share(limits["outliers"])
    return (
        f"{_worst(measured)}: {close.outside} of {measured.elements} elements exceed {bound} "
        f"(allowed {allowed}), worst at token {close.worst.token}"
    ), extra


def _judge_ulp(measured: Measurements, limits: Mapping[str, Any]) -> Judgement:
    largest, share = limits["max"], limits["over_one"]
    if not measured.ulp.value <= largest:
        return f"{_number(measured.ulp.value)} ulp at token {measured.ulp.token} exceeds {_number(largest)} ulp", {}
    if not measured.ulp_over_one <= share:
        return (
            f"{_share(measured.ulp_over_one)} of the elements are over 1 ulp apart, which exceeds {_share(share)}",
            {},
        )
    return "", {}


def _judge_cosine(measured: Measurements, limits: Mapping[str, Any]) -> Judgement:
    if measured.cosine_undefined:
        return f"only one side is zero in {measured.cosine_undefined} of {measured.rows} rows: no cosine", {}
    return _below("cosine {:.9g}", "{:.9g}", measured.cosine, limits["min"]), {}


def _judge_sqnr(measured: Measurements, limits: Mapping[str, Any]) -> Judgement:
    return _below("sqnr {:.4g} dB", "{:.4g} dB", measured.sqnr, limits["min"]), {}


def _below(form: str, bound: str, measured: At, least: float) -> str:
    if measured.value >= least:
        return ""
    return f"{form.format(measured.value)} at token {measured.token} is below {bound.format(least)}"


def _judge_kl(measured: Measurements, limits: Mapping[str, Any]) -> Judgement:
    kl = measured.kl
    assert kl is not None
    if measured.width == 1:
        return "compared nothing: a vocabulary of one element leaves no choice", {}
    worst = f"worst {_number(kl.max.value)} at token {kl.max.token}"
    bounds = [(name, value, limits[name]) for name, value in (("mean", kl.mean), ("p99", kl.p99))]
    for name, value, bound in bounds:
        if bound is not None and not value <= bound:
            return f"{name} kl {_number(value)} exceeds {_number(bound)}, {worst}", {}
    return "" if any(bound is not None for _, _, bound in bounds) else "the rule bounds nothing", {}


def _judge_top_k(measured: Measurements, limits: Mapping[str, Any]) -> Judgement:
    k = int(limits["k"])
    overlap = measured.top_k[k]
    if k >= measured.width:
        return f"compared nothing: all {measured.width} elements of a row are among the {k} largest", {}
    if overlap.mean >= limits["overlap"]:
        return "", {}
    return (
        f"mean overlap of the {k} largest {_number(overlap.mean)} is below {_number(limits['overlap'])}, "
        f"worst {_number(overlap.min.value)} at token {overlap.min.token}"
    ), {}


def _judge_noise_floor(measured: Measurements, limits: Mapping[str, Any]) -> Judgement:
    floor, k = measured.floor, float(limits["k"])
    if floor is None:
        return "no peer: the floor of the reference engine at the candidate's dtype was not measured", {}
    if measured.reference_dtype not in REFERENCE_DTYPES:
        return f"a {measured.reference_dtype} reference cannot show a noise floor: it must be float32 or float64", {}
    if measured.non_finite.peer:
        return f"{measured.non_finite.peer} elements of the peer are NaN or infinite: no floor", {}
    needed = [floor.needed, floor.needed_by_token.value]
    extra = {
        "floor_ratio": encode_number(_ratio(*floor.whole)),
        "floor_ratio_by_token": encode_number(_ratio(*floor.worst)),
        "margin": encode_number(_margin(k, needed)),
    }
    # If every row holds, the whole does too (the triangle inequality); it is judged as well, since the rule says so.
    if needed[0] <= k and needed[1] <= k:
        return describe_far(measured.token_rel_l2.value, measured.token_rel_l2.token, measured.rel_l2), extra
    if floor.whole[0] > floor.epsilon and floor.whole[1] == 0:
        return f"the peer equals the reference, so there is no noise, but rel l2 is {_number(floor.whole[0])}", extra
    token = floor.needed_by_token.token
    if not needed[1] <= k:
        error, peer_error, where = *floor.worst, f"at token {token}"
    else:
        error, peer_error, where = *floor.whole, "over the whole tensor"
    return (
        f"rel l2 {_number(error)} {where} is {_ratio(error, peer_error):.3g} times the floor {_number(peer_error)} "
        f"and exceeds {k:g} times"
    ), extra


def describe_far(error: float, token: int | None, whole: float) -> str:
    """Say that a candidate is as far from its reference as zeros are, which no noise excuses; "" where it is not.

    Args:
        error: the largest relative L2 error of a row.
        token: that row's token.
        whole: the relative L2 error over the whole tensor.
    """
    if error >= AS_FAR_AS_ZEROS:
        return f"rel l2 {_number(error)} at token {token}: as far from the reference as zeros are"
    if whole >= AS_FAR_AS_ZEROS:
        return f"rel l2 {_number(whole)} over the whole tensor: as far from the reference as zeros are"
    return ""


def _ratio(error: float, peer_error: float) -> float:
    return error / peer_error if peer_error else (math.inf if error else 1.0)


def _margin(k: float, needed: list[float]) -> float:
    if any(math.isnan(value) for value in needed):
        return math.nan
    return k / max(needed) if max(needed) else math.inf


_JUDGES: dict[str, Callable[[Measurements, Mapping[str, Any]], Judgement]] = {
    "exact": _judge_exact,
    "allclose": _judge_allclose,
    "ulp": _judge_ulp,
    "cosine": _judge_cosine,
    "sqnr": _judge_sqnr,
    "kl": _judge_kl,
    "top_k": _judge_top_k,
    "noise_floor": _judge_noise_floor,
}
