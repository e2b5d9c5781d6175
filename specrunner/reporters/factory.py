"""Chooses the reporters of a run from what the command line asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TextIO

from specrunner.config import OUTPUT_FORMATS
from specrunner.files import prepare_path
from specrunner.reporters.base import Reporter, find_reporter

TERMINALS = {name: name for name in OUTPUT_FORMATS} | {"full": "terminal"}
"""The values of `--output-format`, and the reporter each one names."""


def create_reporters(
    *,
    junit: Path | None = None,
    json: Path | Literal["-"] | None = None,
    html: Path | None = None,
    summary: Path | None = None,
    last_run: Path | None = None,
    output_format: str = "full",
    color: str = "auto",
    stdout: TextIO,
    stderr: TextIO,
) -> list[Reporter]:
    """Return the reporters of a run, the one that prints last, so that it can name files that could not be written.

    Args:
        junit: where the JUnit report goes.
        json: where the JSON report goes; "-" is `stdout`, and the results then go to `stderr`.
        html: where the HTML report goes.
        summary: the file that GitHub's job summary is added to; one that cannot be written is no error.
        last_run: where the JSON report goes for `specrunner show`, with the verdicts for `--failed` beside it; a place
            that cannot be written is no error yet.
        output_format: of `config.OUTPUT_FORMATS`.
        color: `auto`, `always` or `never`.
        stdout: where results go.
        stderr: where progress goes.

    Raises:
        ConfigurationError: a report could not be written where it is asked for; said before anything runs.
    """
    from specrunner.reporters.ledger import LEDGER
    from specrunner.reporters.progress import make_progress
    from specrunner.reporters.style import Palette, wants_color

    files: list[Reporter] = []
    if junit is not None:
        prepare_path(junit, "JUnit report")
        files.append(find_reporter("junit")(junit))  # type: ignore[call-arg]
    if json == "-":
        from specrunner.reporters.json import JsonStreamReporter

        files.append(JsonStreamReporter(stdout))
    elif json is not None:
        prepare_path(json, "JSON report")
        files.append(find_reporter("json")(json))  # type: ignore[call-arg]
    if html is not None:
        prepare_path(html, "HTML report")
        files.append(find_reporter("html")(html))  # type: ignore[call-arg]
    if summary is not None:
        files.append(find_reporter("summary")(summary, optional=True))  # type: ignore[call-arg]
    if last_run is not None:
        files.append(find_reporter("json")(last_run, optional=True))  # type: ignore[call-arg]
        files.append(find_reporter("ledger")(last_run.with_name(LEDGER.name), optional=True))  # type: ignore[call-arg]
    out = stderr if json == "-" else stdout
    terminal = find_reporter(TERMINALS[output_format])
    progress = make_progress(stderr, Palette(wants_color(color, stderr)))
    palette = Palette(wants_color(color, out))
    return [*files, terminal(out, palette, progress, files)]  # type: ignore[call-arg]
