"""Judging a whole case: every check it asks for, in model order, on the captures of its engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from specrunner.checks.sources import TensorSource
from specrunner.checks.tensors import compare_tensors
from specrunner.checks.tokens import compare_prompt_ids, compare_tokens
from specrunner.results import CheckResult
from specrunner.spec.model import Case, Tolerance
from specrunner.spec.tensor_names import match_name, select_names


@dataclass(frozen=True, slots=True)
class LoadedCapture:
    """A capture as the checks read it.

    Attributes:
        prompt_token_ids: the ids the model saw.
        tensors: sources by name, such as `sources.open_tensors` returns; it may hold more than the case asks for.
        output_token_ids: generated ids, or None.
    """

    prompt_token_ids: Sequence[int]
    tensors: Mapping[str, TensorSource] = field(default_factory=dict)
    output_token_ids: Sequence[int] | None = None


def check_case(
    case: Case, candidate: LoadedCapture, reference: LoadedCapture | None, peer: LoadedCapture | None = None
) -> list[CheckResult]:
    """Make every check of a case: tokenization, then its tensors in model order, then its tokens.

    Evidence that is missing fails: a tensor that one side lacks, a pattern that selects nothing, a tensor without a
    rule, tokens that were not generated. When the prompts were tokenised differently nothing else is compared, and that
    one check says so.

    Args:
        case: what to check.
        candidate: what the engine under test did.
        reference: what it is held against.
        peer: what the reference engine did at the candidate's dtype, for `noise_floor` rules.

    Returns:
        The results. At least one of them compares something or fails: all passed means that the case passed.
    """
    if reference is None:
        return [_fail("case", "the case has no reference, so its checks compare nothing", str(case.location))]
    location = str(case.location)
    tokenization = compare_prompt_ids(candidate.prompt_token_ids, reference.prompt_token_ids, location=location)
    if not tokenization.passed:
        return [_stop(tokenization)]
    if peer is not None:
        same = compare_prompt_ids(peer.prompt_token_ids, reference.prompt_token_ids, location=location)
        if not same.passed:
            return [_stop(same, "the peer's prompt: ")]
    results = [tokenization, *_check_tensors(case, candidate, reference, peer)]
    if case.tokens is not None:
        results.append(
            compare_tokens(candidate.output_token_ids, reference.output_token_ids, rule=case.tokens, location=location)
        )
    if len(results) == 1:
        results.append(_fail("case", "the case states no check: compared nothing", location))
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
        results += compare_tensors(
            name,
            candidate.tensors[name],
            reference.tensors[name],
            tolerance.rules if tolerance else (),
            peer=peer.tensors.get(name) if peer else None,
            location=location,
        )
    for pattern in case.tensors:
        if not any(match_name(pattern, name) for name in names):
            message = "missing in candidate and reference: the pattern selects no captured tensor"
            results.append(_fail(pattern, message, str(case.location)))
    return results


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
