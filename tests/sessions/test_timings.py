"""Recorded times: what the next run expects, whatever became of the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specrunner.arrangement import order_sessions
from specrunner.plan.model import Plan, PlannedSession
from specrunner.requests import Evidence, Request, Session
from specrunner.sessions.timings import LOAD_SECONDS, MOST_KEPT, REQUEST_SECONDS, Timings, read_timings
from specrunner.spec.model import Model, Prompt


def planned(index: int, *prompts: str, follow: Evidence | None = None) -> PlannedSession:
    requests = tuple(Request(Prompt(text=text), follow=follow) for text in prompts)
    return PlannedSession(Session("hf", "own", Model(id="a/b"), "float32", "cpu", {"index": index}), requests)


def test_what_was_recorded_is_expected_and_an_unknown_request_takes_as_long_as_the_others(tmp_path: Path) -> None:
    file = tmp_path / "timings.json"
    first, second = planned(0, "a"), planned(0, "a", "b")
    timings = Timings(file)
    assert timings.estimate(first) > LOAD_SECONDS + REQUEST_SECONDS
    timings.record_load(first.session.key, 40.0)
    timings.record_request(first.session.key, first.requests[0].key, 3.0)
    timings.write()
    assert Timings(file).estimate(first) == 43.0
    assert Timings(file).estimate(second) == 46.0


def test_two_runs_keep_each_others_times(tmp_path: Path) -> None:
    file = tmp_path / "timings.json"
    one, other = Timings(file), Timings(file)
    one.record_request("s", "a", 1.0)
    other.record_request("s", "b", 2.0)
    other.record_load("t", 3.0)
    one.write()
    other.write()
    kept = read_timings(file)
    assert kept["s"]["requests"] == {"a": 1.0, "b": 2.0}
    assert kept["t"]["load"] == 3.0


def test_the_file_does_not_grow_for_ever(tmp_path: Path) -> None:
    file = tmp_path / "timings.json"
    file.write_text(json.dumps({f"old{i}": {"requests": {}, "load": 1, "used": i} for i in range(MOST_KEPT)}))
    timings = Timings(file)
    timings.record_load("new", 1.0)
    timings.write()
    kept = read_timings(file)
    assert len(kept) == MOST_KEPT
    assert "new" in kept
    assert "old0" not in kept


@settings(max_examples=25)
@given(
    st.one_of(
        st.binary(),
        st.recursive(
            st.none() | st.floats() | st.text(),
            lambda inner: st.dictionaries(st.sampled_from(["load", "requests", "used", "key"]), inner),
        ).map(lambda value: json.dumps(value).encode()),
    )
)
def test_a_damaged_file_counts_as_nothing(tmp_path_factory: pytest.TempPathFactory, written: bytes) -> None:
    file = tmp_path_factory.mktemp("damaged") / "timings.json"
    file.write_bytes(written)
    timings = Timings(file)
    one = planned(0, "a")
    assert timings.estimate(one) > 0
    timings.record_load(one.session.key, 2.0)
    timings.write()
    assert Timings(file).estimate(one) == 2.0 + REQUEST_SECONDS


def test_a_folder_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    timings = Timings(tmp_path / "file" / "timings.json")
    timings.record_load("s", 1.0)
    timings.write()


def test_followed_sessions_start_first_and_then_the_longest() -> None:
    short, long, followed = planned(0, "a"), planned(1, "a"), planned(2, "a")
    follower = planned(3, "b", follow=Evidence(followed.session.key, followed.requests[0].key))
    timings = Timings(None)
    plan = Plan((), (short, follower, long, followed))
    assert order_sessions(plan, timings) == [followed, short, follower, long], "as planned, where nothing is known"
    timings = Timings(None)
    timings._recorded = {long.session.key: {"load": 90.0, "requests": {}}}
    assert order_sessions(plan, timings) == [followed, long, short, follower]
