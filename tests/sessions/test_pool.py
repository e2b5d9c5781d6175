"""The pool: one load for many requests, and that a crash costs its own requests alone."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from specrunner.engines.base import Capture
from specrunner.environments.interpreters import Environment
from specrunner.errors import (
    EngineError,
    EngineOutOfMemory,
    EngineTimeout,
    ModelUnavailable,
    ModelUnsupported,
    WorkerDied,
)
from specrunner.events import Event, SessionEnded, SessionReady, SessionStarted
from specrunner.plan.model import PlannedSession
from specrunner.requests import Evidence, Request, Session
from specrunner.sessions.captures import StoredCapture, locate_capture, write_capture
from specrunner.sessions.desk import Desk
from specrunner.sessions.executor import Answer
from specrunner.sessions.pool import Pool
from specrunner.sessions.process import find_marked
from specrunner.sessions.serving import LiveSession
from specrunner.sessions.sizes import PROCESS_BYTES
from specrunner.spec.model import Model, Prompt
from tests.sessions.test_forks import read_parent
from tests.waiting import PATIENCE, wait_for

HERE = Path(__file__).parent
OWN = Environment(
    "own", Path(sys.executable), MappingProxyType({"PYTHONPATH": str(HERE)}), "d1", MappingProxyType({}), "own"
)

OTHER_PYTHON = next(
    path for name in ("python", "python3") if (path := OWN.python.with_name(name)).exists() and path != OWN.python
)
"""The same interpreter under another name, as if it were another engine's."""


class Served:
    """What came of serving sessions: answers by prompt text, and the events."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.facts: dict[str, Any] = {}
        self.events: list[Event] = []

    def of(self, kind: type) -> list[Any]:
        """Return the events of a kind."""
        return [event for event in self.events if isinstance(event, kind)]


Serve = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Serve one session a list of prompts; an item is the prompts, or (prompts, options)."""
    monkeypatch.syspath_prepend(str(HERE))
    import misbehaving

    monkeypatch.setattr("specrunner.sessions.serving.find_engine", lambda name: misbehaving.MisbehavingEngine)

    def serve_sessions(*sessions: list[str] | tuple[list[str], dict[str, Any]], jobs: int = 2, **more: Any) -> Served:
        served = Served()
        planned = []
        prompts: dict[str, str] = {}
        for index, entry in enumerate(sessions):
            texts, options = entry if isinstance(entry, tuple) else (entry, {})
            requests = tuple(Request(Prompt(text=text), ("logits",)) for text in texts)
            prompts |= {request.key: request.prompt.text or "" for request in requests}
            session = Session(
                "misbehaving", "own", Model(path="."), "float32", more.get("device", "cpu"), {**options, "index": index}
            )
            planned.append(PlannedSession(session, requests))

        pythons = more.get("pythons", [OWN.python] * len(planned))
        again = Request(Prompt(text="a"), ("logits",), repeat=1)
        prompts[again.key] = "a again"
        seconds = more.get("timeout", 240.0)
        timeouts = {(one.session.key, request.key): 240.0 for one in planned for request in (*one.requests, again)}
        timeouts |= {key: seconds for key in timeouts if prompts[key[1]] == "hang"}

        def deliver(session: str, request: str, answer: Answer, facts: Any, seconds: float) -> None:
            assert prompts[request] not in served.answers, "a request was answered twice"
            served.answers[prompts[request]] = answer
            served.facts[prompts[request]] = facts

        pool = Pool(
            tmp_path,
            jobs=jobs,
            environments={
                one.session.key: replace(OWN, python=python) for one, python in zip(planned, pythons, strict=True)
            },
            timeouts=timeouts,
            publish=served.events.append,
            deliver=deliver,
            memory=more.get("memory"),
            share_imports=more.get("share_imports", True),
        )
        if "before" in more:
            more["before"](pool)
        for one in planned:
            pool.start(one, stays_open=one is planned[0] and more.get("stays_open", False))
        if "during" in more:
            more["during"](pool, served)
        pool.shutdown()
        return served

    return serve_sessions


def test_many_requests_cost_one_load(serve: Serve) -> None:
    served = serve(["ok", "ok 2", "ok 3"])
    assert all(isinstance(answer, StoredCapture) for answer in served.answers.values())
    assert len(served.of(SessionReady)) == 1
    assert [event.reason for event in served.of(SessionEnded)] == [""]


