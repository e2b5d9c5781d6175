"""Judging a case: its checks on the captures of its roles, and the verdict that follows from them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from specrunner.errors import EngineError
from specrunner.plan.model import PlannedCase
from specrunner.results import CheckResult, Failure, Verdict
from specrunner.sessions.captures import StoredCapture
from specrunner.spec.model import Benchmark, Case

ANSWERS = Path(".specrunner") / "benchmarks"
"""Where every run leaves the single answers to its benchmarks."""


def check_captures(
    case: Case, captures: Mapping[str, StoredCapture], facts: Mapping[str, Mapping[str, Any]]
) -> tuple[CheckResult, ...]:
    """Make every check of a case on its captures by role; torch is imported here, when the first case is judged."""
    if case.benchmark is not None:
        return check_answers(case, case.benchmark, captures)
    from specrunner.checks.evidence import LoadedCapture, check_case
    from specrunner.checks.sources import open_tensors

    loaded = {
        role: LoadedCapture(
            stored.prompt_token_ids,
            open_tensors(stored.tensors_path) if stored.tensors_path else {},
            stored.output_token_ids,
            facts[role],
        )
        for role, stored in captures.items()
    }
    return tuple(check_case(case, loaded))


def check_answers(case: Case, benchmark: Benchmark, captures: Mapping[str, StoredCapture]) -> tuple[CheckResult, ...]:
    """Judge a benchmark by its records: the candidate's, and the reference's or the baseline's file."""
    from specrunner.benchmark_record import read_record
    from specrunner.checks.benchmark import check_benchmark

    paths = {role: capture.benchmark_path for role, capture in captures.items()}
    if benchmark.baseline is not None and benchmark.baseline.file is not None:
        paths["reference"] = Path(benchmark.baseline.file)
    location = str(case.location)
    candidate = paths["candidate"]
    if candidate is not None:
        keep_answers(case, candidate)
    try:
        records = {role: read_record(path).tasks for role, path in paths.items() if path is not None}
    except EngineError as error:
        return (CheckResult("benchmark", "evidence", False, error.message, {}, {}, location, against=""),)
    return tuple(check_benchmark(benchmark, records["candidate"], records.get("reference"), location))


def keep_answers(case: Case, path: Path) -> None:
    """Keep a candidate's single answers, so that a later run can be held against them (`baseline.file`)."""
    kept = ANSWERS / case.suite.lstrip("/").replace("..", "") / f"{case.id}.json"
    with suppress(OSError):  # as with the last run's report, a read-only directory spoils no verdict
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, kept)


def find_missing_evidence(checks: Sequence[CheckResult]) -> Failure | None:
    """Return why there is no evidence, when nothing measured is wrong but something could not be compared."""
    failed = [check for check in checks if check.fails]
    missing = [check for check in failed if check.rule == "evidence"]
    if not missing or len(missing) < len(failed):
        return None
    return Failure("missing-evidence", f"{missing[0].subject}: {missing[0].message}")


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


def settle_inconclusive(checks: Sequence[CheckResult], strict: bool) -> tuple[CheckResult, ...]:
    """Return the checks; under `--strict`, what could not be told counts as failed."""
    return tuple(replace(check, inconclusive=False) if strict and check.inconclusive else check for check in checks)
