"""The terminal report: results on standard output as they come, and the evidence of every failure at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from specrunner.errors import ExitCode
from specrunner.events import CaseFinished, Event, RunFinished, RunStarted
from specrunner.reporters.base import Reporter
from specrunner.reporters.collector import RunCollector
from specrunner.reporters.console import Console, fit_cells
from specrunner.reporters.details import LABELS, describe_case, paint_label
from specrunner.reporters.escape import escape_line
from specrunner.reporters.evidence import describe_facts
from specrunner.reporters.files import FileReporter
from specrunner.reporters.progress import Progress
from specrunner.reporters.record import CaseRecord, RunRecord, SessionRecord, count_verdicts, record_result
from specrunner.reporters.style import VERDICT_STYLES, Palette, is_terminal
from specrunner.reporters.wording import describe_counts, format_seconds
from specrunner.results import Verdict
from specrunner.words import plural

BAD = (Verdict.FAILED, Verdict.ERROR, Verdict.XPASSED)
_MOST_BLOCKS = 50
_MOST_NAMES = 5
_LEAST_MESSAGE = 16


class TerminalReporter(Reporter):
    """Prints a line for every spec file and every bad case while the run lasts, then sections and a last line.

    Args:
        out: where results go.
        palette: how they are painted.
        progress: what shares the terminal with them.
        files: the reporters whose files the last lines name.
    """

    def __init__(self, out: TextIO, palette: Palette, progress: Progress, files: Sequence[Reporter] = ()) -> None:
        self.console = Console(out)
        self.palette = palette
        self.progress = progress
        self.files = files
        self.collector = RunCollector()
        self._closed = False
        self._open: dict[str, int] = {}
        self._suites: dict[str, list[CaseRecord]] = {}

    def handle(self, event: Event) -> None:
        """Take one event in and print what it brings."""
        self.collector.handle(event)
        if isinstance(event, RunStarted):
            for planned in event.plan.cases:
                self._open[planned.case.suite] = self._open.get(planned.case.suite, 0) + 1
        self.progress.handle(event)
        if isinstance(event, CaseFinished):
            self._take_case(record_result(event.result))
        elif isinstance(event, RunFinished):
            self._finish(self.collector.record())

    def close(self) -> None:
        """Give the terminal back, and say what is known if the run broke off."""
        self.progress.close()
        if not self._closed and self.collector.started is not None:
            self._finish(self.collector.record())

    def show_case(self, case: CaseRecord) -> list[str]:
        """Return what to print when a case has its verdict."""
        if case.verdict not in BAD or case.was_not_run:
            return []
        label, node_id, message = LABELS[case.verdict], escape_line(case.node_id), escape_line(case.message)
        if is_terminal(self.console.stream):
            room = self.console.width - max(len(label), 5) - len(node_id) - 3
            message = fit_cells(message, room) if room >= _LEAST_MESSAGE else ""
        return [f"{paint_label(case.verdict, self.palette)} {node_id}  {message}".rstrip()]

    def show_suite(self, path: str, cases: Sequence[CaseRecord]) -> list[str]:
        """Return what to print when the last case of a spec file has its verdict."""
        counts = count_verdicts(list(cases))
        worst = describe_counts(counts)[0][0]
        label = paint_label(Verdict.FAILED if worst in BAD else worst, self.palette)
        took = self.palette.paint(format_seconds(sum(case.seconds for case in cases)), "dim")
        return [f"{label} {escape_line(path)}  {', '.join(word for _, word in describe_counts(counts))}  {took}"]

    def show_end(self, run: RunRecord) -> list[str]:
        """Return the sections that come before the last line."""
        return [
            *self._section("SESSIONS", [line for session in run.sessions for line in self._show_session(session)]),
            *self._section("SKIPPED", self._show_grouped(run, Verdict.SKIPPED)),
            *self._section("EXPECTED FAILURES", self._show_grouped(run, Verdict.XFAILED)),
            *self._section("INCONCLUSIVE", self._show_grouped(run, Verdict.INCONCLUSIVE)),
            *self._section("FAILURES", self.show_failures(run)),
            "",
        ]

    def show_last_line(self, run: RunRecord) -> str:
        """Return the counts and the time."""
        not_run = sum(case.was_not_run for case in run.cases)
        counts = run.counts
        counts[Verdict.ERROR] -= not_run
        words = [self.palette.paint(word, VERDICT_STYLES[verdict]) for verdict, word in describe_counts(counts)]
        if not_run:
            words.append(self.palette.paint(f"{not_run} not run", "warn"))
        took = f" in {format_seconds(run.seconds)}" if run.seconds is not None else ""
        unchanged = sum(case.kept == "verdict" for case in run.cases)
        took += self.palette.paint(f", {plural(unchanged, 'verdict')} kept", "dim") if unchanged else ""
        took += ": nothing was verified" if run.exit_code == ExitCode.NOTHING_VERIFIED else ""
        return (", ".join(words) or "no cases") + took

    def _take_case(self, case: CaseRecord) -> None:
        lines = self.show_case(case)
        suite = self._suites.setdefault(case.suite, [])
        suite.append(case)
        if len(suite) == self._open.get(case.suite) and not all(one.was_not_run for one in suite):
            lines += self.show_suite(case.location["path"], suite)
        if lines:
            with self.progress.paused():
                for line in lines:
                    self.console.print(line)

    def _finish(self, run: RunRecord) -> None:
        self._closed = True
        self.progress.close()
        for line in self.show_end(run):
            self.console.print(line)
        for reporter in self.files:
            if reporter.problem is not None:
                word = self.palette.paint(*(("warning", "warn") if reporter.optional else ("error", "bad")))
                self.console.print(f"{word}: {escape_line(reporter.problem.message)}")
            elif isinstance(reporter, FileReporter) and not reporter.optional and str(reporter.path) != "-":
                self.console.print(f"{reporter.what}: {escape_line(str(reporter.path))}")
        not_run = sum(case.was_not_run for case in run.cases)
        if run.interrupted or not_run:
            word = "stopped early" if not run.interrupted else "interrupted" if run.complete else "the run broke off"
            rest = f", {not_run} {'was' if not_run == 1 else 'were'} not run" if not_run else ""
            have = f"{len(run.cases) - not_run} of {plural(len(run.cases), 'case')} have a verdict"
            self.console.print(f"{self.palette.paint(word, 'warn')}: {have}{rest}")
        self.console.print(self.show_last_line(run))

    def _section(self, title: str, lines: Sequence[str]) -> list[str]:
        return ["", self.palette.paint(title, "bold"), *lines] if lines else []

    def show_failures(self, run: RunRecord) -> list[str]:
        """Return the block of every case that is neither green nor skipped."""
        lines: list[str] = []
        groups = _group_bad(run.cases)
        for case, same in groups[:_MOST_BLOCKS]:
            lines += ["", f"{paint_label(case.verdict, self.palette)} {escape_line(case.node_id)}"]
            lines += [f"      {line}".rstrip() for line in describe_case(case, self.palette)]
            if same:
                lines += ["", f"      the same in {plural(len(same), 'other case')}:"]
                lines += [f"        {escape_line(one.node_id)}" for one in same[:_MOST_NAMES]]
                lines += [f"        and {len(same) - _MOST_NAMES} more"] if len(same) > _MOST_NAMES else []
        if len(groups) > _MOST_BLOCKS:
            lines += ["", f"and {len(groups) - _MOST_BLOCKS} more: see `specrunner show`"]
        return lines

    def _show_grouped(self, run: RunRecord, verdict: Verdict) -> list[str]:
        """Return `12 cases: reason` and the remedy, the commonest reason first."""
        groups: dict[tuple[str, str], int] = {}
        for case in run.cases:
            if case.verdict is verdict:
                reason = case.xfail if verdict is Verdict.XFAILED else case.message
                remedy = (case.failure.help if case.failure else None) or ""
                groups[reason, remedy] = groups.get((reason, remedy), 0) + 1
        lines = []
        for (reason, remedy), count in sorted(groups.items(), key=lambda item: -item[1]):
            lines.append(f"  {plural(count, 'case')}: {escape_line(reason)}")
            if remedy:
                lines.append(f"    {self.palette.paint('help', 'note')}  {escape_line(remedy)}")
        return lines

    def _show_session(self, session: SessionRecord) -> list[str]:
        load = session.load_seconds
        words = [f"ready in {format_seconds(load)}" if load is not None else "never ready"]
        if session.kept == session.requests and not session.starts:
            words = ["not loaded"]
        else:
            words.append(f"{session.answered} of {plural(session.requests - session.kept, 'request')}")
        words += [plural(session.kept, "kept answer")] if session.kept else []
        words += [plural(session.tensors, "tensor")] if session.tensors else []
        words += [plural(session.tokens, "token")] if session.tokens else []
        if session.starts > 1:
            words.append(f"started {session.starts} times")
        if session.end:
            words.append(self.palette.paint(escape_line(session.end), "bad"))
        facts = " · ".join(map(escape_line, describe_facts(session.facts)))
        lines = [f"  {escape_line(session.label)}  {' · '.join(words)}"]
        lines += [f"    asked because {escape_line(session.why)}"] if session.why else []
        return [*lines, f"    {self.palette.paint(facts, 'dim')}"] if facts else lines


def _group_bad(cases: Sequence[CaseRecord]) -> list[tuple[CaseRecord, list[CaseRecord]]]:
    """Return every case that has to be told, with the errors that have the very same cause and log."""
    groups: dict[object, tuple[CaseRecord, list[CaseRecord]]] = {}
    for case in cases:
        if case.verdict not in BAD or case.was_not_run:
            continue
        key: object = case.node_id if case.verdict is not Verdict.ERROR or case.failure is None else case.failure
        if key in groups:
            groups[key][1].append(case)
        else:
            groups[key] = (case, [])
    return list(groups.values())
