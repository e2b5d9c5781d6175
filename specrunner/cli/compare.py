"""`specrunner compare`: two captures or safetensors files, measured or judged under a tolerance, outside any spec."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specrunner.errors import ExitCode, NothingVerified, SpecError, UsageError

if TYPE_CHECKING:
    from specrunner.checks.sources import TensorSource
    from specrunner.checks.tensors import Comparison
    from specrunner.results import CheckResult
    from specrunner.spec.model import Rule

EXAMPLES = """\
examples:
  specrunner compare new.safetensors old.safetensors            what was measured, tensor by tensor
  specrunner compare new/ old/ --tolerance '{sqnr: 40}'         one rule for all tensors
  specrunner compare new/ old/ --tolerance '{logits: {kl: {mean: 1e-3}}, "layers.**": {sqnr: 30}}'
  specrunner compare new/ old/ --tolerance tolerance.yaml --json differences.json

exit status: 0 within the tolerance, or measured without one   1 not   4 usage   5 there was nothing to compare
"""


@dataclass(frozen=True, slots=True)
class Side:
    """One side of the comparison: tensors by name, and the token ids of a capture (None for a bare file)."""

    tensors: Mapping[str, TensorSource]
    prompt: Sequence[int] | None = None
    output: Sequence[int] | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was found out.

    Attributes:
        comparisons: measurements of every tensor, in model order.
        checks: what the tolerance says; empty without one.
        first: the first tensor in model order that fails (without a tolerance: that differs), or "".
        message: how.
    """

    comparisons: Sequence[Comparison]
    checks: Sequence[CheckResult] = ()
    first: str = ""
    message: str = ""
    uncovered: Sequence[str] = field(default_factory=tuple)


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
        UsageError: a side cannot be read, or the report cannot be written.
        SpecError: the tolerance is not valid.
        NothingVerified: the sides have no tensor or token in common, or no rule speaks of one.
    """
    from specrunner.cli.run import require_numerics
    from specrunner.reporters.escape import disarm, escape_line

    tolerance = read_tolerance(options.tolerance) if options.tolerance is not None else None
    require_numerics()
    sides = read_side(options.candidate), read_side(options.reference)
    outcome = compare(*sides, tolerance)
    if options.json != "-":
        print("\n".join(disarm(escape_line(f" {line}"))[1:] for line in describe(outcome)))
    if options.json:
        write_report(outcome, options.json)
    return ExitCode.FAILED if any(check.fails for check in outcome.checks) else ExitCode.PASSED


def read_side(name: str) -> Side:
    """Open a capture's directory or a safetensors file.

    Raises:
        UsageError: it is neither, or it is not whole.
    """
    from safetensors import SafetensorError

    from specrunner.checks.sources import open_tensors
    from specrunner.errors import CaptureIncomplete
    from specrunner.sessions.captures import read_capture

    path = Path(name)
    try:
        if path.is_dir():
            stored = read_capture(path)
            tensors = open_tensors(stored.tensors_path) if stored.tensors_path else {}
            return Side(tensors, stored.prompt_token_ids, stored.output_token_ids)
        return Side(open_tensors(path))
    except CaptureIncomplete as error:
        raise UsageError(f"{name}: {error.message}", help="name a directory that holds capture.json") from error
    except (OSError, SafetensorError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{name} cannot be read: {text}") from error


def read_tolerance(text: str) -> list[tuple[str, tuple[Rule, ...]]]:
    """Read rules from a file, or as they were written on the command line.

    Returns:
        Patterns with their rules, in order; rules that stand alone hold for every tensor (`**`).

    Raises:
        SpecError: it is not YAML, or not a tolerance.
        UsageError: it is a file that cannot be read.
    """
    from specrunner.spec.rules import read_rules, rule_names
    from specrunner.spec.schema import compile_definition
    from specrunner.spec.source import parse_text, read_source

    is_file = Path(text).is_file()
    if not is_file and text.endswith((".yaml", ".yml")):
        raise UsageError(f"there is no file {text}")
    source = read_source(text) if is_file else parse_text(text, "--tolerance")
    if source.diagnostics:
        raise SpecError(source.diagnostics)
    root: Any = source.root
    if isinstance(root, dict) and set(root) == {"tolerance"}:
        root = root["tolerance"]
    names = rule_names()
    if isinstance(root, str) or (isinstance(root, dict) and root and all(key in names for key in root)):
        root = {"**": root}
    if not isinstance(root, dict) or not compile_definition("tolerance")(root):
        known = ", ".join(f"`{name}`" for name in names)
        raise UsageError(
            f"{text!r} is not a tolerance",
            help=f"write rules, e.g. '{{sqnr: 40}}', or rules by pattern, as in a spec; the rules are {known}",
        )
    return [(pattern, read_rules(written)) for pattern, written in root.items()]


def compare(
    candidate: Side, reference: Side, tolerance: Sequence[tuple[str, tuple[Rule, ...]]] | None = None
) -> Outcome:
    """Measure every tensor, and judge those that a rule speaks of.

    Args:
        candidate: one side.
        reference: the other, what the measurements are relative to.
        tolerance: patterns with their rules, the first that matches wins; None to measure only. Integers are compared
            for equality whatever the rule is.

    Raises:
        NothingVerified: there is nothing to compare.
    """
    from specrunner.checks.tensors import compare_tensors, measure_all
    from specrunner.checks.tokens import compare_prompt_ids, compare_tokens
    from specrunner.results import CheckResult
    from specrunner.spec.model import Rule
    from specrunner.spec.tensor_names import match_name

    if not candidate.tensors.keys() & reference.tensors.keys() and not (candidate.output and reference.output):
        raise NothingVerified("the two have no tensor and no tokens in common")
    checks = []
    if candidate.prompt is not None and reference.prompt is not None:
        checks.append(compare_prompt_ids(candidate.prompt, reference.prompt))
    comparisons = measure_all(candidate.tensors, reference.tensors)
    uncovered = []
    for comparison in comparisons if tolerance is not None else ():
        name = comparison.name
        rules = next((rules for pattern, rules in tolerance or () if match_name(pattern, name)), None)
        both = name in candidate.tensors and name in reference.tensors
        if rules is not None and both and not reference.tensors[name].dtype.is_floating_point:
            rules = tuple(rule for rule in rules if rule.name == "exact") or (Rule("exact"),)
        if rules is None:
            uncovered.append(name)
        elif not both:
            checks.append(CheckResult(name, "evidence", False, comparison.problem, {}))
        else:
            checks += compare_tensors(name, candidate.tensors[name], reference.tensors[name], rules)
    judged = [check for check in checks if check.subject != "tokenization" and check.rule != "evidence"]
    if tolerance is not None and not judged:
        raise NothingVerified("no rule speaks of a tensor that both have")
    if candidate.output is not None and reference.output is not None:
        checks.append(compare_tokens(candidate.output, reference.output))
    failed = next((check for check in checks if check.fails), None)
    if tolerance is None:
        first, message = find_difference(comparisons)
        if not first and failed is not None:
            first, message = failed.subject, failed.message
        return Outcome(comparisons, (), first, message)
    return Outcome(
        comparisons, checks, failed.subject if failed else "", failed.message if failed else "", tuple(uncovered)
    )


def find_difference(comparisons: Sequence[Comparison]) -> tuple[str, str]:
    """Return the first tensor in model order that differs at all, and how."""
    for comparison in comparisons:
        measured = comparison.measured
        if measured is None:
            if "all equal" not in comparison.problem:
                return comparison.name, comparison.problem
        elif measured.max_abs.value or measured.non_finite.unmatched:
            where = measured.max_abs.token
            return comparison.name, f"max |a-r| {measured.max_abs.value:.4g} at token {where}"
    return "", ""


def describe(outcome: Outcome) -> list[str]:
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


def write_report(outcome: Outcome, target: str) -> None:
    """Write every number as JSON.

    Raises:
        UsageError: the file cannot be written.
    """
    report = {
        "first_divergence": outcome.first or None,
        "message": outcome.message,
        "tensors": [
            {
                "name": comparison.name,
                "problem": comparison.problem,
                "measurements": comparison.measured.to_json() if comparison.measured else None,
            }
            for comparison in outcome.comparisons
        ],
        "checks": [
            {
                "subject": check.subject,
                "rule": check.rule,
                "passed": check.passed,
                "message": check.message,
                "measurements": dict(check.measurements),
                "limits": dict(check.limits),
            }
            for check in outcome.checks
        ],
    }
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    if target == "-":
        sys.stdout.write(text)
        return
    try:
        Path(target).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"the report cannot be written to {target}: {error.strerror}") from error
