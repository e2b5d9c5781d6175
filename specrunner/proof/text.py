"""A proof as text: for the terminal, and as the tables of docs/detection.md."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from specrunner.proof.matrix import Entry, Matrix, Outcome, Row
from specrunner.proof.shares import Share
from specrunner.words import plural

_MOST_ALARMS = 20


def format_matrix(matrix: Matrix) -> Iterator[str]:
    """Yield the lines of a proof: a line a fault, a line a variant, then what is wrong and the sums."""
    several = len({row.candidate for row in (*matrix.faults, *matrix.variants)}) > 1
    faults = [_fault_cells(row, several) for row in matrix.faults]
    variants = [_variant_cells(row, several) for row in matrix.variants]
    if faults:
        yield from _align([("FAULT", "CAUGHT BY", "TIMES THE LIMIT", "FIRST CAUGHT BY"), *faults])
        yield ""
    if variants:
        yield from _align([("LEGITIMATE VARIANT", "ALARMS", "OF THE LIMIT", "WHERE"), *variants])
        yield ""
    yield from _format_problems(matrix)
    yield summarise(matrix)


def _name(row: Row, several: bool) -> str:
    return f"{row.fault.name} [{row.candidate}]" if several else row.fault.name


def _fault_cells(row: Row, several: bool) -> tuple[str, str, str, str]:
    applicable = row.having(Outcome.CAUGHT, Outcome.MISSED, Outcome.UNSEEN)
    if not applicable:
        entry = row.entries[0]
        return _name(row, several), "-", "", f"{entry.outcome}: {entry.message}"
    seen = row.having(Outcome.CAUGHT, Outcome.MISSED)
    counts = f"{len(row.caught)} of {len(seen)}"
    if not row.caught:
        note = f"cannot be seen: {row.why_invisible}" if row.why_invisible else "NOT CAUGHT"
        return _name(row, several), counts, "", note
    return _name(row, several), counts, format_margins(row.margins), _describe_first(row.caught[0])


def _variant_cells(row: Row, several: bool) -> tuple[str, str, str, str]:
    runs = row.having(Outcome.CAUGHT, Outcome.MISSED, Outcome.UNSEEN)
    if not runs:
        return _name(row, several), "-", "", f"{row.entries[0].outcome}: {row.entries[0].message}"
    largest = row.largest
    share = format_share(largest.share) if largest else "-"
    return _name(row, several), f"{len(row.alarms)} of {len(runs)}", share, _describe_share(largest) if largest else ""


def _describe_first(entry: Entry) -> str:
    return f"{entry.first} in {_short(entry.case)}"


def _describe_share(entry: Entry) -> str:
    share = entry.share
    return f"{share.subject} ({share.rule}) in {_short(entry.case)}" if share is not None and share.value else ""


def _short(node_id: str) -> str:
    return node_id.partition("::")[2] or node_id


def format_share(share: Share | None) -> str:
    """Return a share of a limit: `37%` up to it, `4.2` times it beyond, `exact` where it allows nothing."""
    if share is None:
        return "-"
    return format_factor(share.value) if share.value > 1 else f"{share.value:.0%}"


def format_factor(value: float) -> str:
    """Return `4.2`, `1,300` or, where nothing was allowed, `exact`."""
    if math.isinf(value):
        return "exact"
    return f"{value:.2g}" if value < 99.5 else f"{value:,.0f}" if value < 1e6 else f"{value:.0e}"


def format_margins(values: list[float]) -> str:
    """Return the smallest and the largest of some margins, those without a measure last."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "exact"
    low, high = format_factor(finite[0]), format_factor(finite[-1])
    return low if low == high else f"{low} to {high}"


def _format_problems(matrix: Matrix) -> Iterator[str]:
    for row in matrix.survivors:
        yield f"NOT CAUGHT  {row.fault.name} [{row.candidate}]: {row.fault.story}"
    alarms = matrix.false_alarms
    for entry in alarms[:_MOST_ALARMS]:
        yield f"FALSE ALARM  {entry.fault or 'no fault planted'}: {entry.case}: {entry.first}: {entry.message}"
    if len(alarms) > _MOST_ALARMS:
        yield f"… and {plural(len(alarms) - _MOST_ALARMS, 'more false alarm')}"
    for entry in matrix.errors[:_MOST_ALARMS]:
        yield f"NO EVIDENCE  {entry.fault or 'no fault planted'}: {entry.case}: {entry.message}"
    for node_id, reason in matrix.skipped.items():
        yield f"SKIPPED  {node_id}: {reason}"


def summarise(matrix: Matrix) -> str:
    """Return the sums in one line."""
    visible = [row for row in matrix.faults if not row.why_invisible and row.having(*_EVIDENCE)]
    caught = sum(bool(row.caught) for row in visible)
    runs = sum(len(row.having(*_EVIDENCE)) for row in matrix.variants)
    hidden = sum(bool(row.why_invisible) for row in matrix.faults)
    parts = [f"{caught} of {plural(len(visible), 'fault')} caught"] if matrix.faults else []
    parts += [f"{hidden} that cannot be seen"] if hidden else []
    if matrix.variants:
        parts.append(
            f"{plural(len(matrix.false_alarms), 'false alarm')} in {plural(runs, 'run')} "
            f"of {plural(len({row.fault.name for row in matrix.variants}), 'legitimate variant')}"
        )
    return ", ".join(parts) or "nothing was proven"


_EVIDENCE = (Outcome.CAUGHT, Outcome.MISSED, Outcome.UNSEEN)


def _align(rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    rows = list(rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        yield "  ".join([*cells, row[-1]]).rstrip()


def format_markdown(matrix: Matrix) -> Iterator[str]:
    """Yield the same as Markdown tables."""
    if matrix.faults:
        yield "| fault | caught by | times the limit | first caught by |"
        yield "| --- | --- | --- | --- |"
        several = len({row.candidate for row in matrix.faults}) > 1
        for row in matrix.faults:
            yield _markdown_row(_fault_cells(row, several))
        yield ""
    if matrix.variants:
        yield "| legitimate variant | alarms | largest share of a limit | where |"
        yield "| --- | --- | --- | --- |"
        several = len({row.candidate for row in matrix.variants}) > 1
        for row in matrix.variants:
            yield _markdown_row(_variant_cells(row, several))
        yield ""
    yield summarise(matrix) + "."


def _markdown_row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in (f"`{cells[0]}`", *cells[1:])) + " |"
