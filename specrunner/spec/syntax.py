"""Defects of a YAML text itself, and what libyaml's messages about them mean for the reader."""

from __future__ import annotations

from dataclasses import dataclass

import yaml

Span = tuple[int, int]
"""Character offsets into the text: from, to (exclusive)."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A defect of the text itself, before anything is known of its meaning."""

    code: str
    message: str
    span: Span
    help: str | None = None
    related: tuple[str, Span] | None = None
    """A note and the place it speaks of."""


_MEANINGS = (
    (
        "mapping values are not allowed",
        "`: ` cannot stand inside a plain value",
        "quote the value, or check the indentation",
    ),
    (
        "did not find expected alphabetic or numeric character",
        "`*` and `&` begin an alias and an anchor",
        'quote a pattern: `"*.output"`',
    ),
    ("cannot start any token", "a plain value cannot begin with this character", "quote the value"),
    (
        "did not find expected key",
        "a key was expected here",
        "check the indentation, and quote values that begin or end with quotes",
    ),
    (
        "did not find expected '-' indicator",
        "a list item was expected here",
        "align the items of a list under each other",
    ),
    (
        "expected ',' or ']'",
        "a list in brackets is not closed",
        "separate the items by `, ` and close the list with `]`",
    ),
    (
        "expected ',' or '}'",
        "a mapping in braces is not closed",
        "separate the entries by `, ` and close the mapping with `}`",
    ),
    ("could not find expected ':'", "a key lacks its colon", "write `key: value`, with a space after the colon"),
    (
        "invalid Unicode character escape",
        "an escape that stands for no character",
        "write a character beyond U+FFFF as itself, or as one escape such as `\\U0001F999`",
    ),
    (
        "unknown escape character",
        "an unknown escape in a double-quoted text",
        "double the backslash, or use single quotes",
    ),
)


def explain_syntax(error: yaml.YAMLError, text: str) -> Problem:
    """Say what libyaml's message means for the reader."""
    opening = getattr(error, "context_mark", None)
    mark = getattr(error, "problem_mark", None) or opening
    raw = str(getattr(error, "problem", None) or error)
    if "found unexpected end of stream" in raw and opening is not None:
        return Problem(
            "yaml-syntax", "a quoted text is not closed", (opening.index, opening.index + 1), "add the quote"
        )
    at = min(mark.index, len(text)) if mark is not None else 0
    related = None
    if opening is not None and mark is not None and opening.line != mark.line:
        related = (str(error.context), (opening.index, opening.index + 1))  # type: ignore[attr-defined]
    if text[at : at + 1] == "\t":
        return Problem("yaml-syntax", "a tab cannot indent", (at, at + 1), "indent with spaces", related)
    for part, message, advice in _MEANINGS:
        if part in raw:
            return Problem("yaml-syntax", message, (at, at + 1), advice, related)
    return Problem("yaml-syntax", raw, (at, at + 1), "check indentation, brackets and quotes around here", related)
