"""Judging a whole case: every check it asks for, in model order, on the captures of its engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch

from specrunner.checks.attention import compare_attention
from specrunner.checks.forced import describe_free_run, judge_forced
from specrunner.checks.routing_evidence import Routed, judge_routing
from specrunner.checks.sources import TensorSource, open_tensors
from specrunner.checks.tensors import compare_tensors
from specrunner.checks.tokens import compare_prompt_ids, compare_tokens
from specrunner.checks.trajectory import Walk, check_sampler, compare_walks
from specrunner.results import CheckResult
from specrunner.sessions.captures import StoredCapture
from specrunner.spec.model import Case, Rule, Tolerance
from specrunner.spec.tensor_names import match_name, select_names


@dataclass(frozen=True, slots=True)
class LoadedCapture:
    """A capture as the checks read it.

    Attributes:
        prompt_token_ids: the ids the model saw.
        tensors: sources by name, such as `sources.open_tensors` returns; it may hold more than the case asks for.
        output_token_ids: generated ids, or None.
        facts: facts of the session and, under `request`, of the request.
    """

    prompt_token_ids: Sequence[int]
    tensors: Mapping[str, TensorSource] = field(default_factory=dict)
    output_token_ids: Sequence[int] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def request_facts(self) -> Mapping[str, Any]:
        """Facts of the request alone."""
        facts: Mapping[str, Any] = self.facts.get("request", {})
        return facts

    @property
    def routed(self) -> Routed:
        """What the rule `routing` reads."""
        return Routed(self.tensors, self.facts.get("router"))


def load_captures(
    captures: Mapping[str, StoredCapture], facts: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
) -> dict[str, LoadedCapture]:
    """Open captures by role.

    Args:
        captures: by role, see `check_case`.
        facts: by role, those of the session with the request's under `request`; none for a role that is not there.

    Returns:
        By role; the tensors are read when they are asked for.

    Raises:
        OSError: a file of tensors cannot be opened.
        safetensors.SafetensorError: it is not whole.
    """
    return {
        role: LoadedCapture(
            stored.prompt_token_ids,
            open_tensors(stored.tensors_path) if stored.tensors_path else {},
            stored.output_token_ids,
            facts.get(role, {}),
        )
        for role, stored in captures.items()
    }


def check_case(case: Case, captures: Mapping[str, LoadedCapture]) -> list[CheckResult]:
    """Make every check of a case: tokenization, attention, its tensors in model order, its tokens.

    Evidence that is missing fails: a tensor that one side lacks, a pattern that selects nothing, a tensor without a
    rule, a tensor under `ulp` that is coarser than the case's dtype, tokens that were not generated. When the prompts
    were tokenised differently nothing else is compared, and that one check says so.

    Args:
        case: what to check.
        captures: by role: `candidate`, `reference`, `peer` (what the reference engine did at the candidate's dtype, for
            measured limits), `forced` (the candidate led by the reference, for `near_tie`), `probe` (for `attention`).

    Returns:
        The results. At least one of them compares something or fails: all passed means that the case passed. A case
        with a golden may have none: `golden.check` has the others.
    """
    location = str(case.location)
    results = []
    reference = captures.get("reference")
    if (
        reference is None
        and case.golden is None
        and (case.tensors or case.tokens or (case.attention is None and case.trajectory is None))
    ):
        results.append(_fail("case", "the case has no reference, so its checks compare nothing", location))
    for role in ("candidate", "forced", "peer") if reference is not None else ():
        if role not in captures:
            continue
        ids = captures[role].prompt_token_ids
        tokenization = compare_prompt_ids(ids, reference.prompt_token_ids if reference else (), location=location)
        if not tokenization.passed:
            return [_stop(tokenization, "the peer's prompt: " if role == "peer" else "")]
        if not results:
            results.append(tokenization)
    if case.attention is not None:
        results.append(_check_attention(case, captures.get("probe")))
    if reference is not None:
        if case.tensors:
            candidate = captures.get("candidate", LoadedCapture(()))
            results += _check_tensors(case, candidate, reference, captures.get("peer"))
        if case.tokens is not None:
            results += _check_tokens(case, captures, reference)
    if case.trajectory is not None:
        results += _check_trajectory(case, captures.get("candidate"), reference)
    if not any(result.subject != "tokenization" for result in results) and case.golden is None:
        results.append(_fail("case", "the case states no check: compared nothing", location))
    return results


def _check_attention(case: Case, probe: LoadedCapture | None) -> CheckResult:
    location = str(case.marks.get("attention", case.location))
    assert case.attention is not None
    if probe is None:
        return _fail("attention", "missing in candidate: the probe", location)
    return compare_attention(case.attention, probe.tensors, dtype=case.candidate.dtype, location=location)


def _check_tokens(case: Case, captures: Mapping[str, LoadedCapture], reference: LoadedCapture) -> list[CheckResult]:
    location, rule = str(case.location), case.tokens
    assert rule is not None
    if rule.name != "near_tie":
        ours = captures["candidate"].output_token_ids if "candidate" in captures else None
        return [compare_tokens(ours, reference.output_token_ids, rule=rule.name, location=location)]
    forced = captures.get("forced")
    if forced is None or case.decode is None:
        return [_fail("tokens", "missing in candidate: the run led by the reference", location)]
    gate = judge_forced(
        rule,
        case.decode,
        forced.tensors,
        forced.request_facts,
        reference.tensors,
        reference.request_facts,
        reference.output_token_ids,
        dtype=case.candidate.dtype,
        location=location,
    )
    return [gate, describe_free_run(forced.output_token_ids, reference.output_token_ids, location)]


def _check_trajectory(
    case: Case, candidate: LoadedCapture | None, reference: LoadedCapture | None
) -> list[CheckResult]:
    location, rule = str(case.marks.get("trajectory", case.location)), case.trajectory
    assert rule is not None
    if candidate is None or case.decode is None:
        return [_fail("trajectory", "missing in candidate: its decode", location)]
    walks = [
        Walk(side.prompt_token_ids, side.output_token_ids, side.tensors, side.request_facts)
        for side in (candidate, reference)
        if side is not None
    ]
    results = []
    if rule.name == "sampler":
        kappa = float(rule.parameters["kappa"])
        results.append(check_sampler(walks[0], case.decode, kappa=kappa, location=location))
    if len(walks) == 2:
        results.append(compare_walks(walks[0], walks[1], case.decode, gates=rule.name == "exact", location=location))
    return results


def _check_tensors(
    case: Case, candidate: LoadedCapture, reference: LoadedCapture, peer: LoadedCapture | None
) -> list[CheckResult]:
    results: list[CheckResult] = []
    names = select_names(case.tensors, candidate.tensors.keys() | reference.tensors.keys())
    for name in names:
        tolerance = find_tolerance(case, name)
        location = str(tolerance.location) if tolerance else str(case.location)
        missing = [
            role
            for role, capture in (("candidate", candidate), ("reference", reference))
            if name not in capture.tensors
        ]
        if missing:
            results.append(_fail(name, f"missing in {' and '.join(missing)}", location))
            continue
        rules = tolerance.rules if tolerance else ()
        coarse = describe_coarse(candidate.tensors[name], case.candidate.dtype, rules)
        if coarse:
            results.append(_fail(name, coarse, location))
        routing = [rule for rule in rules if rule.name == "routing"]
        if len(routing) < len(rules) or not rules:
            results += compare_tensors(
                name,
                candidate.tensors[name],
                reference.tensors[name],
                [rule for rule in rules if rule.name != "routing"],
                peer=peer.tensors.get(name) if peer else None,
                location=location,
            )
        for rule in routing:
            noise = peer.routed if peer else None
            results.append(judge_routing(name, rule, candidate.routed, reference.routed, noise, location))
    for pattern in case.tensors:
        if not any(match_name(pattern, name) for name in names):
            message = "missing in candidate and reference: the pattern selects no captured tensor"
            results.append(_fail(pattern, message, str(case.location)))
    return results


def describe_coarse(candidate: TensorSource, dtype: str, rules: Sequence[Rule]) -> str:
    """Say that a tensor is coarser than its case's dtype where a rule takes its unit from the tensor; "" otherwise.

    An engine that computed in bfloat16 would pass `ulp: 1` in a case that states float32. A finer dtype is fine:
    engines keep router scores and logits in float32.

    Args:
        candidate: what the engine under test captured, of any dtype.
        dtype: what the case states for the candidate, one of `DTYPES`.
        rules: the tensor's.
    """
    if not candidate.dtype.is_floating_point or not any(rule.name == "ulp" for rule in rules):
        return ""
    if torch.finfo(candidate.dtype).eps <= torch.finfo(getattr(torch, dtype)).eps:
        return ""
    captured = str(candidate.dtype).removeprefix("torch.")
    return f"the candidate's {captured} is coarser than the case's {dtype}, so its `ulp` shows nothing"


def find_tolerance(case: Case, name: str) -> Tolerance | None:
    """Return the first tolerance whose pattern matches the tensor `name`, or None."""
    return next((tolerance for tolerance in case.tolerance if match_name(tolerance.pattern, name)), None)


def _fail(subject: str, message: str, location: str) -> CheckResult:
    return CheckResult(subject, "evidence", False, message, {}, {}, location)


def _stop(check: CheckResult, whose: str = "") -> CheckResult:
    return CheckResult(
        check.subject,
        check.rule,
        False,
        f"{whose}{check.message}; nothing else was compared",
        check.measurements,
        check.limits,
        check.location,
    )
