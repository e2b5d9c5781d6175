"""Values as one line of YAML, as an advice quotes them: short, whatever was written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from specrunner.spec.scalars import resolve_plain

LONGEST_SCALAR = 60
"""Characters of a single value that are shown."""
_LONGEST_EXAMPLE = 200
"""Characters of a mapping or a list that are shown."""
_PLAIN = re.compile(r"[A-Za-z0-9_./+][^\x00-\x1f{}\[\],:#]*(?<! )")
"""Text that needs no quotes, unless it would be read as a number or the like."""


def inline(value: Any) -> str:
    """Return a value as it is written in one line of YAML; `…` is what nobody wrote, or would read."""
    text = ""
    for piece in _pieces(value):
        text += piece
        if len(text) > _LONGEST_EXAMPLE:
            return "…"
    return text


def _pieces(value: Any) -> Iterator[str]:
    if not isinstance(value, dict | list):
        yield _inline_scalar(value)
        return
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    yield opening
    for index, item in enumerate(value):
        yield ", " if index else ""
        if isinstance(value, dict):
            yield _inline_scalar(item) + ": "
            item = value[item]
        yield from _pieces(item)
    yield closing


def _inline_scalar(value: Any) -> str:
    text = str(value)
    if value is None or len(text) > LONGEST_SCALAR:
        return "…"
    if isinstance(value, str):
        is_plain = _PLAIN.fullmatch(text) and isinstance(unquote(text), str)
        return text if is_plain else json.dumps(text, ensure_ascii=False)
    return text.lower() if isinstance(value, bool) else text


def unquote(text: str) -> Any:
    """Return what a text would be without its quotes."""
    try:
        return resolve_plain(text)
    except ValueError:
        return text
