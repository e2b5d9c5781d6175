"""`specrunner calibrate`: measure the noise of legitimate variants, and print the tolerances it supports."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from specrunner.cli.selection import add_selection_arguments, select_cases
from specrunner.config import is_ci, load_settings
from specrunner.errors import ExitCode, NothingVerified, UsageError
from specrunner.launch import apply_timeout, join_cluster
from specrunner.words import plural

EXAMPLES = """\
examples:
  specrunner calibrate specs/llada2/tiny-prove.yaml             noise on each case's prompt and on four others
  specrunner calibrate specs/llada2 -k logits --prompts 20      more prompts, made of the same tokens
  specrunner calibrate specs/llada2 --write                     put the suggested limits into the specs

A limit is suggested at 1.5 times the 99th percentile of the noise. Nothing is edited without --write, and nothing
under CI: a limit that follows every run of a pipeline guards nothing.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_selection_arguments(parser)
    parser.add_argument("--prompts", type=int, default=4, metavar="N", help="held-out prompts a case (default: 4)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the held-out prompts (default: 0)")
    parser.add_argument(
        "--variant", dest="variants", action="append", default=[], metavar="PATTERN", help="only these variants"
    )
    parser.add_argument("-j", "--jobs", metavar="N", help="engine processes at once")
    parser.add_argument("--write", action="store_true", help="write the suggested limits into the spec files")


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    from specrunner.calibration.noise import NoiseLog, merge_suggestions
    from specrunner.calibration.rewriting import write_limits
    from specrunner.calibration.text import format_noises
    from specrunner.cli.prove import show_progress
    from specrunner.cli.run import require_numerics
    from specrunner.proof.proving import plan_trials, run_trials
    from specrunner.reporters.console import Console
    from specrunner.results import Verdict

    if options.prompts < 0:
        raise UsageError("--prompts cannot be negative")
    if options.write and is_ci(os.environ):
        raise UsageError(
            "--write is refused under CI", help="calibrate on your own machine, and review the limits as a change"
        )
    settings = load_settings({"jobs": options.jobs}, os.environ, Path.cwd())
    selected = select_cases(options, settings.no_cases, settings.timeout)
    cases = [case for case in apply_timeout(selected, settings) if not case.expected_to_fail]
    trials = plan_trials(cases, options.variants, faults=False, draws=options.prompts, seed=options.seed)
    require_numerics()
    join_cluster(settings)
    results, ended = run_trials(trials, [show_progress()], settings=settings)
    if ended is ExitCode.INTERRUPTED:
        return ended
    log, lost = NoiseLog(), 0
    for trial in trials:
        result = results[trial.case.node_id]
        if result.verdict in (Verdict.PASSED, Verdict.FAILED):
            log.add(trial.original, result, f"{trial.original.prompt} {trial.draw}")
        elif result.verdict is Verdict.ERROR:
            lost += 1
    noises = log.noises()
    if not noises:
        raise NothingVerified("no run gave a measurement under a tolerance")
    out = Console(sys.stdout)
    for line in format_noises(noises):
        out.print(line)
    if lost:
        out.print(f"{lost} of {len(trials)} runs gave no evidence and are left out")
    if options.write:
        for path, count in write_limits(merge_suggestions(noises)).items():
            out.print(f"wrote {plural(count, 'limit')} to {path}")
    return ExitCode.ERRORS if lost else ExitCode.PASSED
