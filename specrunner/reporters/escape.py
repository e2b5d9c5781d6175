r"""Foreign text made safe to show: control characters, ANSI codes and lone surrogates as visible escapes.

Prompts, engine output and logs may hold anything. A terminal must not obey it and XML 1.0 cannot carry it, so what is
not printable is shown the way a Python literal would show it: `\x1b`, `\u202e`, `\ud800`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from specrunner.requests import field_names
from specrunner.words import escape_character

_UNSAFE = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls, except tab and line feed
    "\u2028\u2029"  # separators that some readers take for line ends
    "\u202a-\u202e\u2066-\u2069"  # bidirectional overrides: they reorder what is read
    "\ud800-\udfff"  # lone surrogates
    "\ufdd0-\ufdef"  # non-characters, here and at the end of every plane
    + "".join(chr(plane * 0x10000 + last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
    + "]"
)
_BREAKS = re.compile("[\t\n]")
_SURROGATES = re.compile("[\ud800-\udfff]")
_ESCAPED_SURROGATES = re.compile(r"\\ud[89a-f]")


def escape_text(text: str) -> str:
    """Return `text` with everything unprintable as escapes; tabs and line feeds stay."""
    return _UNSAFE.sub(_show, text.replace("\r\n", "\n"))


def escape_line(text: str) -> str:
    r"""Return `text` as one line: like `escape_text`, and tabs and line feeds become `\t` and `\n`."""
    return _BREAKS.sub(_show, _UNSAFE.sub(_show, text))


def disarm(line: str) -> str:
    """Return a line of which no part is a workflow command to a CI that reads our output.

    GitHub's runner takes any line for one that begins with `::`, blanks before it or not, and `##[` wherever it stands;
    ours begin at the first column.
    """
    bare = line.lstrip()
    if bare.startswith("::") and bare != line:
        line = f"{line[: len(line) - len(bare)]}\\x3a{bare[1:]}"
    return line.replace("##[", "#\\x23[")


def escape_json(value: Any) -> Any:
    """Return `value` as something every JSON reader accepts.

    Lone surrogates become escapes, non-finite numbers the strings "nan", "inf" and "-inf", keys strings, dataclasses
    objects, and what JSON has no word for its `str`.
    """
    kind: Any = type(value)
    if kind is str:
        return value if value.isascii() else _SURROGATES.sub(_show, value)
    if kind is float:
        return value if math.isfinite(value) else str(value)
    if kind is int or kind is bool or value is None:
        return value
    if kind is list or kind is tuple:
        return [escape_json(item) for item in value]
    if kind is dict or isinstance(value, Mapping):
        return {
            key if type(key) is str and key.isascii() else escape_json(str(key)): escape_json(item)
            for key, item in value.items()
        }
    names = field_names(kind)
    if names is not None:
        return {name: escape_json(getattr(value, name)) for name in names}
    for plain in (str, int, float):
        if isinstance(value, plain):
            return escape_json(plain(value))
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes | bytearray):
        return [escape_json(item) for item in value]
    return escape_json(str(value))


def encode_json(value: Any) -> str:
    """Return `escape_json(value)` as JSON text, in ASCII; keys are strings or numbers.

    Most values have nothing to escape, and json's own encoder says so in a fraction of the time.
    """
    try:
        text = _ENCODER.encode(value)
    except (TypeError, ValueError):
        text = ""
    if not text or _ESCAPED_SURROGATES.search(text):
        text = json.dumps(escape_json(value), allow_nan=False)
    return text


def _open(value: Any) -> Any:
    """Return what JSON has no word for as `escape_json` would, one level of it."""
    if isinstance(value, Mapping):
        return dict(value)
    kind: Any = type(value)
    names = field_names(kind)
    return escape_json(value) if names is None else {name: getattr(value, name) for name in names}


_ENCODER = json.JSONEncoder(allow_nan=False, default=_open)


def _show(match: re.Match[str]) -> str:
    character = match.group()
    named = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}.get(character)
    return named or escape_character(character)
