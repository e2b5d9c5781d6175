"""Progress on standard error while a run lasts: a live display on a terminal, a few lines anywhere else."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TextIO

from specrunner.config import is_ci
from specrunner.events import (
    CaseFinished,
    Event,
    QuestionsAnswered,
    RequestFinished,
    RunFinished,
    RunStarted,
    SessionEnded,
    SessionReady,
    SessionStarted,
)
from specrunner.reporters.console import Console, fit_cells
from specrunner.reporters.escape import escape_line
from specrunner.reporters.style import VERDICT_STYLES, Palette, is_terminal
from specrunner.reporters.wording import describe_counts, format_seconds
from specrunner.results import Verdict
from specrunner.words import plural

_MOST_SESSIONS = 4
_REFRESH_SECONDS = 0.2
_BAR_CELLS = 30
_LEAST_BAR_CELLS = 6
_SECONDS_BETWEEN_COUNTS = 60.0


class Progress:
    """Shows nothing; the base of what does."""

    def handle(self, event: Event) -> None:
        """Take one event in."""

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the terminal to somebody else for a moment."""
        yield

    def close(self) -> None:
        """Leave the terminal for good."""


def make_progress(stream: TextIO, palette: Palette, environment: Mapping[str, str] = os.environ) -> Progress:
    """Return a live display when `stream` is a terminal that a person watches, else sparse lines."""
    if is_terminal(stream) and not is_ci(environment) and environment.get("TERM") != "dumb":
        return LiveProgress(stream, palette)
    return LineProgress(stream)


class LineProgress(Progress):
    """One line for every session that starts, is ready or is lost: enough to see in a log where the time went.

    A benchmark has a line a minute.
    """

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(stream)
        self._labels: dict[str, str] = {}
        self._asked: dict[str, tuple[float, float]] = {}
        """By session, when its benchmark's first question was asked, and when a line last told how far it is."""

    def handle(self, event: Event) -> None:
        """Print a line for what a reader of a log would miss."""
        match event:
            case RunStarted():
                self._console.print(_describe_plan(event))
            case SessionStarted():
                self._labels[event.session] = event.label
                self._say("starting", event.label, f"({plural(event.requests, 'request')})")
            case QuestionsAnswered() if event.session in self._labels:
                self._count(event)
            case SessionReady():
                self._say("ready", event.label, f"in {format_seconds(event.seconds)}")
            case SessionEnded(reason=reason) if reason:
                self._say("lost", event.label, f"({escape_line(reason)})")

    def _count(self, event: QuestionsAnswered) -> None:
        now = time.monotonic()
        began, told = self._asked.get(event.session, (now, now)) if event.done else (now, now)
        if now - told >= _SECONDS_BETWEEN_COUNTS:
            told = now
            rest = describe_questions((event.done, event.total), now - began).removeprefix(", ")
            self._say("answered", self._labels[event.session], rest)
        self._asked[event.session] = began, told

    def _say(self, word: str, label: str, rest: str) -> None:
        self._console.print(f"{word:>8} {escape_line(label)} {rest}")


@dataclass(slots=True)
class _Live:
    label: str
    requests: int
    since: float
    ready: bool = False
    done: int = 0
    questions: tuple[int, int] | None = None
    asked_since: float = 0.0


