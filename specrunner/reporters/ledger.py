"""The last verdict of every case, also of those that the last run left out: what `run --failed` goes by."""

from __future__ import annotations

import json
from contextlib import ExitStack, suppress
from pathlib import Path

from specrunner.errors import ConfigurationError
from specrunner.folders import hold_lock
from specrunner.reporters.files import FileReporter
from specrunner.results import Verdict

LEDGER = Path(".specrunner") / "verdicts.json"
"""Where every run puts the verdicts of its cases."""

VERSION = 1


class LedgerReporter(FileReporter):
    """Puts the run's verdicts over what is known of the other cases; those whose spec file is gone drop out."""

    what = "record of verdicts"

    def render(self) -> bytes:
        """Return the record: ASCII, a line for every case."""
        told = {case.node_id: str(case.verdict) for case in self.collector.record().cases}
        with suppress(ConfigurationError):  # a record that cannot be read is begun anew
            earlier = read_ledger(self.path)
            files = {node_id: Path(node_id.partition("::")[0]) for node_id in earlier if node_id not in told}
            there = {file for file in set(files.values()) if file.exists()}
            told |= {node_id: str(earlier[node_id]) for node_id, file in files.items() if file in there}
        return (json.dumps({"version": VERSION, "verdicts": told}, indent=0) + "\n").encode("ascii")

    def _write(self) -> None:
        """Read and write under a lock, so that of two runs at once neither takes back what the other found."""
        with ExitStack() as stack:
            with suppress(OSError):  # then the record cannot be written either, which says why
                stack.enter_context(hold_lock(self.path.with_suffix(".lock")))
            super()._write()


def read_ledger(path: Path) -> dict[str, Verdict]:
    """Return the last verdict of every case that was in a run, by node id.

    Raises:
        ConfigurationError: there is no record yet, or none that can be read.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["version"] != VERSION:
            raise ValueError(f"it has version {record['version']!r}, not {VERSION}")
        return {str(node_id): Verdict(verdict) for node_id, verdict in record["verdicts"].items()}
    except FileNotFoundError as error:
        raise ConfigurationError(f"there is no record of verdicts at {path}") from error
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigurationError(f"{path} is not a record of verdicts: {error}") from error
