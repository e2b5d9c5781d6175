"""Tells a case's evidence in lines: the failure blocks of the terminal and the bodies of JUnit failures."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from specrunner.reporters.escape import escape_line, escape_text
from specrunner.reporters.evidence import (
    GROWTH_MEASURE,
    GrowthRow,
    count_later_failures,
    describe_facts,
    describe_golden,
    describe_golden_failures,
    trace_growth,
)
from specrunner.reporters.exhibits import describe_diagnosis, describe_exhibits, describe_trends
from specrunner.reporters.margins import describe_worst, find_margins
from specrunner.reporters.record import CaseRecord, EngineRecord
from specrunner.reporters.style import PLAIN, VERDICT_STYLES, Palette
from specrunner.reporters.wording import format_number
from specrunner.results import (
    CheckResult,
    Failure,
    Verdict,
    describe_repeats,
    find_failed_repeats,
    select_side,
    select_telling,
)
from specrunner.words import plural

LABELS: dict[Verdict, str] = {
    Verdict.PASSED: "PASS",
    Verdict.FAILED: "FAIL",
    Verdict.ERROR: "ERROR",
    Verdict.SKIPPED: "SKIP",
    Verdict.XFAILED: "XFAIL",
    Verdict.XPASSED: "XPASS",
    Verdict.INCONCLUSIVE: "OPEN",
}
_LOG_LINES = 20
_GROWTH_ROWS = 10
_PROMPT_CHARACTERS = 90
_NUMBERS_WIDTH = 100


def paint_label(verdict: Verdict, palette: Palette) -> str:
    """Return the verdict's word in capitals, five wide."""
    return palette.paint(f"{LABELS[verdict]:<5}", VERDICT_STYLES[verdict])


def describe_case(record: CaseRecord, palette: Palette = PLAIN, *, repeats: bool = True) -> list[str]:
    """Return why a case is not green, without its heading; every line is safe to print.

    Args:
        record: the case.
        palette: how to paint.
        repeats: say how many repeats failed; the case's message, where it stands above, begins with that.
    """
    lines = [f"at {escape_line(record.where)}", *describe_sides(record, palette), ""]
    if record.verdict is Verdict.XPASSED:
        lines += [escape_line(record.message), f"the spec expects: {escape_line(record.xfail)}", ""]
    elif record.failure is not None:
        lines += [*describe_failure(record.failure, palette, _LOG_LINES), ""]
    if record.first_failed is not None:
        lines += [*describe_divergence(record, record.first_failed, palette, repeats=repeats), ""]
    return [*lines, f"again  {escape_line(record.command)}"]


def describe_sides(record: CaseRecord, palette: Palette) -> list[str]:
    """Return model, prompt, candidate, reference and golden, one line each."""
    asked = ("prompt", describe_prompt(record.prompt))
    if record.benchmark is not None:
        asked = ("benchmark", describe_benchmark(record.benchmark))
    pairs = [("model", str(record.model["label"])), asked]
    pairs.append(("candidate", _describe_side(record.candidate)))
    if record.reference is not None:
        pairs.append(("reference", _describe_side(record.reference)))
    golden = describe_golden(record.checks)
    pairs += [("golden", golden)] if golden else []
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


def describe_divergence(
    record: CaseRecord,
    first: CheckResult,
    palette: Palette,
    most_rows: int = _GROWTH_ROWS,
    *,
    repeats: bool = True,
) -> list[str]:
    """Return the first thing in model order that went wrong, its numbers, and what came of it."""
    where = f" against the golden {first.measurements.get('golden', '')}".rstrip() if first.against == "golden" else ""
    where += f", {first.location}" if first.location else ""
    where += f", repeat {first.repeat} of {record.repeat}" if record.repeat > 1 else ""
    told = describe_repeats(find_failed_repeats(record.checks), record.repeat) if repeats else ""
    telling = select_telling(record.checks)
    checks = select_side(telling)
    lines = [
        f"{palette.paint(escape_line(first.subject), 'bold')} is the first that went wrong"
        f"  {palette.paint(f'({escape_line(first.rule + where)})', 'dim')}",
        f"  {palette.paint(escape_line(first.message), 'bad')}",
    ]
    lines = [palette.paint(told.removesuffix(": "), "bad"), *lines] if told else lines
    numbers = [("limits", format_number(first.limits))] if first.limits else []
    numbers += [("judged", str(margin)) for margin in find_margins(first)]
    numbers.append(("worst", " · ".join(describe_worst(first.measurements))))
    lines += [f"  {line}" for line in _tabulate(numbers, palette)]
    lines += [f"  {line}" for line in describe_token_window(first, palette)]
    lines += [f"  {line}" for line in describe_exhibits(first, palette)]
    failed, later = count_later_failures(checks)
    if later:
        lines.append(f"{failed} of {plural(later, 'later check')} failed too" if failed else "no later check failed")
    golden = describe_golden_failures(telling)
    lines += [golden] if golden else []
    lines += describe_trends(telling, palette)
    findings = describe_diagnosis(record.diagnosis, palette)
    if findings:
        lines += ["", *findings]
    growth = trace_growth(checks, most_rows)
    if growth:
        lines += ["", *describe_growth(growth, palette)]
    return lines


