"""The HTML report: one self-contained file with every case, which opens offline."""

from __future__ import annotations

from specrunner.reporters.files import FileReporter
from specrunner.reporters.html.page import render_page


class HtmlReporter(FileReporter):
    """Writes the run as one HTML file."""

    what = "HTML report"

    def render(self) -> bytes:
        """Return the page in UTF-8."""
        return render_page(self.collector.record())
