"""Counts, guesses and escapes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specrunner.words import (
    count_cells,
    describe_exit,
    did_you_mean,
    escape_character,
    escape_controls,
    plural,
    suggest,
)


@pytest.mark.parametrize(("count", "shown"), [(0, "0 cases"), (1, "1 case"), (2, "2 cases"), (5000, "5,000 cases")])
def test_plural(count: int, shown: str) -> None:
    assert plural(count, "case") == shown


@pytest.mark.parametrize(
    ("status", "said"),
    [(0, "exited with status 0"), (3, "exited with status 3"), (-9, "was killed by SIGKILL")]
    + [(-number, f"was killed by signal {number}") for number in (40, 63)],
)
def test_an_end_has_its_status_or_its_signal(status: int, said: str) -> None:
    assert describe_exit(status) == said


@pytest.mark.parametrize(
    ("text", "cells"),
    [("", 0), ("ab", 2), ("é", 1), ("e\u0301", 1), ("語", 2), ("\U0001f469\u200d\U0001f52c", 4), ("\u20dd", 0)],
)
def test_cells_of_a_terminal(text: str, cells: int) -> None:
    assert count_cells(text) == cells


def test_plural_takes_an_irregular_form() -> None:
    assert [plural(count, "entry", "entries") for count in (1, 2)] == ["1 entry", "2 entries"]


def test_suggestions() -> None:
    assert suggest("promt", ["prompt", "tokens"]) == "prompt"
    assert suggest("DType", ["dtype"]) == "dtype"
    assert suggest("zzz", ["dtype"]) is None
    assert suggest("promt", ["prompt"], cutoff=0.95) is None
    assert suggest("abcd", ["abxy"], cutoff=0.5) == "abxy"
    assert suggest("abcd", ["abxy"]) is None, "half alike is not near"
    assert suggest("abcde", ["abcxy"]) == "abcxy", "six tenths are"


def test_nothing_is_suggested_where_it_would_take_long() -> None:
    assert suggest("p" * 101, ["p" * 100]) is None
    assert suggest("p" * 100, ["p" * 99]) == "p" * 99
    many = [f"prompt{number}" for number in range(256)]
    assert suggest("promt1", many) == "prompt1"
    assert suggest("promt1", [*many, "other"]) is None
    assert suggest("promt1", [*many, "other"], most=257) == "prompt1"


def test_help_asks_for_what_was_meant() -> None:
    assert did_you_mean("promt", ["prompt", "tokens"]) == "did you mean `prompt`?"
    assert did_you_mean("zzz", ["prompt"]) is None


def test_controls_are_escaped() -> None:
    assert escape_controls("a\x00\x1b\u2028\ud800\U000e0001b") == "a\\x00\\x1b\\u2028\\ud800\\U000e0001b"


@pytest.mark.parametrize(
    ("code", "shown"), [(0, "x00"), (0xFF, "xff"), (0x100, "u0100"), (0xFFFF, "uffff"), (0x10000, "U00010000")]
)
def test_an_escape_is_as_long_as_python_writes_it(code: int, shown: str) -> None:
    assert escape_character(chr(code)) == f"\\{shown}"


@given(st.text(st.characters()))
def test_escapes_can_be_read_back(text: str) -> None:
    shown = escape_controls(text)
    assert shown.isprintable()
    assert shown == text or "\\" in shown
    if "\\" not in text:
        plain = shown.encode("ascii", "backslashreplace").decode("ascii")
        assert plain.encode("ascii").decode("unicode_escape") == text
