"""Plain YAML scalars as values: the core schema of YAML 1.2 (section 10.3.2), not PyYAML's 1.1.

null     `null` `Null` `NULL` `~` and nothing at all
bool     `true` `false`, capitalised or in capitals; `on`, `yes`, `no` are strings
int      `17`, `-3`, `017` (seventeen), `0o17` (fifteen), `0x1F`
float    `1.5`, `1e-3`, `.5`, `1.`, `.inf`, `.nan`
string   everything else, `12:30:00` and `1_000` included
"""

from __future__ import annotations

import re

Scalar = str | int | float | bool | None

_WORDS: dict[str, Scalar] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **{sign + word: float(sign + "inf") for sign in ("", "+", "-") for word in (".inf", ".Inf", ".INF")},
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
_NUMBER = re.compile(
    r"(?P<int>[-+]?[0-9]+)|0o(?P<oct>[0-7]+)|0x(?P<hex>[0-9a-fA-F]+)"
    r"|(?P<float>[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?)"
)
_NUMBER_START = frozenset("+-.0123456789")
_CORE_TAGS = {f"tag:yaml.org,2002:{name}": name for name in ("str", "int", "float", "bool", "null", "map", "seq")}
MAX_DIGITS = 400
"""Characters the longest readable number may have; longer ones are slow to convert and never meant."""


def resolve_plain(text: str) -> Scalar:
    """Return the value of a plain (unquoted) scalar.

    Raises:
        ValueError: a number of more than `MAX_DIGITS` characters.
    """
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in _NUMBER_START:
        return text
    match = _NUMBER.fullmatch(text)
    if match is None:
        return text
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} characters")
    kind = match.lastgroup
    if kind == "int":
        return int(text)
    if kind == "float":
        return float(text)
    return int(match[kind], 8 if kind == "oct" else 16) if kind else text


def resolve_tagged(text: str, tag: str) -> Scalar:
    """Return the value of a scalar with an explicit core tag (`!!str 12` is "12"; `!` alone means a string).

    Raises:
        ValueError: the tag is not of the core schema, or the text is no such value.
    """
    kind = "str" if tag == "!" else _CORE_TAGS.get(tag)
    if kind == "str":
        return text
    value = resolve_plain(text)
    if kind == "float" and type(value) is int:
        return float(value)
    expected = {"int": int, "float": float, "bool": bool, "null": type(None)}.get(kind or "")
    if expected is None or type(value) is not expected:
        raise ValueError(f"`{text}` is no {kind if expected else 'value of the YAML core schema'}")
    return value


def is_core_tag(tag: str, kind: str) -> bool:
    """Tell whether `tag` is the core schema's tag for a collection of `kind` (`map`, `seq`)."""
    return _CORE_TAGS.get(tag) == kind
