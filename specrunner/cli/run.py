"""`specrunner run`: plan the selected cases, run them, report."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from specrunner.catalogue.extras import install_command
from specrunner.cli.selection import add_selection_arguments, select_cases
from specrunner.config import Settings, load_settings
from specrunner.errors import ConfigurationError, ExitCode, NothingVerified, SpecError, UsageError
from specrunner.golden.store import refuse_under_ci
from specrunner.launch import apply_repeat, apply_timeout, join_cluster, make_options
from specrunner.spec.model import Case

if TYPE_CHECKING:
    from specrunner.cache.keeping import CacheChoice
    from specrunner.environments.interpreters import Environment
    from specrunner.plan.model import Foresight, Plan
    from specrunner.reporters.base import Reporter

EXAMPLES = """\
examples:
  specrunner run                                       everything under specs/
  specrunner run specs/smoke -k 'logits and not bfloat16'
  specrunner run specs/ -t correctness -p dtype=bfloat16 --junit-xml report.xml
  specrunner run 'specs/smoke/glass.yaml::logits[engine=hf,dtype=float32]'
  specrunner run --failed -x                           what did not pass last time, up to the first failure
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_selection_arguments(parser)
    parser.add_argument(
        "--failed", action="store_true", help="only the cases that did not pass when they last ran, and new ones"
    )
    parser.add_argument("--plan", action="store_true", help="show the sessions and requests, run nothing")
    parser.add_argument("-j", "--jobs", metavar="N", help="engine processes at once (default: 2, or 1 on one core)")
    parser.add_argument("--executor", metavar="NAME", help="what runs the engines: local (default) or ray")
    parser.add_argument("--ray-address", metavar="ADDRESS", help="of the Ray cluster (default: one that runs here)")
    parser.add_argument("-x", dest="max_fail", action="store_const", const=1, help="stop after the first failure")
    parser.add_argument("--max-fail", metavar="N", help="stop after N cases that failed, xpassed or had no evidence")
    parser.add_argument(
        "--repeat", metavar="N", help="ask each candidate N times, above what cases state; benchmarks once"
    )
    parser.add_argument("--retries", metavar="N", help="ask again up to N times after an error (never after a failure)")
    parser.add_argument("--strict", action="store_true", default=None, help="a skipped case is an error")
    parser.add_argument("--update-goldens", action="store_true", help="put missing and differing goldens up for review")
    parser.add_argument(
        "--golden-repeats", type=_repeats, default=2, metavar="N", help="captures that must agree (default: 2)"
    )
    parser.add_argument(
        "--no-cache",
        action="store_true",
        default=None,
        help="ask every engine anew, and keep no capture and no verdict",
    )
    parser.add_argument(
        "--no-fork", action="store_true", default=None, help="start the interpreter of each session anew"
    )
    parser.add_argument("--timeout", metavar="SECONDS", help="the longest a request may take, above what cases state")
    parser.add_argument("--junit-xml", metavar="FILE", help="write a JUnit report")
    parser.add_argument("--json", metavar="FILE", help="write a report with every number; - is stdout")
    parser.add_argument("--html", metavar="FILE", help="write a report for people, one page that opens offline")
    parser.add_argument("--output-format", metavar="FORMAT", help="full (default), concise or github")
    parser.add_argument("--color", metavar="WHEN", help="auto (default), always or never")
    parser.add_argument("--profile", metavar="NAME", help="settings of [tool.specrunner.profiles.NAME]")


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    settings = load_settings(vars(options), os.environ, Path.cwd())
    if options.update_goldens:
        refuse_under_ci("`--update-goldens`", os.environ)
    try:
        cases: Sequence[Case] = select_cases(options, settings.no_cases, settings.timeout)
    except (SpecError, NothingVerified) as error:
        if not options.plan:
            report_refusal(settings, error)
        raise
    nothing = ExitCode.PASSED
    if options.failed and cases:
        cases = keep_unverified(cases)
        if not cases:
            print("every selected case passed when it last ran", file=sys.stderr)
            nothing = ExitCode.NOTHING_VERIFIED if settings.no_cases == "fail" else ExitCode.PASSED
    if not cases:
        return ExitCode.PASSED if options.plan else report_nothing(settings, nothing)
    repeats = options.golden_repeats if options.update_goldens else 0
    return run_cases(
        apply_repeat(apply_timeout(cases, settings), settings),
        settings,
        plan_only=options.plan,
        golden_repeats=repeats,
    )


def _repeats(text: str) -> int:
    """Read the number of captures; fewer than two could not disagree, so one has to be asked for by name."""
    if not text.isdecimal() or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 100")
    return int(text)


