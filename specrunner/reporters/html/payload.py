"""What the HTML page shows, as plain values: the run, a short line for each case, and each case's evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from specrunner.reporters.escape import escape_line, escape_text
from specrunner.reporters.evidence import count_later_failures, describe_facts
from specrunner.reporters.margins import describe_worst, find_margins
from specrunner.reporters.record import CaseRecord, EngineRecord, RunRecord
from specrunner.reporters.wording import plural
from specrunner.results import CheckResult, Verdict

CHUNK = 50
"""How many cases are compressed together: the page unpacks only those that are looked at."""

MOST_WHOLE = 500
"""In a run of more cases, what passed keeps only what its rules judged; the JSON report has the rest."""

_GREEN = (Verdict.PASSED, Verdict.SKIPPED)
_MESSAGE = 240
_LINES_BEFORE = 4
_LINES_AFTER = 24
_LARGEST_SPEC = 4_000_000
_KEPT = ("relative_l2", "peer_relative_l2", "max_relative_l2", "max_relative_l2_token", "max_abs", "max_abs_token")
_KEPT_FACTS = ("model_class", "versions", "device", "attention_backend", "patches", "dtype")


def describe_run(run: RunRecord) -> dict[str, Any]:
    """Return the facts of the run as a whole."""
    whole = run.to_json()
    slim = len(run.cases) > MOST_WHOLE
    facts = {name: whole[name] for name in ("run", "counts", "environment", "sessions")}
    result: dict[str, Any] = clean(facts | {"chunk": CHUNK, "slim": slim})
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
    data = case.to_json()
    data["where"] = case.where
    data["checks"] = [
        show | {"measurements": _slim(check, show["measurements"]) if slim else show["measurements"]} | _judge(check)
        for check, show in zip(case.checks, data["checks"], strict=True)
    ]
    first = case.first_failed
    if first is not None:
        failed, later = count_later_failures(case.checks)
        data["first_failed"] = case.checks.index(first)
        data["worst"] = describe_worst(first.measurements)
        data["later"] = f"{failed} of {plural(later, 'later check')} failed too" if failed else ""
    data["growth"] = trace_errors(case)
    data["source"] = _excerpt(case)
    for side, record in (("candidate", case.candidate), ("reference", case.reference)):
        if record is not None:
            data[side] = _describe_side(record, data[side], slim)
    cleaned: dict[str, Any] = clean(data)
    return cleaned


def trace_errors(case: CaseRecord) -> list[dict[str, Any]]:
    """Return the relative L2 error of each tensor in model order, with the noise floor and the limit where known.

    Returns:
        `{tensor, error, floor, limit, failed}` each: those of the diagnosis if it has them, else of the checks.
    """
    wrong = {check.subject for check in case.checks if check.fails}
    if case.diagnosis is not None and case.diagnosis.growth:
        return [{**row, "failed": row.get("tensor") in wrong} for row in case.diagnosis.growth]
    rows: dict[str, dict[str, Any]] = {}
    for check in case.checks:
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


def clean(value: Any) -> Any:
    """Return a JSON value with floats in six digits (ten near one) and text whose control characters are visible."""
    if isinstance(value, str):
        return value if value.isascii() and value.isprintable() else escape_text(value)
    if isinstance(value, float):
        return float(f"{value:.10g}" if 0.9 < abs(value) < 1.1 else f"{value:.6g}")
    if isinstance(value, Mapping):
        return {escape_line(str(key)): clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return value


def _judge(check: CheckResult) -> dict[str, Any]:
    return {
        "fails": check.fails,
        "margins": [
            [margin.measurement, margin.measured, margin.limit, margin.relation, margin.share, margin.distance]
            for margin in find_margins(check)
        ],
    }


def _slim(check: CheckResult, measurements: Mapping[str, Any]) -> dict[str, Any]:
    kept = {*_KEPT, *(margin.measurement for margin in find_margins(check))}
    return {name: value for name, value in measurements.items() if name in kept}


def _describe_side(record: EngineRecord, shown: dict[str, Any], slim: bool) -> dict[str, Any]:
    facts = {name: value for name, value in shown["facts"].items() if not slim or name in _KEPT_FACTS}
    return shown | {"facts": facts, "words": describe_facts(record.facts)}


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
    return {"path": path, "start": first, "lines": list(lines[first - 1 : last]), "marks": sorted(set(marks))}


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
    except OSError:
        return ()


def _shorten(text: str) -> str:
    return text if len(text) <= _MESSAGE else text[: _MESSAGE - 1] + "…"
