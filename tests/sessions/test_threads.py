"""The threads of sessions: what they do when the machine under a session is lost. (What else they do: test_pool.py.)"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from specrunner.errors import CaptureIncomplete, EngineError, WorkerDied
from specrunner.events import SessionEnded
from specrunner.plan.model import PlannedSession
from specrunner.requests import Request, Session
from specrunner.sessions.executor import Answer
from specrunner.sessions.places import Need, Place, Places
from specrunner.sessions.serving import Settle
from specrunner.sessions.threads import MOST_LOSSES, MachineLost, SessionThreads
from specrunner.spec.model import Model, Prompt


class Doomed:
    """A session whose machine is lost over the request for `fig`; it answers the others with an error."""

    alive = True

    def __init__(self, number: int) -> None:
        self.number = number

    def load(self) -> dict[str, Any]:
        """Load nothing."""
        return {}

    def answer(self, request: Request, timeout: float, progress: Callable[[int, int], None], settle: Settle) -> None:
        """Answer, or lose the machine."""
        if request.prompt.text == "fig":
            settle(request, None, 0.0)
            raise MachineLost("the node ant was lost", f"printed by number {self.number}")
        settle(request, WorkerDied("answered"), 0.0)

    def flush(self) -> None:
        """Have nothing due."""

    def end(self, *, at_once: bool) -> None:
        """End nothing."""


class Late:
    """A session that answers `fig` with an error and settles others late; where it is the first, it is lost before."""

    alive = True

    def __init__(self, number: int) -> None:
        self.number = number
        self.due: list[tuple[Request, Settle]] = []

    def load(self) -> dict[str, Any]:
        """Load nothing."""
        return {}

    def answer(self, request: Request, timeout: float, progress: Callable[[int, int], None], settle: Settle) -> None:
        """Answer now or later."""
        if request.prompt.text == "fig":
            settle(request, WorkerDied(f"fig on number {self.number}"), 0.0)
        else:
            self.due.append((request, settle))

    def flush(self) -> None:
        """Settle what is due, or lose the machine."""
        due, self.due = self.due, []
        for request, settle in due:
            settle(request, None if self.number == 1 else CaptureIncomplete("settled"), 0.0)
        if due and self.number == 1:
            raise MachineLost("the node ant was lost")

    def end(self, *, at_once: bool) -> None:
        """End nothing."""


class DoomedThreads(SessionThreads):
    """Sessions whose machines are lost."""

    launched = 0
    kind: type[Doomed | Late] = Doomed

    def _estimate(self, planned: PlannedSession) -> Need:
        return Need()

    def _launch(self, planned: PlannedSession, place: Place) -> Doomed | Late:
        self.launched += 1
        return self.kind(self.launched)


class LateThreads(DoomedThreads):
    """Sessions that are lost with something due."""

    kind = Late


class BrokenThreads(DoomedThreads):
    """Sessions that a mistake of ours keeps from starting."""

    def _launch(self, planned: PlannedSession, place: Place) -> Doomed | Late:
        raise LookupError("no such place")


def serve(kind: type[DoomedThreads], texts: list[str]) -> tuple[DoomedThreads, dict[str, list[Answer]], list[Any]]:
    """Serve one session; return its answers by the prompt's text, and the events."""
    requests = tuple(Request(Prompt(text=text), ("logits",)) for text in texts)
    planned = PlannedSession(Session("toy", "own", Model(path="."), "float32", "cpu"), requests)
    named = {request.key: request.prompt.text or "" for request in requests}
    answers: dict[str, list[Answer]] = {text: [] for text in texts}
    events: list[Any] = []
    threads = kind(
        Places(1, memory=0),
        timeouts={(planned.session.key, request.key): 1.0 for request in requests},
        publish=events.append,
        deliver=lambda session, request, answer, facts, seconds: answers[named[request]].append(answer),
    )
    threads.start(planned)
    threads.shutdown()
    return threads, answers, events


@pytest.mark.parametrize("texts", [["fig"], ["fig", "plum"]])
def test_requests_of_a_session_that_lost_its_machine_too_often_say_what_it_printed_last(texts: list[str]) -> None:
    threads, answers, events = serve(DoomedThreads, texts)
    assert threads.launched == MOST_LOSSES
    assert [event.reason for event in events if isinstance(event, SessionEnded)] == ["the node ant was lost"] * 3
    for text in texts:
        [answer] = answers[text]
        assert isinstance(answer, WorkerDied)
        assert answer.message == "the node ant was lost, 3 times in all"
        assert answer.log_tail == "printed by number 3"


def test_a_request_whose_turn_had_come_when_the_machine_was_lost_is_asked_elsewhere() -> None:
    threads, answers, _ = serve(LateThreads, ["fig", "plum"])
    assert threads.launched == 2
    assert [str(answer) for answer in answers["plum"]] == ["settled"]
    assert [str(answer) for answer in answers["fig"]] == ["fig on number 2"]


def test_a_mistake_of_ours_says_where_it_is() -> None:
    _, answers, _ = serve(BrokenThreads, ["fig"])
    [answer] = answers["fig"]
    assert isinstance(answer, EngineError)
    assert answer.message == "the session could not be run: LookupError: no such place"
    assert "in _launch" in answer.log_tail and answer.log_tail.endswith("LookupError: no such place\n")
