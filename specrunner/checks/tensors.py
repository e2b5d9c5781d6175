"""Comparing one tensor of candidate and reference under its rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from specrunner.checks.integers import compare_integers
from specrunner.checks.measure import measure
from specrunner.checks.rules import judge, wanted_by
from specrunner.checks.sources import TensorSource
from specrunner.results import CheckResult
from specrunner.spec.model import Rule


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
            CheckResult(name, "none", False, "no rule is stated for this tensor: compared nothing", {}, {}, location)
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
