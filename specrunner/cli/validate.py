"""`specrunner validate`: check spec files without running anything."""

from __future__ import annotations

import argparse
import sys

from specrunner.cli.selection import add_path_argument, load_paths
from specrunner.config import COLORS
from specrunner.errors import ExitCode

EXAMPLES = """\
examples:
  specrunner validate                          everything under specs/
  specrunner validate specs/smoke my-spec.yaml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_path_argument(parser)
    parser.add_argument("--color", choices=COLORS, default="auto", help="colours (default: auto)")


def run(options: argparse.Namespace) -> int:
    """Print what is wrong with all specs, or how many cases are valid."""
    from specrunner.plan.capabilities import check_capabilities
    from specrunner.spec.diagnostics import print_diagnostics
    from specrunner.words import plural

    loaded = check_capabilities(load_paths(options.paths))
    if loaded.diagnostics:
        color = {"always": True, "never": False}.get(options.color)
        print_diagnostics(loaded.diagnostics, sys.stdout, color)
        return ExitCode.USAGE
    if not loaded.cases:
        print("no spec files here" if not loaded.files else "no cases here")
        return ExitCode.NOTHING_VERIFIED
    verb = "is" if len(loaded.cases) == 1 else "are"
    print(f"{plural(len(loaded.cases), 'case')} in {plural(len(loaded.files), 'file')} {verb} valid")
    return ExitCode.PASSED