def describe_numbers(check: CheckResult, palette: Palette) -> list[str]:
    """Return everything that a check measured, and its margins against its limits."""
    pairs = [("limits", format_number(check.limits))] if check.limits else []
    pairs += [("judged", str(margin)) for margin in find_margins(check)]
    items = [format_number({name: value}) for name, value in check.measurements.items()]
    pairs += [("measured", line) for line in textwrap.wrap(", ".join(items), _NUMBERS_WIDTH, break_long_words=False)]
    return _tabulate(pairs, palette)


def describe_token_window(check: CheckResult, palette: Palette) -> list[str]:
    """Return the token ids around the first mismatch, candidate under reference or golden, the mismatch marked."""
    measurements = check.measurements
    windows = [measurements.get(f"{side}_window") for side in ("reference", "candidate")]
    position = measurements.get("first_mismatch")
    start = measurements.get("window_start")
    if not (isinstance(position, int) and isinstance(start, int) and all(isinstance(one, list) for one in windows)):
        return []
    rows = [[str(token) for token in window or ()] for window in windows]
    length = max(map(len, rows))
    rows = [row + ["end"] * (len(row) < length) + [""] * (length - len(row) - 1) for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(length)]
    lines = [palette.paint(f"token ids from position {start}", "dim")]
    for side, row in zip((check.against or "reference", "candidate"), rows, strict=True):
        cells = [text.rjust(width) for text, width in zip(row, widths, strict=True)]
        if 0 <= position - start < length:
            marked = position - start
            cells[marked] = palette.paint(f"[{cells[marked]}]", "bad" if side == "candidate" else "good")
        lines.append(f"{palette.paint(f'{side:<9}', 'dim')}  {'  '.join(cells)}".rstrip())
    return lines


def describe_growth(rows: Sequence[GrowthRow], palette: Palette) -> list[str]:
    """Return a table of the error through the model; rows left out are counted."""
    table = [("tensor", GROWTH_MEASURE, "worst token", "")]
    for row in rows:
        if row.skipped:
            table.append((f"… {row.skipped} more", "", "", ""))
        token = f" at {row.token}" if row.token is not None and row.worst != 0 else ""
        worst = _show_number(row.worst) + token if row.worst is not None else ""
        table.append((escape_line(row.subject), _show_number(row.value), worst, "" if row.passed else "wrong"))
    widths = [max(len(cells[column]) for cells in table) for column in range(3)]
    lines = []
    for cells in table:
        line = "  ".join(text.ljust(width) for text, width in zip(cells, [*widths, 0], strict=True)).rstrip()
        dim = cells is table[0] or not cells[1]
        lines.append(palette.paint(line, "bad" if cells[3] else "dim") if cells[3] or dim else line)
    return lines


def describe_prompt(prompt: Mapping[str, Any], most: int = _PROMPT_CHARACTERS) -> str:
    """Return the input in one line, cut to `most` characters."""
    if "text" in prompt:
        shown = _quote(prompt["text"])
    elif "messages" in prompt:
        last = prompt["messages"][-1] if prompt["messages"] else {}
        shown = f"{plural(len(prompt['messages']), 'message')}, the last: {_quote(last.get('content', ''))}"
    else:
        ids = list(prompt.get("token_ids", ()))
        shown = f"{plural(len(ids), 'token id')} {format_number(ids)}"
    if len(shown) > most:
        shown = shown[: most - 1] + "…"
    return shown + (f", the first {plural(prompt['length'], 'token')}" if "length" in prompt else "")


def describe_benchmark(benchmark: Mapping[str, Any]) -> str:
    """Return what was asked, in one line."""
    asked = benchmark["evaluation"]
    samples = asked["samples"]
    if isinstance(samples, int):
        count = f"{plural(samples, 'question')} drawn with seed {asked['seed']}"
    else:
        count = "all questions" if samples is None else plural(len(samples), "chosen question")
    shots = "" if asked["num_fewshot"] is None else f", {plural(asked['num_fewshot'], 'shot')}"
    return f"{', '.join(asked['tasks'])}: {count}{shots}, {benchmark['mode']}"


def _describe_side(side: EngineRecord) -> str:
    facts = describe_facts(side.facts)
    options = ", ".join(f"{name}={format_number(value)}" for name, value in side.options.items())
    return "  ".join(part for part in (f"{side.label:<15}", options, " · ".join(facts)) if part).rstrip()


def _tabulate(pairs: Sequence[tuple[str, str]], palette: Palette) -> list[str]:
    """Return `name  text` lines; empty texts are left out, and a name that stands above is not repeated."""
    lines = []
    before = None
    for name, text in pairs:
        if not text:
            continue
        title = name if name != before else ""
        lines.append(f"{palette.paint(title.ljust(8), 'dim')}  {escape_line(text)}")
        before = name
    return lines


def _quote(text: str) -> str:
    return f'"{escape_line(text)}"'


def _show_number(value: Any) -> str:
    return escape_line(format_number(value))
