"""Two captures, or safetensors files, compared outside any spec: what differs, and whether a tolerance allows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specrunner.errors import NothingVerified, SpecError, UsageError

if TYPE_CHECKING:
    from specrunner.checks.sources import TensorSource
    from specrunner.checks.tensors import Comparison
    from specrunner.results import CheckResult
    from specrunner.spec.model import Rule


@dataclass(frozen=True, slots=True)
class Side:
    """One side of the comparison: tensors by name, and the token ids of a capture (None for a bare file)."""

    tensors: Mapping[str, TensorSource]
    prompt: Sequence[int] | None = None
    output: Sequence[int] | None = None


@dataclass(frozen=True, slots=True)
class Differences:
    """Two captures or safetensors files, measured and judged.

    Attributes:
        comparisons: measurements of every tensor, in model order.
        checks: what the tolerance says; empty without one.
        first: the first tensor in model order that fails (without a tolerance: that differs), or "".
        message: how.
        uncovered: tensors that no rule of the tolerance speaks of.
    """

    comparisons: Sequence[Comparison]
    checks: Sequence[CheckResult] = ()
    first: str = ""
    message: str = ""
    uncovered: Sequence[str] = field(default_factory=tuple)

    @property
    def passed(self) -> bool:
        """Whether every check of the tolerance holds; without a tolerance there is none to break."""
        return not any(check.fails for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Return every number, as `compare --json` writes it."""
        return {
            "first_divergence": self.first or None,
            "message": self.message,
            "tensors": [
                {
                    "name": comparison.name,
                    "problem": comparison.problem,
                    "measurements": comparison.measured.to_json() if comparison.measured else None,
                }
                for comparison in self.comparisons
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
                for check in self.checks
            ],
            "uncovered": list(self.uncovered),
        }


def compare(candidate: str | Path, reference: str | Path, tolerance: str | None = None) -> Differences:
    """Compare two directories of captures, or two safetensors files.

    Args:
        candidate: one side.
        reference: the other, what the measurements are relative to.
        tolerance: rules as in a spec, for all tensors (`{sqnr: 40}`) or by pattern, or a YAML file of them; None to
            measure only.

    Raises:
        UsageError: a side cannot be read, or the tolerance is none.
        SpecError: the tolerance is not valid YAML.
        NothingVerified: the sides have no tensor or token in common, or no rule speaks of one.
    """
    rules = read_tolerance(tolerance) if tolerance is not None else None
    return compare_sides(read_side(candidate), read_side(reference), rules)


def read_side(name: str | Path) -> Side:
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


def compare_sides(
    candidate: Side, reference: Side, tolerance: Sequence[tuple[str, tuple[Rule, ...]]] | None = None
) -> Differences:
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
        return Differences(comparisons, (), first, message)
    return Differences(
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
