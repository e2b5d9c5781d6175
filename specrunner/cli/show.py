"""`specrunner show`: the last run's evidence for a case."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from specrunner.config import COLORS
from specrunner.errors import ExitCode, UsageError
from specrunner.words import did_you_mean

if TYPE_CHECKING:
    from specrunner.reporters.record import CaseRecord, RunRecord

EXAMPLES = """\
examples:
  specrunner show                                         list the cases of the last run
  specrunner show 'specs/a.yaml::capital[engine=hf]'      all measurements of one case
  specrunner show capital                                 the same, when one case fits
  specrunner show --report build/report.json capital      from a report that `run --json` wrote
"""

_MOST_NAMES = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    from specrunner.reporters.json import LAST_RUN

    parser.add_argument("case", nargs="?", metavar="CASE", help="a case's id, or a part of it that fits only one")
    parser.add_argument(
        "--report", type=Path, default=LAST_RUN, metavar="F", help="a JSON report (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, in the layout of the JSON report")
    parser.add_argument("--color", choices=COLORS, default="auto", help="when to colour")


def run(args: argparse.Namespace) -> int:
    """Print the list of cases, or one case.

    Raises:
        ConfigurationError: there is no report, or none that can be read.
        UsageError: no case, or more than one, fits the name.
    """
    from specrunner.reporters.console import Console
    from specrunner.reporters.dossier import describe_everything, list_cases
    from specrunner.reporters.json import read_run
    from specrunner.reporters.style import Palette, wants_color

    last = read_run(args.report)
    console = Console(sys.stdout)
    palette = Palette(wants_color(args.color, sys.stdout))
    case = None if args.case is None else find_case(last, args.case)
    if args.json:
        shown = json.dumps((case or last).to_json(), indent=2, allow_nan=False)
        console.write(shown.replace("##[", "#\\u0023[") + "\n")  # no command to a CI, and still the same JSON
        return ExitCode.PASSED
    for line in list_cases(last, palette) if case is None else describe_everything(case, last, palette):
        console.print(line)
    return ExitCode.PASSED


def find_case(run: RunRecord, name: str) -> CaseRecord:
    """Return the case called `name`: a whole id first, then a part of one.

    Raises:
        UsageError: none fits, or several do; the message names them.
    """
    from specrunner.reporters.escape import escape_line

    for fits in (
        [case for case in run.cases if name in (case.node_id, case.id)],
        [case for case in run.cases if name == case.name],
        [case for case in run.cases if name in case.node_id],
    ):
        if len(fits) == 1:
            return fits[0]
        if fits:
            names = "\n    ".join(escape_line(case.node_id) for case in fits[:_MOST_NAMES])
            more = f"\n    and {len(fits) - _MOST_NAMES} more" if len(fits) > _MOST_NAMES else ""
            raise UsageError(f"{name!r} fits {len(fits)} cases:\n    {names}{more}", help="name one of them")
    meant = did_you_mean(name, [text for case in run.cases for text in (case.name, case.id)], most=10_000)
    raise UsageError(
        f"the last run has no case {name!r}",
        help=meant or "`specrunner show` lists its cases",
    )
