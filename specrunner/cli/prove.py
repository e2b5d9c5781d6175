"""`specrunner prove`: plant faults in the engines under test, and say which cases catch them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from specrunner.cli.report import STDOUT, prepare_report, write_report
from specrunner.cli.selection import add_selection_arguments, select_cases
from specrunner.config import load_settings
from specrunner.errors import ExitCode, NothingVerified, UsageError
from specrunner.launch import apply_timeout, join_cluster

if TYPE_CHECKING:
    from specrunner.proof.proving import ProgressReporter
    from specrunner.spec.model import Case

EXAMPLES = """\
examples:
  specrunner prove specs/llada2/tiny-prove.yaml              every fault and every legitimate variant
  specrunner prove specs/llada2 --fault routing              the faults of one area
  specrunner prove specs/llada2 --fault 'mask-*' -k logits   by name, on some cases
  specrunner prove specs/llada2 --only variants --prompts 10 the variants alone, on ten more prompts a case
  specrunner prove --list                                    what there is to plant, and where it happened

A fault that cases could see and none catches, and an alarm on a legitimate variant, exit with 1. Faults and variants
are planted in models of LLaDA2's architecture alone; where none applies, the command exits with 5.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_selection_arguments(parser)
    parser.add_argument(
        "--fault", dest="faults", action="append", default=[], metavar="PATTERN", help="a name, a pattern or an area"
    )
    parser.add_argument(
        "--engine", action="append", default=[], metavar="NAME", help="only cases that test this engine"
    )
    parser.add_argument("--only", choices=("faults", "variants"), help="plant only bugs, or only legitimate variants")
    parser.add_argument(
        "--prompts", type=int, default=0, metavar="N", help="held-out prompts a case, for the variants (default: 0)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the held-out prompts (default: 0)")
    parser.add_argument("-j", "--jobs", metavar="N", help="engine processes at once")
    parser.add_argument("--json", dest="report", metavar="FILE", help="write every entry of the matrix; - is stdout")
    parser.add_argument("--markdown", action="store_true", help="print tables in Markdown")
    parser.add_argument("--list", action="store_true", help="list faults and variants with their stories, run nothing")


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    from specrunner.engines.registry import find_engine

    for name in options.engine:
        find_engine(name)
    if options.list:
        return list_faults(options)
    if options.prompts < 0:
        raise UsageError("--prompts cannot be negative")
    prepare_report(options.report)
    from specrunner.cli.run import require_numerics
    from specrunner.proof.proving import make_matrix, plan_trials, run_trials
    from specrunner.proof.text import format_markdown, format_matrix
    from specrunner.reporters.console import Console

    settings = load_settings({"jobs": options.jobs}, os.environ, Path.cwd())
    selected = select_cases(options, settings.no_cases, settings.timeout)
    cases = [case for case in apply_timeout(selected, settings) if not case.expected_to_fail]
    if not cases:
        raise NothingVerified("no case is left: cases that are expected to fail prove nothing")
    if options.engine:
        cases = keep_engines(cases, options.engine)
    trials = plan_trials(
        cases,
        options.faults,
        faults=options.only != "variants",
        variants=options.only != "faults",
        draws=options.prompts,
        seed=options.seed,
    )
    if all(trial.fault is None for trial in trials):
        raise NothingVerified("no fault can be planted in the engines of these cases", help="specrunner prove --list")
    require_numerics()
    join_cluster(settings)
    results, ended = run_trials(trials, [show_progress()], settings=settings)
    if ended is ExitCode.INTERRUPTED:
        return ended
    matrix = make_matrix(trials, results)
    if options.report != STDOUT:
        out = Console(sys.stdout)
        for line in format_markdown(matrix) if options.markdown else format_matrix(matrix):
            out.print(line)
    if options.report is not None:
        write_report(options.report, matrix.to_json())
    return matrix.exit_code


def keep_engines(cases: Sequence[Case], names: Sequence[str]) -> list[Case]:
    """Keep the cases that test one of these engines.

    Raises:
        NothingVerified: none does; the message names the engines that they test.
    """
    kept = [case for case in cases if case.candidate.engine in names]
    if not kept:
        asked = " or ".join(f"`{name}`" for name in names)
        tested = ", ".join(f"`{name}`" for name in dict.fromkeys(case.candidate.engine for case in cases))
        raise NothingVerified(f"no case tests {asked}; engines of these cases: {tested}")
    return kept


def show_progress() -> ProgressReporter:
    """Return a reporter that shows the run's progress on standard error."""
    from specrunner.proof.proving import ProgressReporter
    from specrunner.reporters.progress import make_progress
    from specrunner.reporters.style import Palette, wants_color

    return ProgressReporter(make_progress(sys.stderr, Palette(wants_color("auto", sys.stderr))))


def list_faults(options: argparse.Namespace) -> int:
    """Print the registry."""
    from specrunner.faults.bugs import FAULTS
    from specrunner.faults.variants import VARIANTS

    for fault in (*FAULTS, *VARIANTS):
        if not options.engine or set(options.engine) & set(fault.engines):
            print(f"{fault.name:34} {','.join(fault.engines):21} {fault.story}")
            for dtype, reason in fault.invisible.items():
                print(f"{'':34} {'':21} cannot be seen{'' if dtype == '*' else f' in {dtype}'}: {reason}")
    print("\nAll of them are planted in models of LLaDA2's architecture alone.")
    return ExitCode.PASSED
