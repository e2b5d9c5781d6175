"""The matrix: axes, their combinations, and what each combination changes in a case."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from specrunner.spec.diagnostics import Diagnostic, accepted_values
from specrunner.spec.explain import explain
from specrunner.spec.merge import Layers
from specrunner.spec.schema import compile_definition, field_schema
from specrunner.spec.syntax import Span
from specrunner.spec.tree import Map

EXCLUDE = "exclude"
ENGINE = "engine"
MAX_CASES = 100_000
"""Cases that one file may stand for."""
MAX_EXCLUDED = 5_000_000
"""Combinations of one entry times its exclusions."""

_LABEL = re.compile(r"[^\s\[\],=]{1,80}")
_TEXT_FIELDS = ("prompt", "prompt.text", "prompt.messages", "prompt.token_ids")


@dataclass(frozen=True, slots=True)
class Choice:
    """One value of an axis.

    Attributes:
        label: how ids, `-p` and `exclude` call it.
        value: the field's value, or the label again.
        change: the fields it lays over the case, with marks.
    """

    label: str
    value: Any
    change: Map

    def matches(self, value: Any) -> bool:
        """Tell whether a value under `exclude` means this choice."""
        if isinstance(value, str) or isinstance(self.value, bool) != isinstance(value, bool):
            return bool(value == self.label)
        return bool(value == self.value) or str(value) == self.label


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a matrix, in the order of writing."""

    name: str
    choices: tuple[Choice, ...]


@dataclass(slots=True)
class Exclusion:
    """One entry of `exclude`; `used` tells whether it ever left something out."""

    values: Mapping[str, Sequence[Any]]
    span: Span
    used: bool = False


class MatrixReader:
    """Reads the matrices of one file; each axis is read once, however many cases share it."""

    def __init__(self) -> None:
        self.diagnostics: list[Diagnostic] = []
        self._axes: dict[tuple[str, int], Axis | None] = {}
        self._exclusions: dict[int, tuple[Exclusion, ...]] = {}
        self._kept: list[Any] = []
        self._axis_names: dict[int, dict[str, set[str]]] = {}
        self._excludes: dict[int, Layers] = {}

    def read(self, matrix: Mapping[str, Any], layers: Layers) -> tuple[Axis, ...] | None:
        """Return the axes of a case's merged matrix, or None when one of them is wrong."""
        axes = []
        broken = False
        for name, values in matrix.items():
            if name == EXCLUDE or values is None:
                continue
            key = (name, id(values))
            if key not in self._axes:
                self._kept.append(values)
                self._axes[key] = self._read_axis(name, values, layers)
            axis = self._axes[key]
            if axis is None:
                broken = True
            else:
                axes.append(axis)
        return None if broken else tuple(axes)

    def _report(self, layers: Layers, code: str, message: str, span: Span, help: str | None = None) -> None:
        self.diagnostics.append(layers.source.diagnose(code, message, span, help))

    def _read_axis(self, name: str, values: Any, layers: Layers) -> Axis | None:
        span = layers.span("matrix", name, at_key=True)
        if name == ENGINE or (name == "engines" and isinstance(values, list)):
            advice = "list the engines under `engines`: they are the first axis of every matrix"
            self._report(layers, "bad-axis", f"`{name}` cannot be an axis", span, advice)
            return None
        if isinstance(values, dict):
            return Axis(name, tuple(Choice(label, label, change) for label, change in values.items()))
        fields = list(field_schema("variant")["properties"])
        if name.split(".")[0] not in fields:
            advice = accepted_values(name, axis_fields(), "fields")
            advice += (" " if advice.endswith("?") else "; ") + "an axis of your own maps labels to what they change"
            self._report(layers, "unknown-axis", f"axis `{name}` is not a field of a case", span, advice)
            return None
        choices = [self._read_value(name, value, layers, index) for index, value in enumerate(values)]
        found = [choice for choice in choices if choice is not None]
        labels: set[str] = set()
        for index, choice in enumerate(found):
            if choice.label in labels:
                at = layers.span("matrix", name, index)
                self._report(layers, "repeated-item", f"`{choice.label}` is listed twice in `{name}`", at)
                return None
            labels.add(choice.label)
        return Axis(name, tuple(found)) if len(found) == len(choices) else None

    def _read_value(self, name: str, value: Any, layers: Layers, index: int) -> Choice | None:
        span = layers.span("matrix", name, index)
        text = value if isinstance(value, str) else layers.source.text[slice(*span)]
        label = text if isinstance(value, str) or not text.startswith("*") else str(value).lower()
        change = _nest(name.split("."), value, layers.span("matrix", name, at_key=True), span)
        if not compile_definition("variant")(change):
            for finding in explain("variant", change):
                at = layers.span("matrix", name, at_key=True) if finding.code == "unknown-key" else span
                self._report(layers, finding.code, finding.message, at, finding.help)
            return None
        if name in _TEXT_FIELDS or not _LABEL.fullmatch(label) or not label.isprintable():
            parts = name.split(".")
            example = ": ".join("{" + part for part in parts) + ": …" + "}" * len(parts)
            advice = f"give it a label: `{parts[-1]}: {{my-label: {example}}}`"
            self._report(layers, "bad-label", "this value cannot be part of a case's id", span, advice)
            return None
        return Choice(label, value, change)

    def exclusions(
        self, matrix: Mapping[str, Any], layers: Layers, axes: Mapping[str, set[str]]
    ) -> tuple[Exclusion, ...]:
        """Return the entries of `exclude`, and note which axes and labels the cases that use them have."""
        entries = matrix.get(EXCLUDE)
        if not entries:
            return ()
        key = id(entries)
        if key not in self._exclusions:
            self._kept.append(entries)
            self._excludes[key] = layers
            self._exclusions[key] = tuple(
                Exclusion(
                    {name: value if isinstance(value, list) else [value] for name, value in entry.items()},
                    layers.span("matrix", EXCLUDE, index),
                )
                for index, entry in enumerate(entries)
            )
        known = self._axis_names.setdefault(key, {})
        for name, labels in axes.items():
            known.setdefault(name, set()).update(labels)
        return self._exclusions[key]

    def finish(self) -> None:
        """Report the exclusions that could never leave anything out, once all cases of the file are expanded."""
        for key, exclusions in self._exclusions.items():
            layers = self._excludes[key]
            known = self._axis_names[key]
            for index, exclusion in enumerate(exclusions):
                if exclusion.used:
                    continue
                unknown = [name for name in exclusion.values if name not in known]
                if unknown:
                    span = layers.span("matrix", EXCLUDE, index, unknown[0], at_key=True)
                    advice = accepted_values(unknown[0], list(known), "axes")
                    self._report(layers, "unknown-axis", f"no axis is called `{unknown[0]}`", span, advice)
                    continue
                span = exclusion.span
                advice = "; ".join(accepted_values("", sorted(known[name]), name) for name in exclusion.values)
                self._report(layers, "unused-exclude", "this entry excludes nothing", span, advice)


