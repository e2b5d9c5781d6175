"""The cache as a run has it: when there is one, what it foresees, and what it keeps and says at the end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from specrunner.cache.keeping import RECENT, CacheChoice, RunCache, choose_cache
from specrunner.cache.store import CAPTURES, SESSIONS, VERDICTS, kept_folder
from specrunner.cache.verdicts import Verdicts
from specrunner.config import Settings
from specrunner.plan.model import Plan, PlannedCase, PlannedSession
from specrunner.requests import Evidence
from specrunner.results import CaseResult, Failure, Verdict
from specrunner.spec.model import Case, EngineChoice, GoldenChoice, Location, Model, Prompt
from tests.cache.fakes import OTHER, SESSION, Engine, World, ask, evidence, make_world
from tests.waiting import wait_for

A, B = ask("a"), ask("b")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(Verdicts, "_describe_judge", lambda self: ["judge"])
    return make_world(tmp_path, monkeypatch)


def make_planned(name: str, request: Any, **changes: Any) -> PlannedCase:
    case = Case(
        suite="specs/s",
        name=name,
        parameters=(("engine", "hf"),),
        location=Location("specs/s.yaml", 3, 5),
        candidate=EngineChoice("hf", "float32", "cpu"),
        reference=EngineChoice("hf", "float64", "cpu"),
        model=Model(path="m"),
        prompt=Prompt(text=name),
    )
    roles = {"candidate": evidence(request), "reference": evidence(request, OTHER)}
    return replace(PlannedCase(case, roles), **changes)


ONE, TWO = make_planned("one", A), make_planned("two", B)
PLAN = Plan((ONE, TWO), (PlannedSession(SESSION, (A, B)), PlannedSession(OTHER, (A, B))))


class Session:
    """One run with its cache, and the engine behind it."""

    def __init__(self, world: World, name: str, most_bytes: float = float("inf"), plan: Plan = PLAN) -> None:
        choice = CacheChoice(world.store.folder, most_bytes)
        self.cache = RunCache(choice, plan, world.environments(), 1, strict=False)
        self.engines: list[Engine] = []
        directory = world.folder / name

        def make(accept: Any) -> Engine:
            self.engines.append(Engine(accept, directory))
            return self.engines[0]

        self.executor = self.cache.put_before(make, directory, lambda event: None, lambda *answer: None)

    def ask(self, *planned: PlannedSession) -> None:
        for session in planned or PLAN.sessions:
            self.executor.start(session).result(1)

    def end(self) -> None:
        self.executor.shutdown()
        self.cache.close()


def passed(planned: PlannedCase) -> CaseResult:
    return CaseResult(planned.case, Verdict.PASSED)


def kinds(world: World) -> list[str]:
    return [item.kind for item in world.store.list_items()]


def test_when_a_run_has_a_cache() -> None:
    choice = choose_cache(Settings(cache_limit=2.5))
    assert choice == CacheChoice(kept_folder(), 2.5e9)
    assert choose_cache(Settings(no_cache=True)) is None
    assert choose_cache(Settings(executor="ray")) is None
    assert choose_cache(Settings(), fresh=True) is None


def test_verdicts_are_kept_and_found_by_the_next_run(world: World) -> None:
    first = Session(world, "first")
    assert first.cache.find_verdict(ONE) is None
    first.ask()
    assert first.cache.mark(ONE, passed(ONE)) == ""
    first.end()
    assert kinds(world) == [*[CAPTURES] * 4, VERDICTS, *[SESSIONS] * 2]
    again = Session(world, "again")
    found = again.cache.find_verdict(ONE)
    assert found is not None and found.kept == "verdict"
    assert again.cache.find_verdict(TWO) is None


def test_captures_that_were_kept_are_said_to_be(world: World) -> None:
    first = Session(world, "first")
    first.ask(PlannedSession(SESSION, (A,)), PlannedSession(OTHER, (A, B)))
    first.end()
    again = Session(world, "again")
    again.ask()
    assert again.cache.mark(ONE, passed(ONE)) == "captures"
    assert again.cache.mark(TWO, passed(TWO)) == "", "one of its captures was made in this run"


def test_nothing_is_kept_of_a_verdict_whose_sources_changed(world: World) -> None:
    run = Session(world, "run")
    run.ask()
    run.cache.mark(ONE, passed(ONE))
    world.parts["engine"] = "2"
    run.end()
    assert kinds(world) == []


Change = Callable[[Path], None]


def replace_golden(golden: Path) -> None:
    golden.write_text("two")


def replace_golden_for_a_while(golden: Path) -> None:
    state = golden.stat()

    def swap() -> bool:
        golden.write_text("two")
        golden.write_text("one")
        return golden.stat().st_ctime_ns != state.st_ctime_ns

    wait_for(swap, "the kernel's clock for times of files ticks")


@pytest.mark.parametrize("moment", ["before it is judged", "after it was judged"])
@pytest.mark.parametrize("change", [replace_golden, replace_golden_for_a_while, Path.unlink])
@pytest.mark.parametrize("captures", ["made", "kept"])
def test_nothing_is_kept_of_a_verdict_whose_golden_was_replaced(
    world: World, moment: str, change: Change, captures: str
) -> None:
    """The verdict was drawn from one golden, and must not stand under the key of another."""
    location = Location((world.folder / "specs" / "s.yaml").as_posix(), 3, 5)
    held = replace(ONE, case=replace(ONE.case, golden=GoldenChoice(), location=location))
    golden = world.folder / "golden" / "s" / "one.json"
    golden.parent.mkdir(parents=True)
    golden.write_text("one")
    if captures == "kept":
        earlier = Session(world, "earlier")
        earlier.ask()
        earlier.end()
    run = Session(world, "run")
    assert run.cache.find_verdict(held) is None
    run.ask()
    if moment == "before it is judged":
        change(golden)
    run.cache.mark(held, passed(held))
    run.cache.mark(TWO, passed(TWO))
    if moment == "after it was judged":
        change(golden)
    run.end()
    assert kinds(world).count(VERDICTS) == 1
    again = Session(world, "again").cache
    assert again.find_verdict(held) is None
    assert again.find_verdict(TWO) is not None, "another case is not concerned"


@pytest.mark.parametrize("captures", ["made", "kept"])
def test_a_verdict_on_a_golden_that_stays_is_kept(world: World, captures: str) -> None:
    location = Location((world.folder / "specs" / "s.yaml").as_posix(), 3, 5)
    held = replace(ONE, case=replace(ONE.case, golden=GoldenChoice(), location=location))
    for name in ["earlier", "run"] if captures == "kept" else ["run"]:
        run = Session(world, name)
        assert run.cache.find_verdict(held) is None
        run.ask()
        if name == "run":
            run.cache.mark(held, passed(held))
        run.end()
    assert Session(world, "again").cache.find_verdict(held) is not None


def test_one_trusted_capture_of_two_is_not_enough(world: World) -> None:
    run = Session(world, "run")
    run.ask(PlannedSession(SESSION, (A,)))
    run.cache.mark(ONE, passed(ONE))
    run.end()
    assert kinds(world) == [CAPTURES, SESSIONS]


def test_a_run_that_asked_nothing_keeps_nothing(world: World) -> None:
    cache = RunCache(CacheChoice(world.store.folder), PLAN, world.environments(), 1, strict=False)
    assert cache.mark(ONE, passed(ONE)) == ""
    cache.close()
    assert kinds(world) == []
    assert cache.summarize() == []


def test_the_size_is_bounded_but_not_by_what_is_recent(world: World) -> None:
    first = Session(world, "first")
    first.ask()
    first.end()
    old = time.time() - RECENT - 60
    items = list(world.store.list_items())
    for item in items[:2]:
        os.utime(item.path / "entry.json", (old, old))
    small = Session(world, "small", most_bytes=0.0)
    small.end()
    assert len(kinds(world)) == len(items), "a run that did nothing deletes nothing"
    small = Session(world, "small again", most_bytes=0.0)
    small.cache.mark(replace(ONE, evidence={"candidate": Evidence("x", "y")}), passed(ONE))
    small.end()
    left = {item.path for item in world.store.list_items()}
    assert left == {item.path for item in items[2:]}


def test_a_large_enough_store_keeps_what_is_old(world: World) -> None:
    first = Session(world, "first", most_bytes=1e9)
    first.ask()
    first.end()
    for item in world.store.list_items():
        os.utime(item.path / "entry.json" if item.path.is_dir() else item.path, (1, 1))
    again = Session(world, "again", most_bytes=1e9)
    again.cache.mark(ONE, replace(passed(ONE), verdict=Verdict.FAILED))
    again.end()
    assert len(kinds(world)) == 6


def test_the_plan_is_foreseen_without_reading_a_capture(world: World) -> None:
    fresh = Session(world, "fresh").cache.foresee(PLAN)
    assert fresh.verdicts == 0
    assert fresh.sessions == dict.fromkeys((SESSION.key, OTHER.key), (2, 0, "nothing of it is kept"))
    first = Session(world, "first")
    first.ask(PlannedSession(SESSION, (A,)), PlannedSession(OTHER, (A,)))
    first.cache.mark(ONE, passed(ONE))
    first.end()
    seen = Session(world, "seen").cache.foresee(PLAN)
    why = "1 request not asked before, or no longer kept"
    assert (seen.verdicts, seen.sessions[SESSION.key]) == (1, (1, 0, why)), "the kept verdict's captures are not needed"
    skipped = replace(PLAN, cases=(replace(ONE, skip=Failure("engine-missing", "no")), TWO))
    assert Session(world, "skipped").cache.foresee(skipped).verdicts == 0


def test_the_end_tells_of_damage_and_of_a_store_that_cannot_be_written(world: World) -> None:
    cache = Session(world, "run").cache
    assert list(cache.summarize()) == []
    cache.store.damaged = 1
    assert list(cache.summarize()) == ["1 kept entry was damaged or of another version, and made again"]
    cache.store.damaged, cache.store.problem = 2, "the disk is full"
    assert list(cache.summarize()) == [
        "the disk is full",
        "2 kept entries were damaged or of another version, and made again",
    ]
