"""Judging a case: its checks on the captures of its roles, and the verdict that follows from them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from specrunner.errors import EngineError, ExitCode
from specrunner.plan.model import OWN_ROLES, PlannedCase, select_repeat, split_role
from specrunner.results import CheckResult, Failure, Verdict, find_failed_repeats, tell_check
from specrunner.sessions.captures import StoredCapture
from specrunner.spec.model import Benchmark, Case


def judge_repeats(
    planned: PlannedCase,
    captures: Mapping[str, StoredCapture],
    facts: Mapping[str, Mapping[str, Any]],
    *,
    strict: bool = False,
) -> tuple[CheckResult, ...]:
    """Make every check of a case on each of its repeats that has all its captures.

    Args:
        planned: the case, and the captures it needs.
        captures: those that there are, by role.
        facts: by role, of session and request.
        strict: whether what could not be told counts as failed.
    """
    checks: list[CheckResult] = []
    for repeat in find_whole_repeats(planned, captures):
        found = check_captures(planned.case, select_repeat(captures, repeat), select_repeat(facts, repeat))
        checks += (replace(check, repeat=repeat) for check in settle_inconclusive(found, strict))
    return tuple(checks)


def compare_repeats(
    planned: PlannedCase, captures: Mapping[str, StoredCapture], checks: Sequence[CheckResult]
) -> tuple[CheckResult, ...]:
    """Measure whether the repeats of a case gave the same answers; empty where there are not two to compare."""
    repeats = find_whole_repeats(planned, captures)
    if len(repeats) < 2:
        return ()
    from specrunner.checks.evidence import load_captures
    from specrunner.checks.repeats import compare_repeats as compare

    own = {role: capture for role, capture in captures.items() if split_role(role)[0] in OWN_ROLES}
    loaded = {repeat: load_captures(select_repeat(own, repeat)) for repeat in repeats}
    return (compare(loaded, find_failed_repeats(checks), location=str(planned.case.location)),)


def find_whole_repeats(planned: PlannedCase, captures: Mapping[str, StoredCapture]) -> list[int]:
    """Return the repeats of a case for which there is every capture that it needs."""
    return [
        repeat
        for repeat in range(1, planned.case.repeat + 1)
        if select_repeat(planned.evidence, repeat).keys() <= select_repeat(captures, repeat).keys()
    ]


def check_captures(
    case: Case, captures: Mapping[str, StoredCapture], facts: Mapping[str, Mapping[str, Any]]
) -> tuple[CheckResult, ...]:
    """Make every check of a case on its captures by plain role; torch is imported with the first."""
    if case.benchmark is not None:
        return check_answers(case, case.benchmark, captures)
    from specrunner.checks.evidence import check_case, load_captures

    return tuple(check_case(case, load_captures(captures, facts)))


def check_answers(case: Case, benchmark: Benchmark, captures: Mapping[str, StoredCapture]) -> tuple[CheckResult, ...]:
    """Judge a benchmark by its records: the candidate's, and the reference's or the baseline's file."""
    from specrunner.benchmark_record import read_record
    from specrunner.checks.benchmark import check_benchmark

    paths = {role: capture.benchmark_path for role, capture in captures.items()}
    if benchmark.baseline is not None and benchmark.baseline.file is not None:
        paths["reference"] = Path(benchmark.baseline.file)
    location = str(case.location)
    candidate = paths["candidate"]
    try:
        records = {role: read_record(path).tasks for role, path in paths.items() if path is not None}
    except EngineError as error:
        return (CheckResult("benchmark", "evidence", False, error.message, {}, {}, location, against=""),)
    finally:  # a baseline may lie where the answers go; and the first run, which lacks one, makes it
        if candidate is not None:
            keep_answers(case, candidate)
    return tuple(check_benchmark(benchmark, records["candidate"], records.get("reference"), location))


def keep_answers(case: Case, path: Path) -> None:
    """Keep a candidate's single answers, so that a later run can be held against them (`baseline.file`)."""
    from specrunner.benchmark_record import locate_answers

    kept = locate_answers(case.suite, case.id)
    with suppress(OSError):  # as with the last run's report, a read-only directory spoils no verdict
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, kept)


def find_missing_evidence(checks: Sequence[CheckResult]) -> Failure | None:
    """Return why there is no evidence, when nothing measured is wrong but something could not be compared."""
    failed = [check for check in checks if check.fails]
    missing = [check for check in failed if check.rule == "evidence"]
    if not missing or len(missing) < len(failed):
        return None
    return Failure("missing-evidence", tell_check(missing[0]))


def settle_verdict(planned: PlannedCase, checks: Sequence[CheckResult], failure: Failure | None) -> Verdict:
    """Decide a case's verdict; a case without any check has no evidence."""
    if failure is not None or not checks:
        return Verdict.ERROR
    passed = not any(check.fails for check in checks)
    if passed and any(check.inconclusive for check in checks):
        return Verdict.INCONCLUSIVE
    if planned.case.expected_to_fail:
        return Verdict.XPASSED if passed else Verdict.XFAILED
    return Verdict.PASSED if passed else Verdict.FAILED


def settle_exit(verdicts: Mapping[Verdict, int]) -> ExitCode:
    """Return the exit status of a run that came to its end, by how many cases had each verdict."""
    if verdicts.get(Verdict.FAILED) or verdicts.get(Verdict.XPASSED):
        return ExitCode.FAILED
    if verdicts.get(Verdict.ERROR):
        return ExitCode.ERRORS
    if not verdicts.get(Verdict.PASSED) and not verdicts.get(Verdict.XFAILED):
        return ExitCode.NOTHING_VERIFIED
    return ExitCode.PASSED


def settle_inconclusive(checks: Sequence[CheckResult], strict: bool) -> tuple[CheckResult, ...]:
    """Return the checks; under `--strict`, what could not be told counts as failed."""
    return tuple(replace(check, inconclusive=False) if strict and check.inconclusive else check for check in checks)
