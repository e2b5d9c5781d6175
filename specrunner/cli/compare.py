"""`specrunner compare`: two captures or safetensors files, measured or judged under a tolerance, outside any spec."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from specrunner.cli.report import STDOUT, prepare_report, write_report
from specrunner.errors import ExitCode

if TYPE_CHECKING:
    from specrunner.comparing import Differences

EXAMPLES = """\
examples:
  specrunner compare new.safetensors old.safetensors            what was measured, tensor by tensor
  specrunner compare new/ old/ --tolerance '{sqnr: 40}'         one rule for all tensors
  specrunner compare new/ old/ --tolerance '{logits: {kl: {mean: 1e-3}}, "layers.**": {sqnr: 30}}'
  specrunner compare new/ old/ --tolerance tolerance.yaml --json differences.json

exit status: 0 within the tolerance, or measured without one   1 not   4 usage   5 there was nothing to compare
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    what = "a directory of a capture, or a safetensors file"
    parser.add_argument("candidate", metavar="A", help=f"the candidate: {what}")
    parser.add_argument("reference", metavar="B", help=f"the reference: {what}")
    parser.add_argument("--tolerance", metavar="FILE|RULES", help="rules as in a spec: for all tensors, or by pattern")
    parser.add_argument("--json", metavar="FILE", help="write every number; - is stdout")


def run(options: argparse.Namespace) -> int:
    """Compare, print, and return the exit status.

    Raises:
        UsageError: a side cannot be read.
        ConfigurationError: the report cannot be written.
        SpecError: the tolerance is not valid.
        NothingVerified: the sides have no tensor or token in common, or no rule speaks of one.
    """
    from specrunner.cli.run import require_numerics
    from specrunner.comparing import compare_sides, read_side, read_tolerance
    from specrunner.reporters.escape import disarm, escape_line

    tolerance = read_tolerance(options.tolerance) if options.tolerance is not None else None
    require_numerics()
    prepare_report(options.json)
    sides = read_side(options.candidate), read_side(options.reference)
    outcome = compare_sides(*sides, tolerance)
    if options.json != STDOUT:
        print("\n".join(disarm(escape_line(f" {line}"))[1:] for line in describe(outcome)))
    if options.json is not None:
        write_report(options.json, outcome.to_json())
    return ExitCode.FAILED if not outcome.passed else ExitCode.PASSED


def describe(outcome: Differences) -> list[str]:
    """Return the lines to print: a row a tensor, then what the tolerance says, then the first divergence."""
    width = max((len(comparison.name) for comparison in outcome.comparisons), default=6)
    lines = [f"{'tensor':{width}}   rel l2    worst token      max |a-r|   cosine"] if outcome.comparisons else []
    for comparison in outcome.comparisons:
        measured = comparison.measured
        if measured is None:
            lines.append(f"{comparison.name:{width}}   {comparison.problem}")
            continue
        worst = f"{measured.token_rel_l2.value:.3g} at {measured.token_rel_l2.token}"
        lines.append(
            f"{comparison.name:{width}}   {measured.rel_l2:<9.3g} {worst:<16} {measured.max_abs.value:<11.4g} "
            f"{measured.cosine.value:.6g}"
        )
    failed = [check for check in outcome.checks if check.fails]
    lines += [f"failed: {check.subject} {check.rule}: {check.message}" for check in failed]
    if outcome.uncovered:
        lines.append(f"without a rule: {', '.join(outcome.uncovered)}")
    if outcome.first:
        lines.append(f"first divergence: {outcome.first}: {outcome.message}")
    elif outcome.checks:
        lines.append(f"all {len(outcome.checks)} checks hold")
    else:
        lines.append("no difference")
    return lines
