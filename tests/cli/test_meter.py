import io
from types import SimpleNamespace

import pytest

from specrunner.cli import meter
from specrunner.cli.meter import Meter
from tests.waiting import wait_for


@pytest.fixture(autouse=True)
def stopped_clock(monkeypatch):
    monkeypatch.setattr(meter, "time", SimpleNamespace(monotonic=lambda: 7.0))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_lines_are_few(monkeypatch):
    stream = io.StringIO()
    with Meter("toy", stream, {}) as shown:
        for done in range(100):
            shown.show(done, 100, f"collecting package-{done}")
        monkeypatch.setattr(meter, "SPARSE_SECONDS", 0.0)
        shown.show(100, 100, "importing toy")
    assert stream.getvalue().splitlines() == [
        "toy: 0/100 packages, 0:00, collecting package-0",
        "toy: 100/100 packages, 0:00, importing toy",
        "toy: done in 0:00",
    ]


def test_what_has_nothing_to_do_says_nothing():
    stream = io.StringIO()
    with Meter("toy", stream, {}):
        pass
    assert stream.getvalue() == ""


def test_a_terminal_gets_one_line_that_is_redrawn():
    stream = Terminal()
    with Meter("toy", stream, {"TERM": "xterm"}) as shown:
        shown.show(3, 100, "unpacking " + "x" * 200)
        wait_for(stream.getvalue, "the line is drawn")
    drawn = [line for line in stream.getvalue().split("\r\x1b[2K") if line]
    assert drawn
    assert all("\n" not in line and len(line) <= 79 for line in drawn)
    assert drawn[0].startswith("toy: 3/100 packages, 0:00, unpacking x")
    assert stream.getvalue().endswith("\r\x1b[2K"), "nothing stays behind"


def test_a_terminal_in_ci_is_none():
    stream = Terminal()
    with Meter("toy", stream, {"TERM": "xterm", "CI": "true"}) as shown:
        shown.show(0, 1, "collecting")
    assert "\x1b" not in stream.getvalue()