class LiveProgress(Progress):
    """A bar, the verdicts so far, and what every session is doing, redrawn in place.

    A thread redraws it a few times a second, so that the clock goes on while an engine loads. Everything that is
    printed elsewhere on the same terminal must be printed inside `paused`.
    """

    def __init__(self, stream: TextIO, palette: Palette) -> None:
        self._console = Console(stream)
        self._palette = palette
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._drawn = 0
        self._total = 0
        self._counts = dict.fromkeys(Verdict, 0)
        self._sessions: dict[str, _Live] = {}
        self._began = time.monotonic()
        self._bar = "━─" if self._console.can_show("━─") else "#-"

    def handle(self, event: Event) -> None:
        """Take one event in; the thread draws it."""
        if isinstance(event, RunFinished):
            self.close()
            return
        with self._lock:
            now = time.monotonic()
            match event:
                case RunStarted():
                    self._total = len(event.plan.cases)
                    self._began = now
                    self._start()
                case SessionStarted():
                    self._sessions[event.session] = _Live(escape_line(event.label), event.requests, now)
                case SessionReady() if event.session in self._sessions:
                    self._sessions[event.session].ready = True
                case RequestFinished() if event.session in self._sessions:
                    self._sessions[event.session].done += 1
                    self._sessions[event.session].questions = None
                case QuestionsAnswered() if event.session in self._sessions:
                    live = self._sessions[event.session]
                    live.asked_since = now if event.done == 0 else live.asked_since
                    live.questions = event.done, event.total
                case SessionEnded():
                    self._sessions.pop(event.session, None)
                case CaseFinished():
                    self._counts[event.result.verdict] += 1

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Erase the display, and draw it again afterwards."""
        with self._lock:
            running = self._thread is not None
            self._erase()
            try:
                yield
            finally:
                if running:
                    self._draw()

    def close(self) -> None:
        """Stop the thread and erase the display."""
        thread, self._thread = self._thread, None
        self._stop.set()
        with self._lock:
            self._erase()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=0.5)

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._keep_drawing, name="specrunner-progress", daemon=True)
        self._thread.start()
        self._draw()

    def _keep_drawing(self) -> None:
        while not self._stop.wait(_REFRESH_SECONDS):
            with self._lock:
                if self._thread is not None:
                    self._erase()
                    self._draw()

    def _erase(self) -> None:
        if self._drawn:
            self._console.write("\r\x1b[2K" + "\x1b[1A\x1b[2K" * (self._drawn - 1))
            self._drawn = 0

    def _draw(self) -> None:
        lines = self._render(max(self._console.width - 1, 20), time.monotonic())
        self._console.write("\n".join(lines))
        self._drawn = len(lines)

    def _render(self, width: int, now: float) -> list[str]:
        lines = [self._render_bar(width, now)]
        for session in list(self._sessions.values())[:_MOST_SESSIONS]:
            doing = (
                f"{session.done}/{plural(session.requests, 'request')}"
                if session.ready
                else f"loading, {format_clock(now - session.since)}"
            )
            doing += describe_questions(session.questions, now - session.asked_since)
            lines.append(self._palette.paint(fit_cells(f"  {session.label}  {doing}", width), "dim"))
        if len(self._sessions) > _MOST_SESSIONS:
            lines.append(f"  and {plural(len(self._sessions) - _MOST_SESSIONS, 'more session', 'more sessions')}")
        return lines

    def _render_bar(self, width: int, now: float) -> str:
        """Return done and total, the bar as wide as there is room for, the clock and the verdicts."""
        done = sum(self._counts.values())
        share = done / self._total if self._total else 0.0
        head = f"{done}/{self._total} "
        tail = f" {share:4.0%}  {format_clock(now - self._began)}"
        words = describe_counts(self._counts)
        counts = "".join(f"  {word}" for _, word in words)
        cells = min(_BAR_CELLS, width - len(head) - len(tail) - len(counts))
        if cells < _LEAST_BAR_CELLS:
            return fit_cells(head + tail + counts, width)
        filled = round(cells * share)
        painted = "".join("  " + self._palette.paint(word, VERDICT_STYLES[verdict]) for verdict, word in words)
        bar = self._palette.paint(self._bar[0] * filled, "bad" if self._is_bad() else "good")
        return head + bar + self._palette.paint(self._bar[1] * (cells - filled), "dim") + tail + painted

    def _is_bad(self) -> bool:
        return bool(self._counts[Verdict.FAILED] or self._counts[Verdict.ERROR] or self._counts[Verdict.XPASSED])


def describe_questions(questions: tuple[int, int] | None, seconds: float) -> str:
    """Return `, 120/400 questions, 3.2/s, 1:27 left` of a benchmark that has run for `seconds`, or ""."""
    if questions is None:
        return ""
    done, total = questions
    if not done or seconds <= 0:
        return f", {done}/{plural(total, 'question')}"
    rate = done / seconds
    return f", {done}/{plural(total, 'question')}, {rate:.2g}/s, {format_clock((total - done) / rate)} left"


def format_clock(seconds: float) -> str:
    """Return `0:07`, `12:34` or `1:02:03`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _describe_plan(event: RunStarted) -> str:
    sessions = len(event.plan.sessions)
    requests = sum(len(session.requests) for session in event.plan.sessions)
    cases = plural(len(event.plan.cases), "case")
    return f"{cases} in {plural(sessions, 'session')} with {plural(requests, 'request')}"
