"""The job summary in Markdown, for the page that GitHub shows of a run."""

from __future__ import annotations

import re
import shlex

from specrunner.reporters.details import LABELS, describe_case
from specrunner.reporters.escape import escape_line
from specrunner.reporters.record import CaseRecord, RunRecord
from specrunner.reporters.wording import describe_counts, format_seconds
from specrunner.results import Verdict
from specrunner.words import plural

MOST_BYTES = 900_000
"""GitHub refuses a step's summary above 1 MiB; what does not fit is counted."""

_SHOWN = (Verdict.FAILED, Verdict.ERROR, Verdict.XPASSED, Verdict.INCONCLUSIVE)
_OTHERS = (Verdict.XFAILED, Verdict.SKIPPED)
_MOST_OTHERS = 100
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+\-.!|<>&~@:$^=])")


def render_summary(run: RunRecord) -> str:
    """Return the summary of a run: its counts, the evidence of each bad case, and what was skipped.

    Everything that comes from specs and engines is escaped, so that it is text for a Markdown reader.
    """
    counts = ", ".join(words for _, words in describe_counts(run.counts)) or "no cases"
    took = f" in {format_seconds(run.seconds)}" if run.seconds is not None else ""
    lines = [f"## specrunner: {counts}{took}", "", code_span(shlex.join(run.command)), ""]
    bad = [case for case in run.cases if case.verdict in _SHOWN]
    if bad:
        lines += ["| verdict | case | at | cause |", "| --- | --- | --- | --- |", *map(_row, bad[:_MOST_OTHERS])]
        lines += [f"| | {plural(len(bad) - _MOST_OTHERS, 'more case')} | | |"] if len(bad) > _MOST_OTHERS else []
        lines.append("")
    size = sum(len(line.encode("utf-8", "replace")) + 1 for line in lines)
    for index, case in enumerate(bad):
        block = describe_block(case)
        size += sum(len(line.encode("utf-8", "replace")) + 1 for line in block)
        if size > MOST_BYTES:
            lines += [f"The evidence of {plural(len(bad) - index, 'more case')} does not fit here.", ""]
            break
        lines += block
    others = [case for case in run.cases if case.verdict in _OTHERS][:_MOST_OTHERS]
    if others:
        lines += ["<details><summary>Skipped, and expected to fail</summary>", ""]
        lines += [
            "| verdict | case | at | why |",
            "| --- | --- | --- | --- |",
            *map(_row, others),
            "",
            "</details>",
            "",
        ]
    return "\n".join(lines)


def describe_block(case: CaseRecord) -> list[str]:
    """Return a case's evidence as the terminal shows it, folded away."""
    evidence = [escape_line(case.node_id), "", *describe_case(case)]
    longest = max((len(run) for line in evidence for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    title = f"{LABELS[case.verdict]} {escape_markdown(case.id)}"
    return [f"<details><summary>{title}</summary>", "", f"{fence}text", *evidence, fence, "", "</details>", ""]


def escape_markdown(text: str) -> str:
    """Return `text` as one line that a Markdown reader shows as it is, also inside HTML and tables.

    Each special character becomes a character reference, since inside of HTML a backslash would be shown.
    """
    return _SPECIAL.sub(lambda match: f"&#{ord(match.group())};", escape_line(text))


def code_span(text: str) -> str:
    """Return `text` as a code span, whatever backticks are in it."""
    text = escape_line(text)
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    return f"{fence} {text} {fence}" if text.strip() else ""


def _row(case: CaseRecord) -> str:
    reason = case.xfail if case.verdict is Verdict.XFAILED else case.message
    cells = (LABELS[case.verdict], *map(escape_markdown, (case.id, case.where, reason)))
    return f"| {' | '.join(cells)} |"
