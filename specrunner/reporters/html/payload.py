"""What the HTML page shows, as plain values: the run, a short line for each case, and each case's evidence."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from specrunner.reporters.details import LABELS
from specrunner.reporters.escape import escape_line, escape_text
from specrunner.reporters.evidence import (
    count_later_failures,
    describe_facts,
    describe_golden,
    describe_golden_failures,
)
from specrunner.reporters.margins import describe_worst, find_margins
from specrunner.reporters.record import CaseRecord, EngineRecord, RunRecord
from specrunner.reporters.wording import VERDICT_WORDS
from specrunner.results import (
    CheckResult,
    Verdict,
    describe_repeats,
    find_failed_repeats,
    find_side,
    select_side,
    select_telling,
)
from specrunner.secrets import own_redactor
from specrunner.words import plural

CHUNK = 50
"""How many cases are compressed together: the page unpacks only those that are looked at."""

MOST_WHOLE = 500
"""In a run of more cases, what passed keeps only what its rules judged; the JSON report has the rest."""

_GREEN = (Verdict.PASSED, Verdict.SKIPPED)
_ORDER = sorted(VERDICT_WORDS, key=lambda verdict: verdict is Verdict.PASSED)
_MESSAGE = 240
_LINES_BEFORE = 4
_LINES_AFTER = 24
_LARGEST_SPEC = 4_000_000
_DIGITS = 6
_SLIM_DIGITS = 3
_KEPT_FACTS = ("model_class", "versions", "device", "attention_backend", "patches", "dtype")


def describe_run(run: RunRecord) -> dict[str, Any]:
    """Return the facts of the run as a whole."""
    head = run.head_to_json()
    slim = len(run.cases) > MOST_WHOLE
    facts = {name: head[name] for name in ("run", "counts", "environment", "sessions")}
    result: dict[str, Any] = clean(facts | {"chunk": CHUNK, "slim": slim, "labels": LABELS, "order": _ORDER})
    return result


def list_cases(run: RunRecord) -> list[list[Any]]:
    """Return `[node id, id, suite, verdict, message, seconds, engine, model, tags]` for each case, in plan order."""
    return [
        clean(
            [
                case.node_id,
                case.id,
                case.suite,
                case.verdict.value,
                _shorten(case.xfail if case.verdict is Verdict.XFAILED else case.message),
                case.seconds,
                case.candidate.label,
                str(case.model["label"]),
                list(case.tags),
            ]
        )
        for case in run.cases
    ]


def make_details(run: RunRecord) -> list[dict[str, Any]]:
    """Return each case's evidence, in plan order."""
    slim = len(run.cases) > MOST_WHOLE
    return [describe_case(case, slim=slim and case.verdict in _GREEN) for case in run.cases]


def describe_case(case: CaseRecord, *, slim: bool = False) -> dict[str, Any]:
    """Return a case as its page shows it: its object in the JSON report, and what is read out of it.

    Args:
        case: the case.
        slim: leave out the measurements that no rule judged, and most facts.
    """
    data = (_slim(case) if slim else case).to_json()
    data["where"] = case.where
    data["checks"] = [show | _judge(check) for check, show in zip(case.checks, data["checks"], strict=True)]
    first = case.first_failed
    telling = select_telling(case.checks)
    if first is not None:
        failed, later = count_later_failures(select_side(telling))
        data["flaky"] = describe_repeats(find_failed_repeats(case.checks), case.repeat).removesuffix(": ")
        data["first_failed"] = case.checks.index(first)
        data["worst"] = describe_worst(first.measurements)
        told = f"{failed} of {plural(later, 'later check')} failed too" if failed else ""
        data["later"] = " · ".join(part for part in (told, describe_golden_failures(telling)) if part)
    data["telling"] = first.repeat if first is not None else 1
    data["side"] = find_side(telling)
    data["golden"] = describe_golden(case.checks)
    data["growth"] = trace_errors(case)
    data["source"] = _excerpt(case)
    for side, record in (("candidate", case.candidate), ("reference", case.reference)):
        if record is not None:
            data[side]["words"] = describe_facts(record.facts)
    cleaned: dict[str, Any] = clean(data, _SLIM_DIGITS if slim else _DIGITS)
    return cleaned


