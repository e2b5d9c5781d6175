"""What every reporter is: a reader of events, found by name."""

from __future__ import annotations

import importlib

from specrunner.errors import SpecrunnerError
from specrunner.events import Event

REPORTERS: dict[str, str] = {
    "terminal": "specrunner.reporters.terminal:TerminalReporter",
    "concise": "specrunner.reporters.concise:ConciseReporter",
    "github": "specrunner.reporters.github:GithubReporter",
    "junit": "specrunner.reporters.junit:JunitReporter",
    "json": "specrunner.reporters.json:JsonReporter",
    "ledger": "specrunner.reporters.ledger:LedgerReporter",
    "summary": "specrunner.reporters.github:SummaryReporter",
    "html": "specrunner.reporters.html:HtmlReporter",
}
"""Reporters by name; a module is imported when its reporter is asked for."""


class Reporter:
    """Reads the events of one run, in order, from one thread.

    Attributes:
        problem: what kept the report from being written, or None; a reporter never raises it, so that the verdict's
            exit code survives.
        optional: whether nobody asked for the report, so that a problem with it is a warning.
    """

    problem: SpecrunnerError | None = None
    optional: bool = False

    def handle(self, event: Event) -> None:
        """Take one event in."""

    def close(self) -> None:
        """Finish; called once after the last event, also when the run broke off without a `RunFinished`."""


def find_reporter(name: str) -> type[Reporter]:
    """Return the class of the reporter called `name`.

    Raises:
        KeyError: there is none.
    """
    module, _, attribute = REPORTERS[name].partition(":")
    found: type[Reporter] = getattr(importlib.import_module(module), attribute)
    return found
