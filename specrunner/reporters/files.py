"""Reports written to files: whole or not at all."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

from specrunner.events import Event, RunFinished
from specrunner.files import cannot_write, write_atomically
from specrunner.reporters.base import Reporter
from specrunner.reporters.collector import RunCollector


class FileReporter(Reporter):
    """Gathers the run and writes one file when it ends, however it ends.

    Args:
        path: where to write; its directory is made.
        optional: see `Reporter`.
    """

    what = "report"

    def __init__(self, path: Path, *, optional: bool = False) -> None:
        self.path = path
        self.optional = optional
        self.collector = RunCollector()
        self._written = False

    def handle(self, event: Event) -> None:
        """Take one event in; the last one writes the file."""
        self.collector.handle(event)
        if isinstance(event, RunFinished):
            self._write()

    def close(self) -> None:
        """Write what there is if the run broke off."""
        if self.collector.started is not None and not self._written:
            self._write()

    @abstractmethod
    def render(self) -> bytes:
        """Return the file's content."""

    def _write(self) -> None:
        self._written = True
        try:
            write_atomically(self.path, self.render())
        except OSError as error:
            self.problem = cannot_write(self.path, self.what, error)