def run_cases(
    cases: Sequence[Case],
    settings: Settings,
    *,
    plan_only: bool = False,
    golden_repeats: int = 0,
) -> int:
    """Plan and run cases under settings; with `plan_only`, print the plan instead.

    With `golden_repeats`, goldens that are missing or differ are made of so many captures and put up for review.
    """
    from specrunner.plan.build import Planner, make_plan

    planner = Planner(golden_repeats=golden_repeats)
    plan = make_plan(cases, planner)
    if plan_only:
        from specrunner.cache.keeping import choose_cache
        from specrunner.plan.text import format_plan

        choice = choose_cache(settings, fresh=golden_repeats > 0)
        print("\n".join(format_plan(plan, foresee(plan, planner.environments, settings, choice) if choice else None)))
        return ExitCode.PASSED
    from specrunner.reporters.json import LAST_RUN
    from specrunner.runner import Run

    require_numerics()
    join_cluster(settings)
    reporters = make_reporters(settings, LAST_RUN)
    run_options = make_options(settings, ("specrunner", *sys.argv[1:]), update_goldens=golden_repeats > 0)
    started = Run(plan, planner.environments, reporters, run_options)
    try:
        exit_code = started.execute()
    finally:
        for reporter in reporters:
            reporter.close()
    for line in (*started.goldens.summarize(), *started.answers.summarize(), *started.summarize_cache()):
        print(line, file=sys.stderr)
    return settle_exit(exit_code, reporters)


def report_nothing(settings: Settings, exit_code: ExitCode) -> int:
    """Write the reports of a run without a case, such as an empty shard's; the last run's evidence stays."""
    from specrunner.events import RunFinished, RunStarted
    from specrunner.machine import describe_machine
    from specrunner.plan.model import Plan

    reporters = make_reporters(settings, None)
    command = ("specrunner", *sys.argv[1:])
    for reporter in reporters:
        reporter.handle(RunStarted(Plan((), ()), command, time.time(), describe_machine()))
        reporter.handle(RunFinished(0.0, False, int(exit_code)))
        reporter.close()
    return settle_exit(exit_code, reporters)


def report_refusal(settings: Settings, error: SpecError | NothingVerified) -> None:
    """Tell CI why no case ran: an annotation for each problem on GitHub, and the JUnit report.

    A report that cannot be written is said to be, and the exit status stays that of `error`.
    """
    from specrunner.files import cannot_write, write_atomically
    from specrunner.reporters.problems import list_problems

    problems = list_problems(error)
    if settings.output_format == "github":
        from specrunner.reporters.console import Console
        from specrunner.reporters.github import annotate_problem

        console = Console(sys.stderr if settings.json == "-" else sys.stdout)
        for problem in problems:
            console.print(annotate_problem(problem))
    if settings.junit_xml:
        from specrunner.reporters.junit import JunitReporter, render_problems

        path = Path(settings.junit_xml)
        try:
            write_atomically(path, render_problems(problems, ("specrunner", *sys.argv[1:])))
        except OSError as reason:
            print(f"error: {cannot_write(path, JunitReporter.what, reason).message}", file=sys.stderr)


def make_reporters(settings: Settings, last_run: Path | None) -> list[Reporter]:
    """Return the reporters that settings ask for.

    Args:
        settings: of the run.
        last_run: where the run leaves its own report, or None when it leaves none.

    Raises:
        ConfigurationError: a report could not be written where it is asked for.
    """
    from specrunner.reporters import create_reporters

    return create_reporters(
        junit=Path(settings.junit_xml) if settings.junit_xml else None,
        json="-" if settings.json == "-" else Path(settings.json) if settings.json else None,
        html=Path(settings.html) if settings.html else None,
        summary=find_job_summary(settings, os.environ),
        last_run=last_run,
        output_format=settings.output_format,
        color=settings.color,
        stdout=sys.stdout,
        stderr=sys.stderr,
    )


def settle_exit(exit_code: ExitCode, reporters: Sequence[Reporter]) -> ExitCode:
    """Return the exit status; a report that was asked for and could not be written spoils a success."""
    unwritten = any(reporter.problem and not reporter.optional for reporter in reporters)
    return ExitCode.USAGE if unwritten and exit_code is ExitCode.PASSED else exit_code


def foresee(plan: Plan, environments: Mapping[str, Environment], settings: Settings, choice: CacheChoice) -> Foresight:
    """Say what of a plan is kept, and why the rest will run."""
    from specrunner.cache.keeping import RunCache
    from specrunner.machine import share_cores

    threads = share_cores(settings.jobs)
    return RunCache(choice, plan, environments, threads, strict=settings.strict).foresee(plan)


def find_job_summary(settings: Settings, environ: Mapping[str, str]) -> Path | None:
    """Return the file that GitHub shows on a job's page, under `--output-format github`."""
    named = environ.get("GITHUB_STEP_SUMMARY")
    return Path(named) if named and settings.output_format == "github" else None


def require_numerics() -> None:
    """Make sure, before any engine is started, that the checks can be computed.

    Raises:
        ConfigurationError: torch or safetensors is not installed beside specrunner.
    """
    missing = [package for package in ("torch", "safetensors") if find_spec(package) is None]
    if missing:
        raise ConfigurationError(
            f"the checks need {' and '.join(missing)}, not installed beside specrunner",
            help=f"run: {install_command('hf')}",
        )


def keep_unverified(cases: Sequence[Case]) -> list[Case]:
    """Keep the cases that did not pass when they last ran, and those that never did.

    Raises:
        UsageError: nothing is known of any run.
    """
    from specrunner.reporters.ledger import LEDGER, read_ledger
    from specrunner.results import Verdict

    try:
        known = read_ledger(LEDGER)
    except ConfigurationError as error:
        raise UsageError(f"--failed needs an earlier run: {error.message}", help="run once without --failed") from error
    return [case for case in cases if known.get(case.node_id) not in (Verdict.PASSED, Verdict.XFAILED)]
