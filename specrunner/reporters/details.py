"""Tells a case's evidence in lines: the failure blocks of the terminal and the bodies of JUnit failures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specrunner.reporters.escape import escape_line, escape_text
from specrunner.reporters.evidence import Growth, count_later_failures, describe_facts, trace_growth
from specrunner.reporters.record import CaseRecord, EngineRecord
from specrunner.reporters.style import PLAIN, VERDICT_STYLES, Palette
from specrunner.reporters.wording import format_number, plural
from specrunner.results import CheckResult, Failure, Verdict

LABELS: dict[Verdict, str] = {
    Verdict.PASSED: "PASS",
    Verdict.FAILED: "FAIL",
    Verdict.ERROR: "ERROR",
    Verdict.SKIPPED: "SKIP",
    Verdict.XFAILED: "XFAIL",
    Verdict.XPASSED: "XPASS",
}
_LOG_LINES = 20
_PROMPT_CHARACTERS = 90


def paint_label(verdict: Verdict, palette: Palette) -> str:
    """Return the verdict's word in capitals, five wide."""
    return palette.paint(f"{LABELS[verdict]:<5}", VERDICT_STYLES[verdict])


def describe_case(record: CaseRecord, palette: Palette = PLAIN, log_lines: int = _LOG_LINES) -> list[str]:
    """Return why a case is not green, without its heading; every line is safe to print.

    Args:
        record: the case.
        palette: how to paint.
        log_lines: how much of the engine's log to show.
    """
    lines = [f"at {escape_line(record.where)}", *describe_sides(record, palette), ""]
    if record.verdict is Verdict.XPASSED:
        lines += [escape_line(record.message), f"the spec expects: {escape_line(record.xfail)}", ""]
    elif record.failure is not None:
        lines += [*describe_failure(record.failure, palette, log_lines), ""]
    if record.first_failed is not None:
        lines += [*describe_divergence(record, record.first_failed, palette), ""]
    return [*lines, f"again  {escape_line(record.command)}"]


def describe_sides(record: CaseRecord, palette: Palette) -> list[str]:
    """Return model, prompt, candidate and reference, one line each."""
    pairs = [("model", str(record.model["label"])), ("prompt", describe_prompt(record.prompt))]
    pairs.append(("candidate", _describe_side(record.candidate)))
    if record.reference is not None:
        pairs.append(("reference", _describe_side(record.reference)))
    return [f"{palette.paint(f'{name:<9}', 'dim')}  {escape_line(text)}" for name, text in pairs]


def describe_failure(failure: Failure, palette: Palette, log_lines: int) -> list[str]:
    """Return kind, message, help and the end of the engine's log."""
    role = f"{failure.role}: " if failure.role else ""
    lines = [f"{palette.paint(escape_line(failure.kind), 'bad')}  {escape_line(role + failure.message)}"]
    if failure.help:
        lines.append(f"{palette.paint('help', 'note')}  {escape_line(failure.help)}")
    log = escape_text(failure.log_tail).rstrip("\n").split("\n") if failure.log_tail.strip() else []
    if log:
        shown = log[-log_lines:]
        lines.append(palette.paint(f"the engine's last {plural(len(shown), 'line')}", "dim"))
        lines += [f"  {palette.paint('│', 'dim')} {line}" for line in shown]
    return lines


def describe_divergence(record: CaseRecord, first: CheckResult, palette: Palette) -> list[str]:
    """Return the first thing in model order that went wrong, its numbers, and what came of it."""
    where = f", {escape_line(first.location)}" if first.location else ""
    lines = [
        f"{palette.paint(escape_line(first.subject), 'bold')} is the first that went wrong"
        f"  {palette.paint(f'(rule {escape_line(first.rule)}{where})', 'dim')}",
        f"  {palette.paint(escape_line(first.message), 'bad')}",
        *(f"  {line}" for line in describe_numbers(first, palette)),
    ]
    failed, later = count_later_failures(record.checks)
    if later:
        lines.append(f"{failed} of {plural(later, 'later check')} failed too" if failed else "no later check failed")
    growth = trace_growth(record.checks)
    if growth is not None:
        lines += ["", *describe_growth(growth, palette)]
    return lines


def describe_numbers(check: CheckResult, palette: Palette) -> list[str]:
    """Return a check's measurements and its limits."""
    lines = []
    for title, numbers in (("measured", check.measurements), ("limit", check.limits)):
        if numbers:
            shown = " · ".join(f"{escape_line(name)} {_show_number(value)}" for name, value in numbers.items())
            lines.append(f"{palette.paint(f'{title:<8}', 'dim')}  {shown}")
    return lines


def describe_growth(growth: Growth, palette: Palette) -> list[str]:
    """Return a table of the error through the model; rows left out are counted."""
    width = max(len(row.subject) for row in growth.rows)
    width = max(width, len("tensor"))
    lines = [palette.paint(f"{'tensor':<{width}}  {growth.metric}", "dim")]
    marked = False
    for row in growth.rows:
        if row.skipped:
            lines.append(palette.paint(f"{'…':<{width}}  {row.skipped} more", "dim"))
        value = _show_number(row.value)
        if row.passed:
            lines.append(f"{escape_line(row.subject):<{width}}  {value}")
        else:
            note = "" if marked else "  first wrong"
            lines.append(f"{escape_line(row.subject):<{width}}  {palette.paint(value + note, 'bad')}")
            marked = True
    return lines


def describe_prompt(prompt: Mapping[str, Any]) -> str:
    """Return the input in one line, cut when it is long."""
    if "text" in prompt:
        shown = _quote(prompt["text"])
    elif "messages" in prompt:
        last = prompt["messages"][-1] if prompt["messages"] else {}
        shown = f"{plural(len(prompt['messages']), 'message')}, the last: {_quote(last.get('content', ''))}"
    else:
        ids = list(prompt.get("token_ids", ()))
        shown = f"{plural(len(ids), 'token id')} {format_number(ids)}"
    if len(shown) > _PROMPT_CHARACTERS:
        shown = shown[: _PROMPT_CHARACTERS - 1] + "…"
    return shown + (f", the first {plural(prompt['length'], 'token')}" if "length" in prompt else "")


def _describe_side(side: EngineRecord) -> str:
    facts = describe_facts(side.facts)
    options = ", ".join(f"{name}={format_number(value)}" for name, value in side.options.items())
    return "  ".join(part for part in (f"{side.label:<15}", options, " · ".join(facts)) if part).rstrip()


def _quote(text: str) -> str:
    return f'"{escape_line(text)}"'


def _show_number(value: Any) -> str:
    return escape_line(format_number(value))