def expand(
    engines: Sequence[str], axes: Sequence[Axis], exclusions: Sequence[Exclusion]
) -> Iterator[tuple[str, tuple[Choice, ...]]]:
    """Yield every combination (engine, one choice of each axis) that is not excluded; the last axis varies fastest."""
    names = [axis.name for axis in axes]
    for engine in engines:
        for choices in product(*(axis.choices for axis in axes)):
            if not exclusions or not _is_excluded(engine, dict(zip(names, choices, strict=True)), exclusions):
                yield engine, choices


def _is_excluded(engine: str, chosen: Mapping[str, Choice], exclusions: Sequence[Exclusion]) -> bool:
    excluded = False
    for exclusion in exclusions:
        if all(_speaks_of(name, values, engine, chosen) for name, values in exclusion.values.items()):
            exclusion.used = excluded = True
    return excluded


def _speaks_of(name: str, values: Sequence[Any], engine: str, chosen: Mapping[str, Choice]) -> bool:
    if name == ENGINE:
        return engine in values
    return name in chosen and any(chosen[name].matches(value) for value in values)


def axis_fields() -> list[str]:
    """Return the dotted names of all fields that can be an axis with a list of values."""
    names = []

    def walk(schema: Mapping[str, Any], prefix: str, depth: int) -> None:
        for name, part in schema.get("properties", {}).items():
            if "$ref" in part:
                part = field_schema(part["$ref"].rsplit("/", 1)[-1])
            if part.get("type") in ("string", "integer", "number", "boolean"):
                names.append(prefix + name)
            if depth < 2:
                walk(part, f"{prefix}{name}.", depth + 1)

    walk(field_schema("variant"), "", 0)
    return [name for name in names if name not in _TEXT_FIELDS]


def _nest(path: list[str], value: Any, key_span: Span, value_span: Span) -> Map:
    """Return `{a: {b: value}}` for the path a.b, marked as if it had been written where the axis was."""
    outer = Map(key_span)
    outer.keys_at[path[0]] = key_span
    outer.values_at[path[0]] = value_span
    if len(path) == 1:
        outer[path[0]] = value
    else:
        outer[path[0]] = _nest(path[1:], value, key_span, value_span)
    return outer
