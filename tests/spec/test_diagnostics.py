"""How diagnostics are printed, sorted and worded."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specrunner.spec.diagnostics import (
    MAX_LINE,
    Diagnostic,
    print_diagnostics,
    sort_diagnostics,
)
from specrunner.spec.model import Location
from specrunner.words import count_cells


def make(line: str = "promt: hi", column: int = 1, width: int = 5, path: str = "a.yaml", number: int = 3) -> Diagnostic:
    return Diagnostic(
        "unknown-key", "unknown key `promt`", Location(path, number, column), line, width, "did you mean?"
    )


def test_a_diagnostic_reads_as_the_design_says() -> None:
    assert make().render().splitlines() == [
        "error[unknown-key]: unknown key `promt`",
        " --> a.yaml:3:1",
        "  |",
        "3 | promt: hi",
        "  | ^^^^^",
        "  = help: did you mean?",
    ]


def test_notes_come_before_the_help() -> None:
    diagnostic = Diagnostic("x", "y", Location("a", 1, 1), notes=("one", "two"), help="three")
    assert diagnostic.render().splitlines()[2:] == ["  = note: one", "  = note: two", "  = help: three"]


def test_color_changes_nothing_but_color() -> None:
    import re

    colored = make().render(color=True)
    assert "\x1b[" in colored
    assert re.sub(r"\x1b\[[0-9;]*m", "", colored) == make().render()


def shown(line: str, column: int, width: int) -> tuple[str, str]:
    """Return the source line and the caret line of a rendered diagnostic."""
    lines = make(line, column, width).render().split("\n")
    return lines[3].removeprefix("3 | "), lines[4].removeprefix("  | ")


@pytest.mark.parametrize(
    ("line", "column", "width", "source", "carets"),
    [
        ("abc", 2, 1, "abc", " ^"),
        ("日本: x", 1, 2, "日本: x", "^^^^"),
        ("日本: x", 5, 1, "日本: x", "      ^"),
        ("e\u0301: x", 5, 1, "e\u0301: x", "   ^"),
        ("e\u0301: x", 2, 1, "e\u0301: x", " ^"),
        ("\tab", 2, 2, "    ab", "    ^^"),
        ("a\tb", 3, 1, "a   b", "    ^"),
        ("a\x07b", 3, 1, "a\\x07b", "     ^"),
        ("a\x1b[31mb", 2, 1, "a\\x1b[31mb", " ^^^^"),
        ("abc", 4, 1, "abc", "   ^"),
        ("abc", 3, 50, "abc", "  ^"),
        ("\u202eabc", 2, 3, "\\u202eabc", "      ^^^"),
    ],
)
def test_carets_stand_under_the_culprit(line: str, column: int, width: int, source: str, carets: str) -> None:
    assert shown(line, column, width) == (source, carets)


@given(st.text(st.characters(exclude_characters="\n\r"), max_size=400), st.data())
def test_carets_never_leave_the_line(line: str, data: st.DataObject) -> None:
    column = data.draw(st.integers(1, len(line) + 1))
    text = make(line, column, data.draw(st.integers(1, 500))).render()
    assert text.replace("\n", "").isprintable()
    if line.strip():
        source, carets = text.split("\n")[3:5]
        assert "^" in carets
        assert count_cells(carets) <= count_cells(source) + MAX_LINE  # trailing blanks are not printed


def test_a_long_line_is_cut_around_the_culprit() -> None:
    source, carets = shown("x" * 500 + "HERE" + "y" * 500, 501, 4)
    assert len(source) <= MAX_LINE + 2
    assert source[carets.index("^") : carets.rindex("^") + 1] == "HERE"


def test_diagnostics_are_sorted_by_file_line_and_column_and_each_told_once() -> None:
    late, early, other = make(number=9), make(number=2), make(path="b.yaml", number=1)
    assert sort_diagnostics([late, other, early, late]) == (early, late, other)


def test_printing_ends_with_a_count() -> None:
    stream = io.StringIO()
    print_diagnostics([make(), make(path="b.yaml")], stream)
    assert stream.getvalue().endswith("did you mean?\n\n2 problems in 2 files\n")
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize(("length", "shown"), [(1000, "x" * 1000), (1001, f"{'x' * 500} … {'x' * 500}")])
def test_a_long_message_is_cut_in_the_middle(length: int, shown: str) -> None:
    found = Diagnostic("code", "x" * length, Location("a.yaml", 1, 1), help="y" * length, notes=("z" * length,))
    assert found.render().splitlines() == [
        f"error[code]: {shown}",
        " --> a.yaml:1:1",
        f"  = note: {shown.replace('x', 'z')}",
        f"  = help: {shown.replace('x', 'y')}",
    ]
