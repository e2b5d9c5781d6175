"""The executor before the engines: what is kept is answered without them, and nothing is kept that may be wrong."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from specrunner.cache.entries import ENTRY
from specrunner.cache.executor import look_ahead
from specrunner.cache.store import CAPTURES, SESSIONS
from specrunner.errors import EngineError
from specrunner.plan.model import PlannedSession
from specrunner.spec.model import Evaluation
from tests.cache.fakes import FACTS, OTHER, SESSION, World, ask, evidence, make_world

A, B = ask("a"), ask("bb")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return make_world(tmp_path, monkeypatch)


def fill(world: World, *requests: object) -> None:
    run = world.run(A, B)
    run.start(*requests)  # type: ignore[arg-type]
    run.executor.shutdown()


def test_what_is_kept_is_answered_without_an_engine(world: World) -> None:
    first = world.run(A, B)
    told = first.start(A, B)
    assert (told.requests, told.kept, told.why, told.facts) == (2, 0, "nothing of it is kept", {})
    assert (told.session, told.label) == (SESSION.key, SESSION.label)
    assert first.engine.asked == ["a", "bb"]
    assert first.delivered[A.key][1:] == (FACTS, 1.5)
    first.executor.shutdown()
    assert first.engine.calls[-1] == "shutdown"
    assert not first.executor.kept
    assert all(first.executor.is_trusted(evidence(request)) for request in (A, B))

    again = world.run(A, B)
    told = again.start(A, B)
    assert (told.requests, told.kept, told.why, told.facts) == (2, 2, "", FACTS)
    assert again.engine.calls == [("supply", evidence(A)), ("supply", evidence(B))], "no session is started"
    assert again.delivered[A.key][1:] == (FACTS, 0.0), "it took no time in this run"
    assert (again.value(A), again.value(B)) == (first.value(A), first.value(B))
    assert again.executor.kept == {evidence(A), evidence(B)}
    again.executor.shutdown()
    assert again.executor.is_trusted(evidence(A))
    assert not again.executor.is_trusted(evidence(A, OTHER)), "a session that kept nothing is not trusted"


def test_only_what_is_missing_is_asked(world: World) -> None:
    fill(world, A)
    run = world.run(A, B)
    told = run.start(A, B)
    assert (told.requests, told.kept, told.why) == (2, 1, "1 request not asked before, or no longer kept")
    assert run.engine.asked == ["bb"]
    assert set(run.delivered) == {A.key, B.key}


def test_a_capture_that_has_lost_its_entry_is_asked_once_more(world: World) -> None:
    fill(world, A)
    (entry,) = world.store.folder.glob(f"{CAPTURES}/*/*/{ENTRY}")
    entry.unlink()
    run = world.run(A)
    assert run.start(A).kept == 0
    run.executor.shutdown()
    assert (world.store.problem, world.store.damaged) == ("", 1)
    assert world.run(A).start(A).kept == 1


def test_another_session_answers_for_itself(world: World) -> None:
    fill(world, A)
    run = world.run(A)
    assert run.start(A, session=OTHER).kept == 0
    assert run.engine.asked == ["a"]


def test_a_session_that_stays_open_is_started_without_a_request(world: World) -> None:
    fill(world, A)
    run = world.run(A)
    run.start(A, stays_open=True)
    assert run.engine.calls == [("start", 0, True), ("supply", evidence(A))]


@pytest.mark.parametrize("takes_more", [True, False])
def test_one_request_more_is_answered_or_passed_on(world: World, takes_more: bool) -> None:
    fill(world, A)
    run = world.run()
    run.engine.takes_more = takes_more
    assert run.executor.add(SESSION.key, A)
    assert run.engine.calls == [("supply", evidence(A))]
    assert run.delivered[A.key][1:] == (FACTS, 0.0)
    assert run.executor.add(SESSION.key, B) is takes_more
    assert run.engine.calls[-1] == ("add", SESSION.key, B)


def test_what_ends_a_run_is_passed_on(world: World) -> None:
    run = world.run()
    run.executor.supply(evidence(A))
    run.executor.close("s")
    run.executor.stop()
    run.executor.kill()
    assert run.engine.calls == [("supply", evidence(A)), ("close", "s"), "stop", "kill"]


def test_what_changed_is_named_and_asked_anew(world: World) -> None:
    fill(world, A)
    world.parts["engine"] = "2"
    run = world.run(A)
    assert run.start(A).why == "changed since the last run: the engine's code"
    assert run.engine.asked == ["a"]


def test_nothing_is_kept_of_sources_that_changed_before_the_first_answer(world: World) -> None:
    run = world.run(A)
    run.stamper.stamp(SESSION.key)
    world.parts["engine"] = "2"
    run.start(A)
    run.executor.shutdown()
    assert set(run.delivered) == {A.key}, "the run itself has its answer"
    assert list(world.store.list_items()) == []
    assert not run.executor.is_trusted(evidence(A))
    assert world.run(A).start(A).kept == 0


def test_what_was_kept_of_sources_that_changed_later_is_dropped(world: World) -> None:
    run = world.run(A, B)
    run.start(A, B)
    assert len(list(world.store.list_items())) == 2
    world.parts["machine"] = "b"
    run.executor.shutdown()
    assert list(world.store.list_items()) == [], "neither captures nor the record of what the session came from"
    assert not run.executor.is_trusted(evidence(A))


LED = ask("led", follow=evidence(A, OTHER), lead="tokens")
LED_BY_LED = ask("led by led", follow=evidence(LED), lead="tokens")


@pytest.mark.parametrize("when", ["before the leader's answer", "after the followers' answers"])
def test_what_was_led_by_sources_that_changed_is_dropped_with_them(world: World, when: str) -> None:
    requests = A, B, LED, LED_BY_LED
    run = world.run(*requests)
    for session in (SESSION, OTHER):
        run.stamper.stamp(session.key)
    if when.startswith("before"):
        world.own[OTHER.key] = {"engine": "2"}
    run.start(A, session=OTHER)
    run.start(B, LED, LED_BY_LED)
    world.own[OTHER.key] = {"engine": "2"}
    run.executor.shutdown()
    assert [run.executor.is_trusted(evidence(request)) for request in (B, LED, LED_BY_LED)] == [True, False, False]
    world.own.clear()
    again = world.run(*requests)
    again.start(A, session=OTHER)
    assert again.start(B, LED, LED_BY_LED).kept == 1
    assert set(again.engine.asked) == {"a", "led", "led by led"}


def test_what_was_led_by_a_kept_capture_is_kept(world: World) -> None:
    first = world.run(A, LED)
    first.start(A, session=OTHER)
    first.executor.shutdown()
    run = world.run(A, LED)
    assert run.start(A, session=OTHER).kept == 1
    run.start(LED)
    run.executor.shutdown()
    assert run.executor.is_trusted(evidence(LED))
    assert world.run(A, LED).start(LED).kept == 1


def test_what_a_session_came_from_is_noted_at_the_end(world: World) -> None:
    run = world.run(A)
    run.start(A)
    assert [item.kind for item in world.store.list_items()] == [CAPTURES]
    run.executor.shutdown()
    assert world.store.find_record(SESSIONS, SESSION.key) == {"parts": {"engine": "1", "machine": "a"}}


def test_a_model_that_is_not_here_yet_is_kept_once_it_is(world: World) -> None:
    world.unknown = "the model's files are not on this machine yet"
    run = world.run(A)
    run.stamper.stamp(SESSION.key)
    assert look_ahead(world.store, run.stamper, PlannedSession(SESSION, (A,))).why == world.unknown
    world.unknown = ""
    run.start(A)
    run.executor.shutdown()
    assert world.run(A).start(A).kept == 1


def test_what_is_led_by_a_capture_that_is_made_anew_says_so(world: World) -> None:
    led = ask("led", follow=evidence(A, OTHER), lead="tokens")
    fill(world, B)
    run = world.run(A, B, led)
    told = run.start(B, led)
    assert (told.kept, told.why) == (1, "1 request led by a capture that is made anew")
    another = replace(led, prompt=A.prompt)
    told = world.run(A, B, another).start(A, another)
    assert told.why == "1 request not asked before, or no longer kept; 1 request led by a capture that is made anew"


def test_a_kept_leader_leaves_its_follower_as_new(world: World) -> None:
    led = ask("led", follow=evidence(A), lead="tokens")
    fill(world, A)
    assert world.run(A, led).start(A, led).why == "1 request not asked before, or no longer kept"


def test_a_damaged_capture_is_asked_anew(world: World) -> None:
    fill(world, A, B)
    (file, _) = sorted(item.path for item in world.store.list_items() if item.kind == CAPTURES)
    tensors = file / "tensors.safetensors"
    content = tensors.read_bytes()
    tensors.unlink()
    tensors.write_bytes(content[:-1])
    run = world.run(A, B)
    told = run.start(A, B)
    assert (told.kept, told.why, len(run.engine.asked)) == (1, "what was kept was damaged", 1)
    assert world.store.damaged == 1
    assert set(run.delivered) == {A.key, B.key}


def test_an_answer_that_is_no_capture_is_passed_on_and_not_kept(world: World) -> None:
    run = world.run(A)
    error = EngineError("it crashed")
    run.engine.fails[A.key] = error
    run.start(A)
    run.executor.shutdown()
    assert run.delivered[A.key][0] is error
    assert list(world.store.list_items()) == []
    assert not run.executor.is_trusted(evidence(A))


def test_sources_that_cannot_be_read_cost_no_answer(world: World) -> None:
    run = world.run(A)
    run.stamper.stamp(SESSION.key)
    run.stamper.key_of(evidence(A))
    world.unreadable = True
    run.start(A)
    assert set(run.delivered) == {A.key}
    assert list(world.store.list_items()) == []
    assert world.store.problem == "captures could not be kept: OSError: [Errno 5] Input/output error"


def test_a_benchmark_whose_data_lies_elsewhere_is_asked_each_time(world: World) -> None:
    asked = ask("", tensors=(), evaluation=Evaluation(("mmlu",), hub=True))
    fill(world, A)
    for _ in range(2):
        run = world.run(A, asked)
        told = run.start(A, asked)
        assert (told.kept, told.why) == (1, "1 request of data that is not on this machine")
        assert run.engine.asked == [""]
        run.executor.shutdown()


def test_what_is_being_kept_holds_up_no_engine(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    may_keep = threading.Event()
    keep = world.store.keep_capture

    def keep_later(key: str, source: Path, facts: Mapping[str, Any], seconds: float) -> None:
        assert may_keep.wait(60)
        keep(key, source, facts, seconds)

    monkeypatch.setattr(world.store, "keep_capture", keep_later)
    run = world.run(A, B)
    error = EngineError("it crashed")
    run.engine.fails[B.key] = error
    session = run.executor.start(PlannedSession(SESSION, (A, B)))
    assert run.engine.asked == ["a", "bb"], "both have been answered, and the first is not kept yet"
    assert not run.delivered
    assert not session.done(), "whoever waits for the session still has answers to come"
    may_keep.set()
    session.result(60)
    assert list(run.delivered) == [A.key, B.key], "in the order of the answers, captures or not"
    run.executor.shutdown()
    assert world.run(A).start(A).kept == 1, "the end waits for what is being kept"


def test_a_run_that_is_killed_keeps_nothing_more_and_passes_on_what_it_has(world: World) -> None:
    run = world.run(A)
    run.executor.kill()
    run.start(A)
    run.executor.shutdown()
    assert list(world.store.list_items()) == []
    assert not run.executor.is_trusted(evidence(A))


def test_whatever_keeps_a_capture_from_being_kept_costs_no_answer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*_: object) -> None:
        raise MemoryError("no more")

    monkeypatch.setattr(world.store, "keep_capture", run_out)
    run = world.run(A)
    run.start(A)
    run.executor.shutdown()
    assert world.store.problem == "captures could not be kept: MemoryError: no more"
