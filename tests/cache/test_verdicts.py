"""Kept verdicts: what may be kept, and everything that makes another verdict of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from specrunner.cache import verdicts
from specrunner.cache.digests import Digests
from specrunner.cache.verdicts import Verdicts, find_inputs
from specrunner.plan.model import PlannedCase
from specrunner.requests import Evidence
from specrunner.results import CaseResult, CheckResult, Diagnosis, Verdict
from specrunner.secrets import Redactor
from specrunner.spec.model import (
    Baseline,
    Benchmark,
    Case,
    EngineChoice,
    Evaluation,
    GoldenChoice,
    Location,
    Model,
    Prompt,
    Rule,
    Tolerance,
)
from tests.cache.fakes import OTHER, World, ask, evidence, make_world

A, B = ask("a"), ask("b")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(Verdicts, "_describe_judge", lambda self: ["judge 1"])
    return make_world(tmp_path, monkeypatch)


def make_case(world: World, **changes: Any) -> Case:
    location = Location((world.folder / "specs/s.yaml").as_posix(), 3, 5)
    case = Case(
        suite="specs/s",
        name="c",
        parameters=(("engine", "hf"),),
        location=location,
        candidate=EngineChoice("hf", "float32", "cpu"),
        reference=EngineChoice("hf", "float64", "cpu"),
        model=Model(path="m"),
        prompt=Prompt(text="a"),
        tensors=("logits",),
        tolerance=(Tolerance("logits", (Rule("sqnr", {"min": 80.0}),), location),),
    )
    return replace(case, **changes)


def planned(case: Case, **roles: Evidence) -> PlannedCase:
    return PlannedCase(case, roles or {"candidate": evidence(A), "reference": evidence(A, OTHER)})


def verdicts_of(world: World, *, strict: bool = False) -> Verdicts:
    return Verdicts(world.store, world.stamper(A, B), Digests(None), strict=strict)


CHECK = CheckResult("logits", "sqnr", True, "", {"min_sqnr": "inf"}, {"min": 80.0}, "specs/s.yaml:9", against="golden")


def result_of(case: Case, verdict: Verdict = Verdict.PASSED) -> CaseResult:
    diagnosis = Diagnosis("logits", 3, 2.5, ("a finding",), ({"tensor": "logits", "error": 0.1},), ())
    facts = {"device": "cpu", "patches": ["one"]}
    return CaseResult(case, verdict, (CHECK,), None, 3.5, facts, {"device": "cpu"}, diagnosis)


def test_a_verdict_comes_back_whole_and_took_no_time(world: World) -> None:
    case = make_case(world)
    assert verdicts_of(world).find(planned(case)) is None
    verdicts_of(world).keep(planned(case), result_of(case))
    found = verdicts_of(world).find(planned(case))
    assert found == replace(result_of(case), seconds=0.0, kept="verdict")
    plain = replace(result_of(case), diagnosis=None, checks=())
    verdicts_of(world).keep(planned(case), plain)
    assert verdicts_of(world).find(planned(case)) == replace(plain, seconds=0.0, kept="verdict")


@pytest.mark.parametrize("verdict", Verdict)
def test_only_what_held_is_kept(world: World, verdict: Verdict) -> None:
    case = make_case(world)
    verdicts_of(world).keep(planned(case), result_of(case, verdict))
    found = verdicts_of(world).find(planned(case))
    assert (found is not None) == (verdict in (Verdict.PASSED, Verdict.XFAILED))
    assert found is None or found.verdict is verdict


@pytest.mark.parametrize(
    "changes",
    [
        {"tolerance": ()},
        {"name": "d"},
        {"suite": "specs/t"},
        {"tags": ("slow",)},
        {"tensors": ("logits", "embeddings")},
        {"candidate": EngineChoice("hf", "float16", "cpu")},
        {"golden": GoldenChoice()},
        {"repeat": 2},
        {"location": Location("specs/s.yaml", 4, 5)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_another_case_has_no_kept_verdict(world: World, changes: dict[str, Any]) -> None:
    case = make_case(world)
    verdicts_of(world).keep(planned(case), result_of(case))
    assert verdicts_of(world).find(planned(replace(case, **changes))) is None


def test_a_limit_that_moves_asks_for_a_new_judgement(world: World) -> None:
    case = make_case(world)
    verdicts_of(world).keep(planned(case), result_of(case))
    (entry,) = case.tolerance
    closer = replace(case, tolerance=(replace(entry, rules=(Rule("sqnr", {"min": 90.0}),)),))
    assert verdicts_of(world).find(planned(closer)) is None


def test_the_strictness_of_a_run_is_part_of_a_verdict(world: World) -> None:
    case = make_case(world)
    verdicts_of(world).keep(planned(case), result_of(case))
    assert verdicts_of(world, strict=True).find(planned(case)) is None


def test_another_judge_judges_anew(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(world)
    verdicts_of(world).keep(planned(case), result_of(case))
    monkeypatch.setattr(Verdicts, "_describe_judge", lambda self: ["judge 2"])
    assert verdicts_of(world).find(planned(case)) is None


def test_other_evidence_is_judged_anew(world: World) -> None:
    case = make_case(world)
    kept = planned(case)
    verdicts_of(world).keep(kept, result_of(case))
    assert verdicts_of(world).find(planned(case, candidate=evidence(B), reference=evidence(A, OTHER))) is None
    assert verdicts_of(world).find(planned(case, candidate=evidence(A, OTHER), reference=evidence(A))) is None
    world.parts["engine"] = "2"
    assert verdicts_of(world).find(kept) is None


def test_without_keys_nothing_is_kept(world: World) -> None:
    case = make_case(world)
    world.unknown = "the model's files"
    verdicts_of(world).keep(planned(case), result_of(case))
    verdicts_of(world).keep(PlannedCase(case, {}), result_of(case))
    assert list(world.store.list_items()) == []
    assert verdicts_of(world).find(planned(case)) is None
    assert verdicts_of(world).find(PlannedCase(case, {})) is None


def test_one_capture_without_a_key_is_enough(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(world)
    known = verdicts_of(world)
    stamper = known._stamper
    real: Callable[[Evidence], str | None] = stamper.key_of
    monkeypatch.setattr(stamper, "key_of", lambda found: None if found == evidence(A, OTHER) else real(found))
    known.keep(planned(case), result_of(case))
    assert list(world.store.list_items()) == []


BENCHMARK = Benchmark(Evaluation(("gsm8k",)), "paired")


@pytest.mark.parametrize(
    ("changes", "file"),
    [
        ({"golden": GoldenChoice()}, "golden/s/c.json"),
        ({"benchmark": replace(BENCHMARK, baseline=Baseline(file="{folder}/answers.json"))}, "answers.json"),
    ],
    ids=["golden", "baseline"],
)
def test_files_that_a_case_is_held_against_count(world: World, changes: dict[str, Any], file: str) -> None:
    benchmark = changes.get("benchmark")
    if benchmark is not None and benchmark.baseline is not None:
        stated = Baseline(file=benchmark.baseline.file.format(folder=world.folder))
        changes = {"benchmark": replace(benchmark, baseline=stated)}
    case = make_case(world, **changes)
    path = world.folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("one")
    verdicts_of(world).keep(planned(case), result_of(case))
    assert verdicts_of(world).find(planned(case)) is not None
    path.write_text("two")
    assert verdicts_of(world).find(planned(case)) is None


def test_a_case_without_either_depends_on_no_file(world: World) -> None:
    assert find_inputs(make_case(world)) == []
    assert find_inputs(make_case(world, golden=GoldenChoice())) == [world.folder / "golden" / "s"]


def test_a_secret_in_what_an_engine_says_is_not_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    redactor = Redactor({"MY_API_KEY": "hunter2-hunter2"})
    monkeypatch.setattr(verdicts, "own_redactor", lambda: redactor)
    case = make_case(world)
    told = replace(result_of(case), candidate={"flag": "hunter2-hunter2"}, reference={"flag": "hunter2-hunter2"})
    verdicts_of(world).keep(planned(case), told)
    (item,) = world.store.list_items()
    assert "hunter2" not in item.path.read_text()


def test_the_judge_is_our_code_and_what_it_computes_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verdict on the same numbers is another judge's where its code or its numerics are."""
    world = make_world(tmp_path, monkeypatch)
    code, versions = tmp_path / "specrunner", {"torch": "2.13.0", "numpy": "2.0", "other": "1"}
    code.mkdir()
    (code / "__init__.py").write_text("1")
    monkeypatch.setattr(verdicts.specrunner, "__file__", str(code / "__init__.py"))
    monkeypatch.setattr(verdicts, "installed_versions", lambda folders: dict(versions))
    case = make_case(world)
    verdicts_of(world).keep(planned(case), result_of(case))
    versions["other"] = "2"
    assert verdicts_of(world).find(planned(case)) is not None, "what checks do not compute with does not count"
    versions["numpy"] = "2.1"
    assert verdicts_of(world).find(planned(case)) is None
    versions["numpy"] = "2.0"
    (code / "__init__.py").write_text("2")
    assert verdicts_of(world).find(planned(case)) is None
