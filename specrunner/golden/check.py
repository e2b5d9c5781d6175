"""Judging a whole case against its golden: the right one is found, then prompt, tensors and tokens are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from specrunner.checks.evidence import LoadedCapture, describe_coarse, find_tolerance
from specrunner.checks.tokens import compare_prompt_ids, compare_tokens
from specrunner.errors import GoldenError
from specrunner.golden.judge import AGAINST, judge_tensor, measure_floor
from specrunner.golden.kept import Golden, read_golden
from specrunner.golden.keys import find_slot, name_device
from specrunner.golden.staleness import find_stale
from specrunner.golden.store import MAKE, State, exists
from specrunner.results import CheckResult
from specrunner.spec.model import Case
from specrunner.spec.tensor_names import match_name, select_names

REMAKE = "make it anew with `specrunner run … --update-goldens`, then `specrunner golden review`"


def find_golden(case: Case, facts: Mapping[str, Any]) -> Golden:
    """Return the golden that serves a case: of the device itself, else of the first declared fallback that has one.

    Args:
        case: a case with a golden.
        facts: of the candidate's session: `device`, `model_digest`.

    Raises:
        GoldenError: there is none, it is damaged, or it was made from another spec or model.
    """
    assert case.golden is not None
    own = name_device(str(facts.get("device", "unknown")))
    devices = list(dict.fromkeys((own, *case.golden.fallback)))
    found = next((device for device in devices if exists(find_slot(case, device))), None)
    if found is None:
        keys = " or ".join(devices)
        raise GoldenError(f"no golden for {keys}", help=MAKE, kind="golden-missing")
    golden = read_golden(find_slot(case, found), State.ACCEPTED)
    problem = find_stale(golden.manifest, case, str(facts.get("model_digest") or ""))
    if problem:
        raise GoldenError(problem, help=REMAKE, kind="golden-stale")
    return golden


def check_golden(
    case: Case,
    candidate: LoadedCapture,
    golden: Golden,
    reference: LoadedCapture | None = None,
    peer: LoadedCapture | None = None,
) -> list[CheckResult]:
    """Make every check of a case against its golden, in model order; all have `against="golden"`.

    Args:
        case: what to check.
        candidate: what the engine under test did.
        golden: what it is held against.
        reference: this run's reference, from which a noise floor is measured.
        peer: this run's peer, likewise.
    """
    location = str(case.location)
    tokenization = compare_prompt_ids(candidate.prompt_token_ids, golden.manifest.prompt_token_ids, location=location)
    if not tokenization.passed:
        message = f"{tokenization.message}; nothing else was compared"
        return [replace(tokenization, message=message, against=AGAINST)]
    results = [tokenization, *_check_tensors(case, candidate, golden, reference, peer)]
    if case.tokens is not None:
        tokens = compare_tokens(candidate.output_token_ids, golden.manifest.output_token_ids, location=location)
        # Which of two near ties an engine takes is noise, and only a live reference has the logits to tell.
        results.append(replace(tokens, gates=case.tokens.name == "exact" or tokens.rule == "evidence"))
    return [replace(result, against=AGAINST) for result in results]


def _check_tensors(
    case: Case,
    candidate: LoadedCapture,
    golden: Golden,
    reference: LoadedCapture | None,
    peer: LoadedCapture | None,
) -> list[CheckResult]:
    results: list[CheckResult] = []
    names = select_names(case.tensors, candidate.tensors.keys() | golden.tensors.keys())
    for name in names:
        tolerance = find_tolerance(case, name)
        location = str(tolerance.location if tolerance else case.location)
        sides = (("candidate", candidate.tensors), ("golden", golden.tensors))
        missing = [side for side, tensors in sides if name not in tensors]
        if missing:
            results.append(_fail(name, f"missing in {' and '.join(missing)}", location))
            continue
        rules = tolerance.rules if tolerance else ()
        coarse = describe_coarse(candidate.tensors[name], case.candidate.dtype, rules)
        if coarse:
            results.append(_fail(name, coarse, location))
        needs_floor = any(rule.name == "noise_floor" for rule in rules)
        floor = None
        if needs_floor and reference is not None and peer is not None:
            floor = measure_floor(peer.tensors.get(name), reference.tensors.get(name))
        results += judge_tensor(
            name, candidate.tensors[name], golden.tensors[name], rules, floor=floor, location=location
        )
    for pattern in case.tensors:
        if not any(match_name(pattern, name) for name in names):
            results.append(_fail(pattern, "the pattern selects no tensor of candidate or golden", str(case.location)))
    return results


def _fail(subject: str, message: str, location: str) -> CheckResult:
    return CheckResult(subject, "evidence", False, message, {}, {}, location, against=AGAINST)
