"""The JSON report: every number of the run (`schema/report.schema.json`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from specrunner.errors import ConfigurationError
from specrunner.reporters.console import silence_stream
from specrunner.reporters.escape import encode_json
from specrunner.reporters.files import FileReporter
from specrunner.reporters.record import RunRecord, list_fields

if TYPE_CHECKING:
    from typing import TextIO

LAST_RUN = Path(".specrunner") / "last-run.json"
"""Where every run leaves its report, for `specrunner show`."""


class JsonReporter(FileReporter):
    """Writes the run as one JSON object."""

    what = "JSON report"

    def render(self) -> bytes:
        """Return the report, ASCII, with a line for every case."""
        return render_json(self.collector.record())


class JsonStreamReporter(JsonReporter):
    """Writes the run to a stream, usually standard output.

    Args:
        stream: a text stream.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(Path("-"))
        self._stream = stream

    def _write(self) -> None:
        self._written = True
        try:
            self._stream.write(self.render().decode("ascii"))
            self._stream.flush()
        except BrokenPipeError:
            silence_stream(self._stream)
        except OSError as error:
            self.problem = ConfigurationError(f"cannot write the JSON report: {(error.strerror or str(error)).lower()}")


def render_json(run: RunRecord) -> bytes:
    """Return the JSON report of `run`: ASCII, a line for each part and each case, so that it can be searched."""
    parts = []
    for name, value in {**run.head_to_json(), "cases": [list_fields(case) for case in run.cases]}.items():
        if isinstance(value, list):
            shown = "[" + ",".join("\n" + encode_json(item) for item in value) + "\n]"
        else:
            shown = encode_json(value)
        parts.append(f"{encode_json(name)}: {shown}")
    return ("{\n" + ",\n".join(parts) + "\n}\n").encode("ascii")


def read_run(path: Path) -> RunRecord:
    """Read a JSON report.

    Args:
        path: a file that `JsonReporter` wrote.

    Raises:
        ConfigurationError: it is not there, cannot be read, or is not a report of this version.
    """
    try:
        return RunRecord.from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"there is no report at {path}", help="run `specrunner run specs/` first, in this directory"
        ) from error
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ConfigurationError(
            f"{path} is not a JSON report that this version can read: {reason}", help="run the specs again"
        ) from error
