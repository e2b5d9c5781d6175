"""The concise report: one line for every case that is not green, and a last line."""

from __future__ import annotations

from collections.abc import Sequence

from specrunner.reporters.details import paint_label
from specrunner.reporters.escape import escape_line
from specrunner.reporters.record import CaseRecord, RunRecord
from specrunner.reporters.terminal import TerminalReporter
from specrunner.results import Verdict


class ConciseReporter(TerminalReporter):
    """Prints what a script or a narrow log wants: `FAIL specs/x.yaml::name[engine=hf]  reason`."""

    def show_case(self, case: CaseRecord) -> list[str]:
        """Return one line for a case that is not green."""
        if case.verdict is Verdict.PASSED or case.was_not_run:
            return []
        reason = f"expected: {case.xfail}" if case.verdict is Verdict.XFAILED else case.message
        return [f"{paint_label(case.verdict, self.palette)} {escape_line(case.node_id)}  {escape_line(reason)}"]

    def show_suite(self, path: str, cases: Sequence[CaseRecord]) -> list[str]:
        """Return nothing: a green spec file is no news."""
        return []

    def show_end(self, run: RunRecord) -> list[str]:
        """Return nothing: every line has been said."""
        return []
