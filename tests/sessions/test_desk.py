"""The desk: which request can be answered now, and when a session is over."""

from __future__ import annotations

import threading
import time

from specrunner.requests import Evidence, Request
from specrunner.sessions.desk import Desk
from specrunner.spec.model import Prompt
from tests.waiting import PATIENCE


def request(text: str, follow: Evidence | None = None) -> Request:
    return Request(Prompt(text=text), follow=follow)


FIRST = request("first")


def test_requests_come_in_order_and_the_session_is_then_over() -> None:
    desk = Desk()
    desk.open("a", [FIRST, request("second")], stays_open=False)
    assert [desk.take("a"), desk.take("a"), desk.take("a")] == [FIRST, request("second"), None]
    assert not desk.wait("a")


def test_a_follower_waits_for_what_it_follows_and_others_go_first() -> None:
    desk = Desk()
    follower = request("led", Evidence("b", FIRST.key))
    desk.open("a", [follower, request("free")], stays_open=False)
    desk.open("b", [FIRST], stays_open=False)
    assert desk.take("a") == request("free")
    assert desk.take("a") is None
    assert not desk.wait("a", seconds=0.01)
    desk.answer(Evidence("b", FIRST.key))
    assert desk.wait("a")
    assert desk.take("a") == follower


def test_an_open_session_waits_for_more_until_it_is_closed() -> None:
    desk = Desk()
    desk.open("a", [], stays_open=True)
    found: list[bool] = []
    waiter = threading.Thread(target=lambda: found.append(desk.wait("a")))
    waiter.start()
    assert desk.add("a", FIRST)
    waiter.join(PATIENCE)
    assert (found, desk.count("a")) == ([True], 1)
    assert desk.take("a") == FIRST
    closer = threading.Timer(0.05, desk.close, ("a",))
    closer.start()
    assert not desk.wait("a")
    assert not desk.add("a", FIRST)


def test_stopping_lets_everyone_go_and_hands_out_nothing() -> None:
    desk = Desk()
    desk.open("a", [FIRST], stays_open=True)
    desk.stop()
    began = time.monotonic()
    assert not desk.wait("a")
    assert desk.take("a") is None
    assert not desk.add("a", FIRST)
    assert time.monotonic() - began < 5


def test_giving_up_takes_everything_and_closes() -> None:
    desk = Desk()
    desk.open("a", [FIRST, request("led", Evidence("b", "x"))], stays_open=True)
    assert len(desk.take_all("a")) == 2
    assert not desk.add("a", FIRST)
    assert not desk.wait("a")