def trace_errors(case: CaseRecord) -> list[dict[str, Any]]:
    """Return the relative L2 error of each tensor in model order, with the noise floor and the limit where known.

    Returns:
        `{tensor, error, floor, limit, failed}` each: those of the diagnosis if it has them, else of the checks.
    """
    checks = select_side(select_telling(case.checks))
    wrong = {check.subject for check in checks if check.fails}
    if case.diagnosis is not None and case.diagnosis.growth:
        return [{**row, "failed": row.get("tensor") in wrong} for row in case.diagnosis.growth]
    rows: dict[str, dict[str, Any]] = {}
    for check in checks:
        if "relative_l2" in check.measurements:
            measured = check.measurements
            rows[check.subject] = {
                "tensor": check.subject,
                "error": measured["relative_l2"],
                "floor": measured.get("peer_relative_l2"),
                "limit": None,
                "failed": check.subject in wrong,
            }
    return list(rows.values())


def clean(value: Any, digits: int = _DIGITS) -> Any:
    """Return a JSON value with rounded floats (near one, their distance from it) and visible control characters."""
    if isinstance(value, str):
        return value if value.isascii() and value.isprintable() else escape_text(value)
    if isinstance(value, float):
        if 0.9 < value < 1.1 and value != 1:
            return round(value, min(16, digits - 1 - math.floor(math.log10(abs(1 - value)))))
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {
            key if key.isascii() and key.isprintable() else escape_line(key): clean(item, digits)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [clean(item, digits) for item in value]
    return value


def _judge(check: CheckResult) -> dict[str, Any]:
    return {
        "fails": check.fails,
        "margins": [
            [margin.measurement, margin.measured, margin.limit, margin.relation, margin.share]
            for margin in find_margins(check)
        ],
    }


def _slim(case: CaseRecord) -> CaseRecord:
    """Leave out every check's measurements and most facts of the engines."""
    return dataclasses.replace(
        case,
        checks=tuple(dataclasses.replace(check, measurements={}) for check in case.checks),
        candidate=_slim_side(case.candidate),
        reference=_slim_side(case.reference) if case.reference is not None else None,
    )


def _slim_side(side: EngineRecord) -> EngineRecord:
    return dataclasses.replace(side, facts={name: side.facts[name] for name in _KEPT_FACTS if name in side.facts})


def _excerpt(case: CaseRecord) -> dict[str, Any] | None:
    """Return the spec's lines around the case's, and around those of the rules that failed; None without the file."""
    path, line = str(case.location["path"]), int(case.location["line"])
    lines = _read_lines(path)
    if not 1 <= line <= len(lines):
        return None
    marks = [line]
    for check in case.checks:
        place, _, number = check.location.rpartition(":")
        if check.fails and place == path and number.isdigit() and line <= int(number) < line + _LINES_AFTER * 2:
            marks.append(int(number))
    last = min(len(lines), max(_end_of_entry(lines, line), max(marks) + 1))
    first = max(1, line - _LINES_BEFORE)
    shown = [own_redactor().redact(line) for line in lines[first - 1 : last]]
    return {"path": path, "start": first, "lines": shown, "marks": sorted(set(marks))}


def _end_of_entry(lines: Sequence[str], line: int) -> int:
    """Return the last line of the list entry that begins at `line`, both from 1, within reason."""
    indent = len(lines[line - 1]) - len(lines[line - 1].lstrip())
    end = line
    for number in range(line + 1, min(len(lines), line + _LINES_AFTER) + 1):
        text = lines[number - 1]
        if text.strip() and len(text) - len(text.lstrip()) <= indent:
            break
        end = number if text.strip() else end
    return end


@lru_cache(maxsize=256)
def _read_lines(path: str) -> tuple[str, ...]:
    file = Path(path)
    try:
        if file.stat().st_size > _LARGEST_SPEC:
            return ()
        return tuple(file.read_text(encoding="utf-8", errors="replace").splitlines())
    except (OSError, ValueError):  # not there, or a path that no system has
        return ()


def _shorten(text: str) -> str:
    return text if len(text) <= _MESSAGE else text[: _MESSAGE - 1] + "…"
