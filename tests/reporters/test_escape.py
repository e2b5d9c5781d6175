"""Foreign text is shown, never obeyed."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specrunner.reporters.escape import encode_json, escape_json, escape_line, escape_text
from specrunner.results import Failure, Verdict

ANY_TEXT = st.text(st.characters(exclude_categories=()))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("bell\x07 null\x00 delete\x7f", r"bell\x07 null\x00 delete\x7f"),
        ("a C1 control \x9b31m", r"a C1 control \x9b31m"),
        ("lone \ud800 surrogate", r"lone \ud800 surrogate"),
        ("reordered \u202e text", r"reordered \u202e text"),
        ("non-characters \ufffe \U0001ffff", r"non-characters \ufffe \U0001ffff"),
        ("back\rto the start", r"back\rto the start"),
        ("Grüße, 你好, 🙂, ]]>", "Grüße, 你好, 🙂, ]]>"),
    ],
)
def test_what_cannot_be_shown_becomes_an_escape(text: str, shown: str) -> None:
    assert escape_text(text) == escape_line(text) == shown


def test_line_ends_stay_in_text_and_become_escapes_in_a_line() -> None:
    assert escape_text("a\tb\nc\r\nd") == "a\tb\nc\nd"
    assert escape_line("a\tb\nc\r\nd") == r"a\tb\nc\r\nd"


@given(ANY_TEXT)
def test_escaped_text_survives_xml(text: str) -> None:
    element = ElementTree.Element("a", {"b": escape_line(text)})
    element.text = escape_text(text)
    again = ElementTree.fromstring(ElementTree.tostring(element, encoding="utf-8"))
    assert again.get("b") == escape_line(text)
    assert (again.text or "") == escape_text(text)


@given(ANY_TEXT)
def test_an_escaped_line_is_one_printable_line(text: str) -> None:
    line = escape_line(text)
    assert len(line.splitlines()) <= 1
    assert not any(ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0 for character in line)
    line.encode("utf-8")


def test_json_values_are_what_every_reader_accepts() -> None:
    value = {
        "nan": math.nan,
        "inf": [math.inf, -math.inf],
        1: (True, None, 2, 2.5),
        "bad \ud800": "\udfff",
        "proxy": MappingProxyType({"verdict": Verdict.FAILED}),
        "failure": Failure("kind", "message"),
        "bytes": b"x",
    }
    assert escape_json(value) == {
        "nan": "nan",
        "inf": ["inf", "-inf"],
        "1": [True, None, 2, 2.5],
        "bad \\ud800": "\\udfff",
        "proxy": {"verdict": "failed"},
        "failure": {"kind": "kind", "message": "message", "help": None, "log_tail": "", "role": ""},
        "bytes": "b'x'",
    }


@given(
    st.recursive(
        ANY_TEXT | st.floats() | st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(ANY_TEXT, inner),
        max_leaves=8,
    )
)
def test_json_is_strict_and_utf8(value: object) -> None:
    text = json.dumps(escape_json(value), allow_nan=False, ensure_ascii=False)
    assert json.loads(text.encode("utf-8")) == escape_json(value)


PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), ANY_TEXT, st.binary(), st.sampled_from(Verdict), st.just({1})
)
KEYS = st.one_of(ANY_TEXT, st.integers(), st.floats(allow_nan=False, allow_infinity=False))
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.one_of(
        st.lists(inner),
        st.tuples(inner, inner),
        st.dictionaries(KEYS, inner),
        st.dictionaries(ANY_TEXT, inner).map(MappingProxyType),
        st.builds(Failure, ANY_TEXT, ANY_TEXT, inner),
    ),
    max_leaves=10,
)


@given(VALUES)
def test_the_fast_encoder_says_the_same(value: object) -> None:
    text = encode_json(value)
    assert text == json.dumps(escape_json(value), allow_nan=False)
    assert text.isascii()


def test_what_json_has_no_key_for_is_written_as_text() -> None:
    assert encode_json({("a", 1): math.nan, "kind": Failure}) == json.dumps(
        {"('a', 1)": "nan", "kind": str(Failure)}, allow_nan=False
    )
