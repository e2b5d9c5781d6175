"""Narrowing cases: keywords (`-k`), tags (`-t`) and matrix parameters (`-p`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specrunner.errors import NothingVerified, UsageError
from specrunner.spec.diagnostics import accepted_values
from specrunner.spec.keywords import compile_keywords
from specrunner.spec.model import Case
from specrunner.spec.scalars import resolve_plain

FIELDS = ("engine", "dtype", "device")
"""Keys of `-p` that every case has, be they axes of its matrix or not."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which of the loaded cases are meant.

    Attributes:
        keywords: an expression over suite, name, id and tags, or None.
        tags: a case must carry one of them; empty: any case.
        parameters: `(key, value)` pairs; values of one key are alternatives, keys must all hold. A case without the
            key is left out.
    """

    keywords: str | None = None
    tags: tuple[str, ...] = ()
    parameters: tuple[tuple[str, str], ...] = ()


def parse_parameter(text: str) -> tuple[str, str]:
    """Read `key=value`.

    Raises:
        UsageError: there is no `=`, or nothing before or after it.
    """
    key, equals, value = text.partition("=")
    if not equals or not key or not value:
        raise UsageError(f"-p {text}: not of the form key=value", help="e.g. `-p engine=hf -p dtype=float32`")
    return key, value


def parameter_of(case: Case, key: str) -> str | None:
    """Return a case's value of an axis of its matrix, or of one of `FIELDS`; None when it has neither."""
    found = dict(case.parameters).get(key)
    if found is None and key in FIELDS:
        found = str(getattr(case.candidate, key))
    return found


def select_cases(cases: Sequence[Case], selection: Selection) -> tuple[Case, ...]:
    """Return the cases that a selection means, in their order.

    Raises:
        UsageError: the keyword expression is malformed, or no case has a parameter of that name.
        NothingVerified: no case is left; the message says which condition left none.
    """
    left = list(cases)
    if not left:
        raise NothingVerified("there are no cases here", help="write a spec; docs/spec-reference.md shows how")
    for key, values in _group(selection.parameters).items():
        left = _narrow(left, cases, key, values)
    if selection.tags:
        wanted = set(selection.tags)
        known = sorted({tag for case in cases for tag in case.tags})
        left = [case for case in left if wanted.intersection(case.tags)]
        if not left:
            tags = " or ".join(f"`{tag}`" for tag in selection.tags)
            advice = accepted_values(selection.tags[0], known, "tags") if known else "no case has any tag"
            raise NothingVerified(f"no case has the tag {tags}", help=advice)
    if selection.keywords is not None:
        matches = compile_keywords(selection.keywords)
        left = [case for case in left if matches(_names(case))]
        if not left:
            advice = "`specrunner list` shows all cases"
            raise NothingVerified(f"no case matches `-k {selection.keywords}`", help=advice)
    return tuple(left)


def _group(parameters: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for key, value in parameters:
        grouped.setdefault(key, []).append(value)
    return grouped


def _narrow(left: list[Case], cases: Sequence[Case], key: str, values: list[str]) -> list[Case]:
    known = list(dict.fromkeys(found for case in cases if (found := parameter_of(case, key)) is not None))
    if not known:
        keys = [*FIELDS, *dict.fromkeys(name for case in cases for name, _ in case.parameters)]
        raise UsageError(f"-p {key}: no case has such a parameter", help=accepted_values(key, keys, "parameters"))
    wanted = {name for name in known if any(_equal(name, value) for value in values)}
    left = [case for case in left if parameter_of(case, key) in wanted]
    if not left:
        asked = " or ".join(f"`{key}={value}`" for value in values)
        raise NothingVerified(f"no case has {asked}", help=accepted_values(values[0], known, f"values of `{key}`"))
    return left


def _equal(label: str, value: str) -> bool:
    """Tell whether a value means a label: the same text, or the same number (`1e-3` and `0.001`)."""
    if label == value:
        return True
    try:
        left, right = resolve_plain(label), resolve_plain(value)
    except ValueError:
        return False
    numbers = all(isinstance(side, int | float) and not isinstance(side, bool) for side in (left, right))
    return numbers and left == right


def _names(case: Case) -> list[str]:
    return [text.lower() for text in (case.suite, case.name, case.id, *case.tags)]
