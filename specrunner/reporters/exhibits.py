"""Evidence that numbers alone do not show: attention as two matrices, other experts, near ties, the findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from specrunner.reporters.escape import escape_line
from specrunner.reporters.style import Palette
from specrunner.reporters.wording import format_number
from specrunner.results import CheckResult, Diagnosis, tell_check

_MATRIX_SIDE = 40
_ROWS = 4
_FILLED = 6


def describe_exhibits(check: CheckResult, palette: Palette) -> list[str]:
    """Return what belongs to a check beyond its message; empty for most rules."""
    numbers = check.measurements
    if check.rule == "attention":
        return draw_attention(numbers, palette)
    if check.rule == "routing":
        return [_describe_experts(row) for row in _rows(numbers, "differing")[:_ROWS]]
    if check.rule == "near_tie":
        ties = [row for row in _rows(numbers, "ties") if not row.get("is_tie")] or _rows(numbers, "ties")
        return [_describe_tie(row) for row in ties[:_ROWS]]
    if check.rule == "sampler":
        first = numbers.get("first")
        around = first.get("step", 0) if isinstance(first, Mapping) else 0
        steps = _rows(numbers, "trajectory")[max(0, around - 1) : around + _ROWS - 1]
        return [_describe_step(row) for row in steps]
    return []


def draw_attention(numbers: Mapping[str, Any], palette: Palette) -> list[str]:
    """Return the expected and the found matrix side by side; of a large one, the part around the first difference.

    `#` sees, `.` does not; in the found matrix `+` sees what it should not, `-` does not see what it should.
    """
    expected, found = numbers.get("expected"), numbers.get("found")
    if not isinstance(expected, Sequence) or not isinstance(found, Sequence) or not expected:
        return []
    first = numbers.get("first") or [0, 0]
    top, left = (_window(int(place), len(expected)) for place in first)
    width = min(_MATRIX_SIDE, len(expected))
    head = f"queries {top}-{top + width - 1} down, keys {left}-{left + width - 1} across"
    lines = [palette.paint(head, "dim"), palette.paint(f"{'expected':<{width}}  found", "dim")]
    for stated, seen in zip(expected[top : top + width], found[top : top + width], strict=True):
        pairs = list(zip(stated[left : left + width], seen[left : left + width], strict=True))
        wanted = "".join("#" if want == "1" else "." for want, _ in pairs)
        drawn = "".join(_MARKS[pair] if pair[0] == pair[1] else palette.paint(_MARKS[pair], "bad") for pair in pairs)
        lines.append(f"{wanted}  {drawn}")
    return lines


_MARKS = {("1", "1"): "#", ("0", "0"): ".", ("0", "1"): "+", ("1", "0"): "-"}


def describe_diagnosis(diagnosis: Diagnosis | None, palette: Palette) -> list[str]:
    """Return the findings, one line each."""
    if diagnosis is None or not diagnosis.findings:
        return []
    return [palette.paint("what the errors say", "dim"), *(f"  {escape_line(one)}" for one in diagnosis.findings)]


def describe_trends(checks: Sequence[CheckResult], palette: Palette) -> list[str]:
    """Return what the checks that do not gate saw, one line each."""
    told = [check for check in checks if not check.gates and check.message]
    return [f"{palette.paint('trend', 'dim')}  {escape_line(tell_check(one))}" for one in told]


def _window(place: int, length: int) -> int:
    return max(0, min(place - _MATRIX_SIDE // 2, length - _MATRIX_SIDE))


def _rows(numbers: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    rows = numbers.get(name)
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []


def _describe_experts(row: Mapping[str, Any]) -> str:
    margins = ", ".join(
        f"{name} margin {format_number(row[f'{name}_margin'])}"
        for name in ("expert", "group")
        if row.get(f"{name}_margin") is not None
    )
    kind = "" if row.get("decisive") is None else ", decisive" if row["decisive"] else ", not decisive"
    ids = f"{format_number(row.get('candidate'))} against {format_number(row.get('reference'))}"
    return escape_line(f"token {row.get('token')}: experts {ids}  {margins}{kind}")


def _describe_step(row: Mapping[str, Any]) -> str:
    confidences = row.get("confidence") or [None] * len(row.get("accepted") or ())
    filled = zip(row.get("accepted") or (), row.get("tokens") or (), confidences, strict=False)
    parts = [f"{place}: {token} ({format_number(confidence)})" for place, token, confidence in filled]
    told = ", ".join(parts[:_FILLED]) + (f" and {len(parts) - _FILLED} more" if len(parts) > _FILLED else "")
    return escape_line(f"step {row.get('step')} accepts {told or 'nothing'}")


def _describe_tie(row: Mapping[str, Any]) -> str:
    gaps = ", ".join(
        f"{side} gap {format_number(row.get(f'{side}_gap'))} of {format_number(row.get(f'{side}_limit'))}"
        for side in ("reference", "candidate")
    )
    what = (
        f"filled by the {row['accepted_by']} alone"
        if "accepted_by" in row
        else f"token {row.get('candidate_token')} against {row.get('reference_token')}"
    )
    return escape_line(f"position {row.get('position')}: {what}, {gaps}{' (a tie)' if row.get('is_tie') else ''}")
