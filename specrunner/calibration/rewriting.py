"""Writing numbers into a spec: only the number changes, comments and layout stay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from specrunner.files import cannot_write, write_atomically
from specrunner.spec.model import Location
from specrunner.spec.source import Source, read_source
from specrunner.spec.syntax import Span
from specrunner.spec.tree import Map, Seq


def write_limits(limits: Mapping[tuple[Location, str, str, str], float]) -> dict[str, int]:
    """Write limits into the files that state them.

    Args:
        limits: by (tolerance entry, pattern, rule, parameter), the new number.

    Returns:
        How many numbers were written, by file. An entry whose number is not written out there is left alone.

    Raises:
        ConfigurationError: a file cannot be written; it is as it was.
    """
    written: dict[str, int] = {}
    for path in dict.fromkeys(location.path for location, *_ in limits):
        source = read_source(path)
        edits: dict[Span, str] = {}
        for (location, pattern, rule, parameter), value in limits.items():
            span = find_number(source, location, pattern, rule, parameter) if location.path == path else None
            if span is not None:
                edits[span] = format_limit(value)
        try:
            write_atomically(Path(path), replace_spans(source.text, edits).encode())
        except OSError as error:
            raise cannot_write(Path(path), "limits", error) from error
        written[path] = len(edits)
    return written


def find_number(source: Source, location: Location, pattern: str, rule: str, parameter: str) -> Span | None:
    """Return where a limit's number stands, or None where the entry leaves it to a default or to a matrix."""
    for found in _maps(source.root):
        key = found.keys_at.get(pattern)
        if key is None:
            continue
        place = source.locate(key[0])
        if (place.line, place.column) != (location.line, location.column):
            continue
        rules = found[pattern]
        if not isinstance(rules, Map) or rule not in rules:
            return None
        parameters = rules[rule]
        if isinstance(parameters, Map):
            return parameters.values_at.get(parameter)
        return rules.values_at[rule]
    return None


def replace_spans(text: str, edits: Mapping[Span, str]) -> str:
    """Return a text in which spans that do not overlap are replaced."""
    for (start, end), new in sorted(edits.items(), reverse=True):
        text = text[:start] + new + text[end:]
    return text


def format_limit(value: float) -> str:
    """Return a number as specs write it: `41`, `0.985`, `3.2e-4`."""
    text = f"{value:.12g}"
    if "e" in text:
        mantissa, _, exponent = text.partition("e")
        return f"{mantissa}e{int(exponent)}"
    return text


def _maps(value: Any) -> Iterator[Map]:
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, Map):
            yield found
            waiting += found.values()
        elif isinstance(found, Seq):
            waiting += found
