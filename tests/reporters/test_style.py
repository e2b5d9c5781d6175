"""When colour is used."""

from __future__ import annotations

import io

import pytest

from specrunner.reporters.style import Palette, wants_color


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("mode", "terminal", "environment", "expected"),
    [
        ("auto", True, {}, True),
        ("auto", False, {}, False),
        ("auto", True, {"TERM": "dumb"}, False),
        ("auto", True, {"NO_COLOR": "1"}, False),
        ("auto", True, {"NO_COLOR": ""}, True),
        ("auto", False, {"FORCE_COLOR": "1"}, True),
        ("auto", False, {"FORCE_COLOR": "0"}, False),
        ("auto", False, {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ("always", False, {"NO_COLOR": "1"}, True),
        ("never", True, {"FORCE_COLOR": "1"}, False),
    ],
)
def test_colour(mode: str, terminal: bool, environment: dict[str, str], expected: bool) -> None:
    assert wants_color(mode, Terminal() if terminal else io.StringIO(), environment) is expected


def test_a_closed_stream_is_no_terminal() -> None:
    stream = io.StringIO()
    stream.close()
    assert wants_color("auto", stream, {}) is False


def test_a_palette_that_is_off_leaves_text_alone() -> None:
    assert Palette(False).paint("x", "bad") == "x"
    assert Palette(True).paint("x", "bad") == "\x1b[31;1mx\x1b[0m"
    assert Palette(True).paint("", "bad") == ""
