"""Everything that the last run knows of a case, and the list of its cases: what `specrunner show` prints."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from specrunner.reporters.details import (
    describe_divergence,
    describe_failure,
    describe_numbers,
    describe_prompt,
    paint_label,
)
from specrunner.reporters.escape import escape_line
from specrunner.reporters.evidence import describe_golden
from specrunner.reporters.record import CaseRecord, EngineRecord, RunRecord
from specrunner.reporters.style import Palette
from specrunner.reporters.wording import describe_counts, format_number, format_seconds
from specrunner.results import CheckResult
from specrunner.words import plural

_ALL_LINES = 10_000


def list_cases(run: RunRecord, palette: Palette) -> list[str]:
    """Return one line a case with its verdict, under its spec file, and the counts."""
    lines = [palette.paint(_describe_run(run), "dim")]
    suite = None
    for case in run.cases:
        if case.suite != suite:
            suite = case.suite
            lines += ["", palette.paint(escape_line(case.location["path"]), "bold")]
        message = escape_line(case.xfail or case.message)
        took = palette.paint(format_seconds(case.seconds), "dim")
        lines.append(f"  {paint_label(case.verdict, palette)} {escape_line(case.id)}  {took}  {message}".rstrip())
    counts = ", ".join(word for _, word in describe_counts(run.counts))
    return [*lines, "", f"{counts or 'no cases'}; `specrunner show CASE` has the evidence of one"]


def describe_everything(case: CaseRecord, run: RunRecord, palette: Palette) -> list[str]:
    """Return all evidence of one case: both sides' facts, the first divergence, and every check with its numbers."""
    lines = [
        f"{paint_label(case.verdict, palette)} {palette.paint(escape_line(case.node_id), 'bold')}",
        f"at {escape_line(case.where)}, took {format_seconds(case.seconds)}",
        palette.paint(_describe_run(run), "dim"),
    ]
    if case.description:
        lines.append(escape_line(case.description))
    if case.xfail:
        lines.append(f"expected to fail: {escape_line(case.xfail)}")
    lines += [
        *_section("MODEL", _describe_mapping(case.model), palette),
        *_section("PROMPT", [describe_prompt(case.prompt, 2000)], palette),
        *_section("DECODE", _describe_mapping(case.decode or {}), palette),
        *_section(f"CANDIDATE {escape_line(case.candidate.label)}", _describe_side(case.candidate), palette),
    ]
    if case.reference is not None:
        title = f"REFERENCE {escape_line(case.reference.label)}"
        lines += _section(title, _describe_side(case.reference), palette)
    golden = describe_golden(case.checks)
    lines += _section("GOLDEN", [escape_line(golden)] if golden else [], palette)
    if case.failure is not None:
        lines += _section("CAUSE", describe_failure(case.failure, palette, _ALL_LINES), palette)
    first = case.first_failed
    if first is not None:
        lines += _section("FIRST DIVERGENCE", describe_divergence(case, first, palette, _ALL_LINES), palette)
    for title, checks in _group_checks(case.checks):
        lines += _section(f"CHECKS{title}, in model order", _describe_checks(case, checks, palette), palette)
    return [*lines, "", f"again  {escape_line(case.command)}"]


def _describe_run(run: RunRecord) -> str:
    took = f", took {format_seconds(run.seconds)}" if run.seconds is not None else ""
    end = "" if run.complete and not run.interrupted else ", ended early"
    return f"run of {escape_line(run.started_at)}{took}{end}: {escape_line(shlex.join(run.command))}"


def _group_checks(checks: Sequence[CheckResult]) -> list[tuple[str, list[CheckResult]]]:
    """Return the checks by what the candidate was held against; one group without a title where there is no golden."""
    if all(check.against != "golden" for check in checks):
        return [("", list(checks))]
    titles = {"reference": " against the reference", "golden": " against the golden", "": " of the candidate alone"}
    return [(title, [check for check in checks if check.against == side]) for side, title in titles.items()]


def _describe_checks(case: CaseRecord, checks: Sequence[CheckResult], palette: Palette) -> list[str]:
    lines = []
    for check, repeats in _fold_repeats(checks):
        word = (
            palette.paint("FAIL", "bad") if check.fails else palette.paint("ok  " if check.passed else "note", "good")
        )
        where = palette.paint(escape_line(check.location), "dim")
        rule = escape_line(check.rule)
        if case.repeat > 1 and check.repeat:
            rule += f"  repeat{'s' * (len(repeats) > 1)} {', '.join(map(str, repeats))}"
        lines.append(f"{word} {palette.paint(escape_line(check.subject), 'bold')}  {rule}  {where}")
        if check.message:
            lines.append(f"       {escape_line(check.message)}")
        lines += [f"       {line}" for line in describe_numbers(check, palette)]
    if checks:
        failed = sum(check.fails for check in checks)
        lines.append(f"{failed} of {plural(len(checks), 'check')} failed")
    return lines


def _fold_repeats(checks: Sequence[CheckResult]) -> list[tuple[CheckResult, list[int]]]:
    """Return each check once with the repeats that found the same to the last digit, in the order of the first."""
    folded: dict[str, tuple[CheckResult, list[int]]] = {}
    for check in checks:
        key = json.dumps([getattr(check, field.name) for field in fields(check) if field.name != "repeat"])
        folded.setdefault(key, (check, []))[1].append(check.repeat)
    return list(folded.values())


def _describe_side(side: EngineRecord) -> list[str]:
    head = {"device asked for": side.device, **({"options": side.options} if side.options else {})}
    return _describe_mapping({**head, **side.facts})


def _describe_mapping(facts: Mapping[str, Any]) -> list[str]:
    shown = {escape_line(name): escape_line(format_number(value)) for name, value in facts.items() if value is not None}
    width = max(map(len, shown), default=0)
    return [f"{name:<{width}}  {text}".rstrip() for name, text in shown.items()]


def _section(title: str, lines: Sequence[str], palette: Palette) -> list[str]:
    return ["", palette.paint(title, "bold"), *(f"  {line}".rstrip() for line in lines)] if lines else []
