"""The process that runs the cases of a test session: `python -m specrunner.testing.process`, asked over its input.

The first line of standard input is a JSON object (`files`, `node_ids`, `settings`, `verdicts`). When the input ends
before the cases do, the asker is gone or wants no more: the run and its engines are ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from specrunner.cli.run import require_numerics
from specrunner.config import load_settings
from specrunner.errors import ExitCode, SpecrunnerError
from specrunner.events import CaseFinished, Event
from specrunner.launch import apply_repeat, apply_timeout, join_cluster, make_options
from specrunner.plan.build import Planner, make_plan
from specrunner.reporters.base import Reporter
from specrunner.reporters.escape import encode_json
from specrunner.reporters.json import LAST_RUN, JsonReporter
from specrunner.reporters.ledger import LEDGER, LedgerReporter
from specrunner.reporters.record import CaseRecord, list_fields
from specrunner.runner import Run
from specrunner.spec.loader import load_specs


class VerdictWriter(Reporter):
    """Writes every verdict as a line of JSON, at once.

    Args:
        path: the file to append to. A line that an earlier process left unfinished is ended first.
    """

    def __init__(self, path: Path) -> None:
        self._stream = path.open("a", encoding="ascii")
        self._write("\n")

    def handle(self, event: Event) -> None:
        """Take one event in."""
        if isinstance(event, CaseFinished):
            self._write(encode_json(list_fields(CaseRecord.from_result(event.result))) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def run_cases(request: dict[str, Any]) -> ExitCode:
    """Run the cases of a request.

    Raises:
        SpecrunnerError: a setting or a spec is wrong, the cluster cannot be joined, or the checks cannot be computed.
    """
    settings = load_settings(request["settings"], os.environ, Path.cwd())
    wanted = set(request["node_ids"])
    loaded = load_specs(request["files"], timeout=settings.timeout).require_valid()
    planner = Planner()
    cases = apply_timeout((case for case in loaded if case.node_id in wanted), settings)
    plan = make_plan(apply_repeat(cases, settings), planner)
    require_numerics()
    join_cluster(settings)
    reporters: list[Reporter] = [
        JsonReporter(LAST_RUN, optional=True),
        LedgerReporter(LEDGER, optional=True),
        VerdictWriter(Path(request["verdicts"])),
    ]
    options = make_options(settings, ("pytest", *request["files"]))
    try:
        return Run(plan, planner.environments, reporters, options).execute()
    finally:
        for reporter in reporters:
            reporter.close()


def watch_input() -> None:
    """End this process in an orderly way when nobody waits for it any more.

    The descriptor is read, not `sys.stdin`: its lock would still be held when the interpreter ends.
    """
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    """Read the request and run it; return the exit status of the run."""
    request = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=watch_input, daemon=True).start()
    try:
        return int(run_cases(request))
    except SpecrunnerError as error:
        print(f"error: {error.message}" + (f"; {error.help}" if error.help else ""), file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
