"""`specrunner run`: plan the selected cases, run them, report."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from specrunner.cli.selection import add_selection_arguments, select_cases
from specrunner.config import load_settings
from specrunner.errors import ExitCode

EXAMPLES = """\
examples:
  specrunner run                                    everything under specs/
  specrunner run specs/smoke -k 'logits and not bf16'
  specrunner run specs/ -t correctness -p dtype=bfloat16 --junit-xml report.xml
  specrunner run 'specs/smoke/glass.yaml::logits[engine=hf,dtype=float32]'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_selection_arguments(parser)
    parser.add_argument("--failed", action="store_true", help="only the cases that did not pass in the last run")
    parser.add_argument("--plan", action="store_true", help="show the sessions and requests, run nothing")
    parser.add_argument("-j", "--jobs", type=int, metavar="N", help="engine processes at once (default: 2, or 1 on one core)")
    parser.add_argument("-x", dest="max_fail", action="store_const", const=1, help="stop after the first failure")
    parser.add_argument("--max-fail", type=int, metavar="N", help="stop after N failures")
    parser.add_argument("--strict", action="store_true", default=None, help="a skipped case is an error")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="the longest a request may take, for all cases")
    parser.add_argument("--junit-xml", metavar="FILE", help="write a JUnit report")
    parser.add_argument("--json", metavar="FILE", help="write a report with every number; - is stdout")
    parser.add_argument("--output-format", choices=("full", "concise", "github"), help="what to print (default: full)")
    parser.add_argument("--color", choices=("auto", "always", "never"), help="colours (default: auto)")
    parser.add_argument("--profile", metavar="NAME", help="settings from [tool.specrunner.profiles.NAME] of pyproject.toml")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    settings = load_settings(vars(options), os.environ, Path.cwd())
    cases = select_cases(options)
    return int(ExitCode.PASSED)
