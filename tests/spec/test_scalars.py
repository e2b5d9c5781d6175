"""Plain scalars: YAML 1.2's core schema."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specrunner.spec.scalars import MAX_DIGITS, resolve_plain, resolve_tagged

EXPECTED: list[tuple[str, Any]] = [
    *((word, None) for word in ("", "~", "null", "Null", "NULL")),
    *((word, True) for word in ("true", "True", "TRUE")),
    *((word, False) for word in ("false", "False", "FALSE")),
    ("1e-3", 0.001),
    ("1E3", 1000.0),
    ("1.5", 1.5),
    ("-.5", -0.5),
    ("1.", 1.0),
    ("+1.5e+2", 150.0),
    ("0", 0),
    ("-0", 0),
    ("+12", 12),
    ("017", 17),
    ("0o17", 15),
    ("0x1F", 31),
    ("1e400", math.inf),
    (".inf", math.inf),
    ("-.INF", -math.inf),
]


@pytest.mark.parametrize(("text", "value"), EXPECTED)
def test_core_schema(text: str, value: Any) -> None:
    found = resolve_plain(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", [".nan", ".NaN", ".NAN"])
def test_not_a_number(text: str) -> None:
    found = resolve_plain(text)
    assert isinstance(found, float)
    assert math.isnan(found)


@pytest.mark.parametrize(
    "text",
    [
        "on",
        "off",
        "yes",
        "no",
        "y",
        "n",
        "12:30:00",
        "1_000",
        "0b1",
        "0o8",
        "0xG",
        "1e",
        "e3",
        ".",
        "-",
        "+",
        "1.2.3",
        "2001-01-01",
        "nUll",
        "tRue",
        "-0x1F",
        "inf",
        "nan",
        "- 1",
        "1 ",
        "０",
        "٣",
        "<<",
        "=",
    ],
)
def test_everything_else_is_text(text: str) -> None:
    assert resolve_plain(text) == text


@given(st.integers())
def test_integers_round_trip(value: int) -> None:
    assert resolve_plain(str(value)) == value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_round_trip(value: float) -> None:
    found = resolve_plain(repr(value))
    assert isinstance(found, float)
    assert found == value


@given(st.text(min_size=1))
def test_only_the_core_schema_is_ever_more_than_text(text: str) -> None:
    found = resolve_plain(text)
    number = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|0o[0-7]+|0x[0-9a-fA-F]+|[-+]?\.(inf|Inf|INF)"
    word = r"~|null|Null|NULL|true|True|TRUE|false|False|FALSE|\.(nan|NaN|NAN)"
    assert (found == text) == (re.fullmatch(f"{number}|{word}", text) is None)


def test_a_number_that_is_too_long_is_refused() -> None:
    assert resolve_plain("9" * MAX_DIGITS) == int("9" * MAX_DIGITS)
    with pytest.raises(ValueError, match="401 characters"):
        resolve_plain("9" * (MAX_DIGITS + 1))


@pytest.mark.parametrize(
    ("text", "tag", "value"), [("12", "str", "12"), ("12", "int", 12), ("12", "float", 12.0), ("~", "null", None)]
)
def test_core_tags(text: str, tag: str, value: Any) -> None:
    found = resolve_tagged(text, f"tag:yaml.org,2002:{tag}")
    assert found == value
    assert type(found) is type(value)


def test_the_bare_tag_means_text() -> None:
    assert resolve_tagged("12", "!") == "12"


@pytest.mark.parametrize(
    ("text", "tag"), [("x", "int"), ("1", "bool"), ("1.5", "int"), ("1", "timestamp"), ("1", "map")]
)
def test_wrong_tags_are_refused(text: str, tag: str) -> None:
    with pytest.raises(ValueError, match=f"`{text}` is no"):
        resolve_tagged(text, f"tag:yaml.org,2002:{tag}")
