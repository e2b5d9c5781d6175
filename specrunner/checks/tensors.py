"""Comparing one tensor of candidate and reference under its rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from specrunner.checks.integers import compare_integers
from specrunner.checks.measure import measure
from specrunner.checks.measurements import Measurements
from specrunner.checks.rules import judge, wanted_by
from specrunner.checks.sources import TensorSource
from specrunner.results import CheckResult
from specrunner.spec.model import Rule
from specrunner.spec.tensor_names import model_order


def compare_tensors(
    name: str,
    candidate: TensorSource,
    reference: TensorSource,
    rules: Sequence[Rule],
    *,
    peer: TensorSource | None = None,
    location: str = "",
) -> list[CheckResult]:
    """Compare a tensor under all `rules`, in one pass and in bounded memory.

    Never passes: another shape (nothing is broadcast), a tensor without elements, and a list without rules. Integers
    and booleans can only be `exact`; a float is never compared with them. Different float dtypes are compared as the
    numbers they hold. What NaN and infinities do is said at `rules.judge`.

    Args:
        name: the tensor's name.
        candidate: what the engine under test computed.
        reference: what it is held against.
        rules: all must hold.
        peer: what the reference engine computed at the candidate's dtype, for `noise_floor`.
        location: where the rules stand.

    Returns:
        One result a rule, in their order.
    """
    if not rules:
        return [
            CheckResult(
                name, "evidence", False, "no rule is stated for this tensor: compared nothing", {}, {}, location
            )
        ]
    facts = _facts(candidate, reference, peer)
    refusal = _refuse(candidate, reference)
    if refusal:
        return [_refused(name, rule, refusal, facts, location) for rule in rules]
    if not reference.dtype.is_floating_point:
        return _compare_integers(name, candidate, reference, rules, facts, location)
    peer_refusal = _refuse_peer(peer, reference)
    measured = measure(candidate, reference, peer=None if peer_refusal else peer, wanted=wanted_by(rules))
    return [
        _refused(name, rule, peer_refusal, facts | measured.to_json(), location)
        if peer_refusal and rule.name == "noise_floor"
        else judge(name, rule, measured, location=location)
        for rule in rules
    ]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One tensor of two captures, measured without a rule.

    Attributes:
        name: the tensor's name.
        measured: the measurements, or None when there is nothing to measure.
        problem: why there is nothing to measure, or "".
    """

    name: str
    measured: Measurements | None
    problem: str = ""


def measure_all(candidate: Mapping[str, TensorSource], reference: Mapping[str, TensorSource]) -> list[Comparison]:
    """Measure every float tensor of two captures, for a look without rules and for localisation.

    Args:
        candidate: sources by name.
        reference: sources by name.

    Returns:
        One comparison for each name on either side, in model order; a problem where shapes, dtypes or a missing side
        leave nothing to measure.
    """
    comparisons = []
    for name in sorted(candidate.keys() | reference.keys(), key=lambda name: (model_order(name), name)):
        missing = [side for side, held in (("candidate", candidate), ("reference", reference)) if name not in held]
        if missing:
            comparisons.append(Comparison(name, None, f"missing in {missing[0]}"))
            continue
        ours, theirs = candidate[name], reference[name]
        problem = _refuse(ours, theirs)
        if not problem and not theirs.dtype.is_floating_point:
            problem = compare_integers(ours, theirs)[0] or "integers, all equal"
        measured = None if problem else measure(ours, theirs)
        comparisons.append(Comparison(name, measured, problem))
    return comparisons


def _facts(candidate: TensorSource, reference: TensorSource, peer: TensorSource | None) -> dict[str, Any]:
    sides = {"candidate": candidate, "reference": reference} | ({"peer": peer} if peer is not None else {})
    facts: dict[str, Any] = {}
    for side, source in sides.items():
        facts[f"{side}_shape"] = list(source.shape)
        facts[f"{side}_dtype"] = _dtype(source)
    return facts


def _dtype(source: TensorSource) -> str:
    return str(source.dtype).removeprefix("torch.")


def _refuse(candidate: TensorSource, reference: TensorSource) -> str:
    if candidate.shape != reference.shape:
        return f"shape {list(candidate.shape)} differs from the reference's {list(reference.shape)}"
    if not reference.row_count or not reference.width:
        return f"compared nothing: shape {list(reference.shape)} holds no element"
    kinds = [_kind(source.dtype) for source in (candidate, reference)]
    if "complex" in kinds:
        return "complex numbers cannot be compared"
    if kinds[0] != kinds[1]:
        return f"dtype {_dtype(candidate)} cannot be compared with the reference's {_dtype(reference)}"
    return ""


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_complex:
        return "complex"
    if dtype.is_floating_point:
        return "float"
    return "boolean" if dtype == torch.bool else "integer"


def _refuse_peer(peer: TensorSource | None, reference: TensorSource) -> str:
    if peer is None:
        return ""
    if peer.shape != reference.shape:
        return f"the peer's shape {list(peer.shape)} differs from the reference's {list(reference.shape)}"
    return "" if peer.dtype.is_floating_point else f"the peer's dtype {_dtype(peer)} has no noise"


def _refused(name: str, rule: Rule, message: str, facts: dict[str, Any], location: str) -> CheckResult:
    return CheckResult(name, rule.name, False, message, facts, dict(rule.parameters), location)


def _compare_integers(
    name: str,
    candidate: TensorSource,
    reference: TensorSource,
    rules: Sequence[Rule],
    facts: dict[str, Any],
    location: str,
) -> list[CheckResult]:
    message, numbers = compare_integers(candidate, reference)
    results = []
    for rule in rules:
        text = message
        if rule.name != "exact":
            text = f"`{rule.name}` does not apply to {_dtype(reference)}: only `exact` does"
        results.append(CheckResult(name, rule.name, not text, text, facts | numbers, dict(rule.parameters), location))
    return results
