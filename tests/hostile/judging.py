"""What `specrunner validate` and `run --plan` do with a document, and what they promise of it."""

from __future__ import annotations

import sys
from pathlib import Path

from specrunner.environments.interpreters import Environment
from specrunner.plan.build import Planner, make_plan
from specrunner.plan.capabilities import check_capabilities
from specrunner.plan.text import format_plan
from specrunner.spec.loader import LoadedSpecs, read_spec, recipe_names
from specrunner.spec.source import parse_bytes

ENGINES = ("hf", "oracle", "sglang", "vllm")
LIMIT = 1.0
"""Seconds of CPU time that a document may take."""
LIMIT_OF_CASE = 0.001
"""Seconds more for each case that it stands for."""


def judge(data: bytes) -> tuple[str, int]:
    """Load, check and plan one document as the commands do; return what became of it and its number of cases.

    Raises:
        Exception: a promise is broken: everything that is raised is a bug.
    """
    name = "specs/fuzzed.yaml"
    source = parse_bytes(data, name)
    cases, diagnostics = read_spec(source, "specs/fuzzed", ENGINES, recipe_names())
    loaded = check_capabilities(LoadedSpecs(tuple(cases), tuple(diagnostics), (name,)))
    if loaded.diagnostics:
        for diagnostic in loaded.diagnostics[:100]:
            shown = diagnostic.render()
            if diagnostic.location.line < 1 or diagnostic.location.column < 1 or len(shown) > 100_000:
                raise AssertionError(f"a diagnostic nobody can use: {shown[:500]}")
            if not shown.replace("\n", "").isprintable():
                raise AssertionError(f"a diagnostic holds controls: {shown[:500]!a}")
        return f"refused: {loaded.diagnostics[0].code}", len(cases)
    if not loaded.cases:
        raise AssertionError("neither cases nor a diagnostic")
    if len({case.id for case in loaded.cases}) != len(loaded.cases):
        raise AssertionError("two cases have one id")
    if not all(case.id.isprintable() for case in loaded.cases):
        raise AssertionError("an id holds controls")
    here = Environment("here", Path(sys.executable))
    plan = make_plan(loaded.cases, Planner(find=lambda *_: here))
    for _ in format_plan(plan):
        pass
    return "valid", len(cases)
