"""`specrunner list`: the cases that spec files expand to."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING, Any

from specrunner.cli.selection import add_selection_arguments, select_cases
from specrunner.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from specrunner.spec.model import Case

EXAMPLES = """\
examples:
  specrunner list specs/smoke                  what `run` would run
  specrunner list -t correctness -p engine=hf
  specrunner list --json | jq -r '.cases[].node_id'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_selection_arguments(parser)
    parser.add_argument(
        "--json", action="store_true", help="all fields of the cases, and the sessions and requests they need, as JSON"
    )


def run(options: argparse.Namespace) -> int:
    """Print the selected cases."""
    from specrunner.words import escape_controls, plural

    cases = select_cases(options)
    if options.json:
        print(json.dumps(describe_plan(cases), indent=2, ensure_ascii=True))
        return ExitCode.PASSED
    for case in cases:
        print(escape_controls(case.node_id) + (f"  [{' '.join(case.tags)}]" if case.tags else ""))
    suites = len({case.suite for case in cases})
    print(f"{plural(len(cases), 'case')} in {plural(suites, 'suite')}")
    return ExitCode.PASSED


def describe_plan(cases: Sequence[Case]) -> dict[str, Any]:
    """Return cases and what a run of them would start: each case's evidence, by role, names a session and a request."""
    from specrunner.plan.build import make_plan

    plan = make_plan(cases)
    return {
        "version": 1,
        "cases": [
            {**describe_case(planned.case), "evidence": _plain(dict(planned.evidence)), "skip": _plain(planned.skip)}
            for planned in plan.cases
        ],
        "sessions": [
            {
                "key": planned.session.key,
                "label": planned.session.label,
                **planned.session.to_json(),
                "requests": [{"key": request.key, **request.to_json()} for request in planned.requests],
            }
            for planned in plan.sessions
        ],
    }


def describe_case(case: Case) -> dict[str, Any]:
    """Return a case as JSON values: ids first, then every field by its name in `Case`."""
    fields = {
        field.name: _plain(getattr(case, field.name))
        for field in dataclasses.fields(case)
        if field.name not in ("marks", "parameters", "suite", "name")
    }
    return {
        "node_id": case.node_id,
        "id": case.id,
        "suite": case.suite,
        "name": case.name,
        "parameters": dict(case.parameters),
        **fields,
    }


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
