"""The report for GitHub Actions: an annotation at the spec's line for every failure, and the job summary."""

from __future__ import annotations

from specrunner.errors import ConfigurationError
from specrunner.reporters.details import describe_case
from specrunner.reporters.escape import escape_line
from specrunner.reporters.files import FileReporter
from specrunner.reporters.markdown import render_summary
from specrunner.reporters.problems import Problem
from specrunner.reporters.record import CaseRecord, RunRecord
from specrunner.reporters.terminal import BAD, TerminalReporter


class GithubReporter(TerminalReporter):
    """Prints the terminal report's lines, with workflow commands in place of failure blocks."""

    def show_case(self, case: CaseRecord) -> list[str]:
        """Return an `::error` command for a bad case."""
        return [annotate_case(case)] if case.verdict in BAD and not case.was_not_run else []

    def show_failures(self, run: RunRecord) -> list[str]:
        """Return nothing: every failure has its annotation."""
        return []


class SummaryReporter(FileReporter):
    """Adds the job summary to the file that GitHub names in `GITHUB_STEP_SUMMARY`, after what other steps wrote."""

    what = "job summary"

    def render(self) -> bytes:
        """Return the summary in UTF-8."""
        return render_summary(self.collector.record()).encode("utf-8", "backslashreplace")

    def _write(self) -> None:
        self._written = True
        try:
            with self.path.open("ab") as stream:
                stream.write(self.render() + b"\n")
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            self.problem = ConfigurationError(f"cannot write the job summary to {self.path}: {reason}")


def annotate_case(case: CaseRecord) -> str:
    """Return the workflow command that puts a case's evidence at its line; control characters are escapes."""
    properties = {
        "file": escape_line(case.location["path"]),
        "line": str(case.location["line"]),
        "col": str(case.location["column"]),
        "title": escape_line(case.id),
    }
    shown = ",".join(f"{name}={escape_property(text)}" for name, text in properties.items())
    message = "\n".join([escape_line(case.message), *describe_case(case, repeats=False)])
    return f"::error {shown}::{escape_data(message)}"


def annotate_problem(problem: Problem) -> str:
    """Return the workflow command that puts why nothing ran at the spec's line, where it is the spec's fault."""
    place = {"file": escape_line(problem.path), "line": str(problem.line), "col": str(problem.column)}
    properties = {**(place if problem.path else {}), "title": escape_line(problem.code)}
    shown = ",".join(f"{name}={escape_property(text)}" for name, text in properties.items())
    message = "\n".join(filter(None, (escape_line(problem.message), escape_line(problem.help))))
    return f"::error {shown}::{escape_data(message)}"


def escape_data(text: str) -> str:
    """Escape the message of a workflow command."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def escape_property(text: str) -> str:
    """Escape a property of a workflow command."""
    return escape_data(text).replace(":", "%3A").replace(",", "%2C")