def list_servers(python: Path) -> list[int]:
    """Fork servers of ours that run under an interpreter."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            command = entry.read_bytes().split(b"\0")
            if command[0] == str(python).encode() and b"specrunner.sessions.fork_server" in command:
                found.append(int(entry.parent.name))
    return [pid for pid in found if read_parent(pid) == os.getpid()]


def test_the_next_engine_is_imported_while_a_session_works(serve: Serve) -> None:
    other = OTHER_PYTHON

    def look(pool: Pool, served: Served) -> None:
        wait_for(lambda: list_servers(other) != [], "the other session's server is there")
        assert not served.answers, "before the first session is over"
        assert len(list_servers(OWN.python)) == 1

    served = serve(["slow 5"], ["ok"], ["ok 2"], jobs=1, pythons=[OWN.python, OWN.python, other], during=look)
    assert all(isinstance(answer, StoredCapture) for answer in served.answers.values()) and len(served.answers) == 3
    assert list_servers(other) == list_servers(OWN.python) == []


def test_an_import_ahead_that_fails_costs_nothing(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[None] = []

    def fail(session: LiveSession) -> bool:
        tried.append(None)
        raise OSError("no space left on the disk")

    monkeypatch.setattr(LiveSession, "import_ahead", fail)
    served = serve(["ok"], ["ok 2"], jobs=1, pythons=[OWN.python, OTHER_PYTHON])
    assert tried == [None]
    assert all(isinstance(answer, StoredCapture) for answer in served.answers.values()) and len(served.answers) == 2


def test_a_pool_that_shares_no_import_starts_no_server(serve: Serve) -> None:
    def look(pool: Pool, served: Served) -> None:
        wait_for(lambda: served.of(SessionReady) != [], "the session is loaded")
        assert list_servers(OWN.python) == []

    served = serve(["slow 0.5"], ["ok"], jobs=1, share_imports=False, during=look)
    assert len(served.answers) == 2


@pytest.mark.parametrize("accident", ["kill", "exit"])
def test_a_crash_costs_its_own_request_and_the_rest_goes_on(serve: Serve, accident: str) -> None:
    served = serve(["before", accident, "after"], ["elsewhere"])
    assert isinstance(served.answers[accident], WorkerDied)
    for text in ("before", "after", "elsewhere"):
        assert isinstance(served.answers[text], StoredCapture), text
    assert len(served.of(SessionReady)) == 3, "one for each session, and one for the request that crashed it"
    assert [event.reason for event in served.of(SessionEnded)].count("the process died") == 1


@pytest.mark.parametrize("accident", ["kill", "hang"])
def test_a_crash_while_a_capture_is_written_costs_neither_it_nor_a_verdict(serve: Serve, accident: str) -> None:
    served = serve(["late 2", accident, "after"], timeout=0.5)
    assert isinstance(served.answers[accident], WorkerDied | EngineTimeout)
    assert isinstance(served.answers["late 2"], StoredCapture)
    assert isinstance(served.answers["after"], StoredCapture)
    assert len(served.answers) == 3


def test_memory_that_ends_while_a_capture_is_written_costs_its_own_request(serve: Serve) -> None:
    served = serve(["before", "late memory", "after"])
    assert isinstance(served.answers["late memory"], EngineOutOfMemory)
    assert isinstance(served.answers["before"], StoredCapture)
    assert isinstance(served.answers["after"], StoredCapture)


def test_a_hang_costs_its_own_request(serve: Serve) -> None:
    served = serve(["hang", "after"], timeout=1.0)
    assert isinstance(served.answers["hang"], EngineTimeout)
    assert isinstance(served.answers["after"], StoredCapture)


def test_an_error_inside_the_engine_keeps_the_process(serve: Serve) -> None:
    served = serve(["raise", "after"])
    assert isinstance(served.answers["raise"], EngineError)
    assert isinstance(served.answers["after"], StoredCapture)
    assert len(served.of(SessionReady)) == 1


@pytest.mark.parametrize(("on_load", "error"), [("unavailable", ModelUnavailable), ("kill", WorkerDied)])
def test_a_load_that_fails_costs_the_session_and_no_other(serve: Serve, on_load: str, error: type) -> None:
    served = serve((["a", "b"], {"on_load": on_load}), ["c"])
    assert isinstance(served.answers["a"], error)
    assert isinstance(served.answers["b"], error)
    assert isinstance(served.answers["c"], StoredCapture)


def test_stopping_starts_nothing_more(serve: Serve) -> None:
    served = serve(["a", "b"], before=lambda pool: pool.stop())
    assert served.answers == {}
    assert served.of(SessionReady) == []


def test_killing_ends_a_hanging_engine_at_once(serve: Serve) -> None:
    def kill_when_ready(pool: Pool, served: Served) -> None:
        wait_for(lambda: served.of(SessionReady), "the engine is ready")
        pool.kill()

    started = time.monotonic()
    served = serve(["child hang", "b"], during=kill_when_ready)
    assert time.monotonic() - started < 200
    assert served.answers == {}
    assert [event.reason for event in served.of(SessionEnded)] == ["interrupted"]


def test_killing_between_two_requests_interrupts_a_session(serve: Serve) -> None:
    def kill(pool: Pool) -> None:
        publish = pool._publish

        def kill_when_ready(event: Event) -> None:
            publish(event)
            if isinstance(event, SessionReady):
                pool.kill()

        pool._publish = kill_when_ready

    served = serve(["a", "b"], before=kill)
    assert served.answers == {}
    assert [event.reason for event in served.of(SessionEnded)] == ["interrupted"]


def test_nothing_is_left_on_disk_but_captures(serve: Serve, tmp_path: Path) -> None:
    serve(["ok", "kill"])
    assert [entry.name for entry in tmp_path.iterdir()] == ["captures"]
    assert find_marked("nothing") == []


def test_what_follows_a_supplied_capture_goes_on_and_looks_for_it_in_the_runs_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    import misbehaving

    monkeypatch.setattr("specrunner.sessions.serving.find_engine", lambda name: misbehaving.MisbehavingEngine)
    served = Served()
    follower = Request(Prompt(text="ok"), ("logits",), follow=Evidence("kept", "capture"), lead="inputs")
    session = Session("misbehaving", "own", Model(path="."), "float32", "cpu", {})
    pool = Pool(
        tmp_path,
        jobs=1,
        environments={session.key: OWN},
        timeouts={(session.key, follower.key): 60.0},
        publish=served.events.append,
        deliver=lambda session, request, answer, facts, seconds: served.answers.update({request: answer}),
    )
    assert not pool.add(session.key, follower), "it was not started"
    waits = threading.Event()
    wait = Desk.wait
    monkeypatch.setattr(Desk, "wait", lambda desk, key: (waits.set(), wait(desk, key))[1])
    future = pool.start(PlannedSession(session, (follower,)))
    assert waits.wait(PATIENCE)
    assert not future.done()
    assert not served.events
    write_capture(locate_capture(tmp_path, "kept", "capture"), Capture(prompt_token_ids=[1, 2]))
    pool.supply(Evidence("kept", "capture"))
    pool.shutdown()
    assert isinstance(served.answers[follower.key], ModelUnsupported), "it was led by the supplied capture"


def count_most_at_once(served: Served) -> int:
    """Return the largest number of sessions that were there at the same time."""
    count = most = 0
    for event in served.events:
        count += isinstance(event, SessionStarted) - isinstance(event, SessionEnded)
        most = max(most, count)
    return most


def test_sessions_on_gpus_run_side_by_side_each_on_its_own(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    served = serve(["a", "a 2"], ["b", "b 2"], ["c"], jobs=3, device="cuda")
    seen = {text: facts["gpus"] for text, facts in served.facts.items()}
    assert {seen["a"], seen["b"]} == {"3", "5"}
    assert seen["c"] in ("3", "5")
    assert count_most_at_once(served) == 2


def test_a_session_over_two_gpus_has_both_and_others_wait(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    served = serve((["wide"], {"tensor_parallel_size": 2}), ["narrow"], jobs=2, device="cuda")
    assert served.facts["wide"]["gpus"] == "3,5"
    assert served.facts["narrow"]["gpus"] == "3"
    assert count_most_at_once(served) == 1


def test_a_session_on_the_cpu_leaves_the_callers_gpus_alone(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert serve(["a"]).facts["a"]["gpus"] == "3,5"


def test_a_session_finds_the_projects_own_name_maps(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "maps").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPECRUNNER_NAME_MAPS", "maps")
    assert serve(["a"]).facts["a"]["name_maps"] == str(tmp_path / "maps")


@pytest.mark.parametrize(("memory", "at_once"), [(1, 1), (2 * PROCESS_BYTES, 2)])
def test_sessions_run_side_by_side_as_far_as_memory_goes(serve: Serve, memory: int, at_once: int) -> None:
    served = serve(["a"], ["b"], jobs=2, memory=memory)
    assert all(isinstance(served.answers[text], StoredCapture) for text in "ab")
    assert count_most_at_once(served) == at_once


def test_a_session_that_only_waits_makes_room_for_one_that_needs_its_memory(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specrunner.sessions.threads.GRACE", 0.05)

    def add_late(pool: Pool, served: Served) -> None:
        wait_for(lambda: len(served.answers) == 2, "both are answered")
        assert pool.add(served.of(SessionStarted)[0].session, Request(Prompt(text="a"), ("logits",), repeat=1))
        pool.close(served.of(SessionStarted)[0].session)

    served = serve(["a"], ["b"], memory=1, during=add_late, stays_open=True)
    assert [isinstance(answer, StoredCapture) for answer in served.answers.values()] == [True] * 3
    assert len(served.of(SessionReady)) == 3, "the first was loaded again"
    assert count_most_at_once(served) == 1


@pytest.mark.parametrize(("stated", "expected"), [(None, "passive"), ("active", "active")])
def test_the_threads_of_sessions_sleep_while_they_wait(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, stated: str | None, expected: str
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if stated:
        monkeypatch.setenv("OMP_WAIT_POLICY", stated)
    assert serve(["a"]).facts["a"]["wait"] == expected
