"""Progress: a live display for a person, a few lines for a log."""

from __future__ import annotations

import io
import os
import pty
import re
import threading

import pytest

from specrunner.events import QuestionsAnswered, SessionEnded, SessionReady, SessionStarted
from specrunner.reporters.console import fit_cells
from specrunner.reporters.progress import LineProgress, LiveProgress, format_clock, make_progress
from specrunner.reporters.style import PLAIN
from tests.reporters.builders import make_all_verdicts, make_events, make_result


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_log_gets_a_line_for_each_session() -> None:
    stream = io.StringIO()
    progress = LineProgress(stream)
    for event in [*make_events(make_all_verdicts()), SessionEnded("x", "hf glass", "killed by\nsignal 9")]:
        progress.handle(event)
    assert stream.getvalue() == (
        "6 cases in 1 session with 1 request\n"
        "starting hf glass-0.8m bfloat16 cpu (1 request)\n"
        "   ready hf glass-0.8m bfloat16 cpu in 1.50 s\n"
        "    lost hf glass (killed by\\nsignal 9)\n"
    )


@pytest.mark.parametrize(
    ("stream", "environment", "kind"),
    [
        (Terminal(), {}, LiveProgress),
        (Terminal(), {"CI": "false"}, LiveProgress),
        (Terminal(), {"CI": "true"}, LineProgress),
        (Terminal(), {"TERM": "dumb"}, LineProgress),
        (io.StringIO(), {}, LineProgress),
    ],
)
def test_only_a_person_at_a_terminal_gets_the_live_display(
    stream: io.StringIO, environment: dict[str, str], kind: type
) -> None:
    assert type(make_progress(stream, PLAIN, environment)) is kind


def test_the_live_display_tells_counts_and_sessions_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    progress = LiveProgress(stream, PLAIN)
    *events, ended, finished = make_events(make_all_verdicts())
    for event in events:
        progress.handle(event)
    with progress.paused():
        stream.write("a result\n")
    assert re.search(
        r"6/6 ━+ 100%  0:00  1 failed  1 error  1 xpassed  1 passed  1 xfailed  1 skipped\n"
        r"  hf glass-0\.8m bfloat16 cpu  1/1 request$",
        stream.getvalue(),
    )
    progress.handle(ended)
    progress.handle(finished)
    assert stream.getvalue().endswith("\r\x1b[2K\x1b[1A\x1b[2K")
    assert not [thread for thread in threading.enumerate() if thread.name == "specrunner-progress"]


def test_a_loading_session_shows_a_clock() -> None:
    stream = Terminal()
    progress = LiveProgress(stream, PLAIN)
    for event in make_events([make_result()])[:2]:
        progress.handle(event)
    with progress.paused():
        pass
    progress.close()
    assert "  hf glass-0.8m bfloat16 cpu  loading, 0:00" in stream.getvalue()


@pytest.mark.parametrize("columns", [20, 40, 60, 200])
def test_no_line_is_wider_than_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = Terminal()
    progress = LiveProgress(stream, PLAIN)
    for event in make_events(make_all_verdicts())[:-2]:
        progress.handle(event)
    with progress.paused():
        pass
    progress.close()
    lines = re.split(r"\r|\n|\x1b\[\w+", stream.getvalue())
    assert max(map(len, lines)) < max(columns, 22)


def test_the_width_is_the_terminals_own() -> None:
    import fcntl
    import struct
    import termios

    from specrunner.reporters.console import Console

    parent, child = pty.openpty()
    try:
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 61, 0, 0))
        with open(child, "w", closefd=False) as stream:
            assert Console(stream).width == 61
    finally:
        os.close(parent)
        os.close(child)


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [
        ("abc", 3, "abc"),
        ("abcd", 3, "ab…"),
        ("你好", 4, "你好"),
        ("你好吗", 4, "你…"),
        ("e\u0301te\u0301", 3, "e\u0301te\u0301"),
        ("", 0, ""),
    ],
)
def test_text_is_cut_to_cells(text: str, width: int, shown: str) -> None:
    assert fit_cells(text, width) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(7, "0:07"), (754.9, "12:34"), (3723, "1:02:03")])
def test_the_clock(seconds: float, shown: str) -> None:
    assert format_clock(seconds) == shown


def test_a_benchmark_tells_questions_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    clock = [100.0]
    monkeypatch.setattr("specrunner.reporters.progress.time.monotonic", lambda: clock[0])
    log, terminal = io.StringIO(), Terminal()
    lines, live = LineProgress(log), LiveProgress(terminal, PLAIN)
    started, asking, ready, *_ = make_events(make_all_verdicts())
    assert isinstance(asking, SessionStarted) and isinstance(ready, SessionReady)
    for event in (started, asking, ready):
        lines.handle(event)
        live.handle(event)
    before = log.getvalue()
    for seconds, done in ((0, 0), (20, 32), (80, 128), (90, 160), (150, 224)):
        clock[0] = 100.0 + seconds
        for progress in (lines, live):
            progress.handle(QuestionsAnswered(asking.session, "r", done, 400))
    told = log.getvalue().removeprefix(before)
    assert told == (
        "answered hf glass-0.8m bfloat16 cpu 128/400 questions, 1.6/s, 2:50 left\n"
        "answered hf glass-0.8m bfloat16 cpu 224/400 questions, 1.5/s, 1:57 left\n"
    )
    with live.paused():
        pass
    assert "224/400 questions, 1.5/s, 1:57 left" in terminal.getvalue()
    live.close()
