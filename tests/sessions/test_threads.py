"""The threads of sessions: what they do when the machine under a session is lost. (What else they do: test_pool.py.)"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from specrunner.errors import WorkerDied
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
            raise MachineLost("the node ant was lost", f"printed by number {self.number}")
        settle(request, WorkerDied("answered"), 0.0)

    def flush(self) -> None:
        """Have nothing due."""

    def end(self, *, at_once: bool) -> None:
        """End nothing."""


class DoomedThreads(SessionThreads):
    """Sessions whose machines are lost."""

    launched = 0

    def _estimate(self, planned: PlannedSession) -> Need:
        return Need()

    def _launch(self, planned: PlannedSession, place: Place) -> Doomed:
        self.launched += 1
        return Doomed(self.launched)


@pytest.mark.parametrize("texts", [["fig"], ["fig", "plum"]])
def test_requests_of_a_session_that_lost_its_machine_too_often_say_what_it_printed_last(texts: list[str]) -> None:
    requests = tuple(Request(Prompt(text=text), ("logits",)) for text in texts)
    planned = PlannedSession(Session("toy", "own", Model(path="."), "float32", "cpu"), requests)
    answers: dict[str, Answer] = {}
    events: list[Any] = []
    threads = DoomedThreads(
        Places(1, memory=0),
        timeouts={(planned.session.key, request.key): 1.0 for request in requests},
        publish=events.append,
        deliver=lambda session, request, answer, facts, seconds: answers.update({request: answer}),
    )
    threads.start(planned)
    threads.shutdown()
    assert threads.launched == MOST_LOSSES
    assert [event.reason for event in events if isinstance(event, SessionEnded)] == ["the node ant was lost"] * 3
    for request in requests:
        answer = answers[request.key]
        assert isinstance(answer, WorkerDied)
        assert answer.message == "the node ant was lost, 3 times in all"
        assert answer.log_tail == "printed by number 3"
