"""Shards: every case is in exactly one, and cases that share an engine stay together."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specrunner.errors import UsageError
from specrunner.plan.shards import Shard, name_group, parse_shard
from specrunner.spec.loader import load_specs
from specrunner.spec.model import Case, EngineChoice, Location, Model, Prompt


def make_case(number: int, engine: str, dtype: str, model: str) -> Case:
    return Case(
        suite="specs/a",
        name=f"c{number}",
        parameters=(),
        location=Location("specs/a.yaml", number, 1),
        candidate=EngineChoice(engine, dtype),
        reference=None,
        model=Model(path=model),
        prompt=Prompt(text=str(number)),
    )


_CASES = st.lists(
    st.tuples(st.sampled_from(["hf", "vllm"]), st.sampled_from(["float32", "bfloat16"]), st.sampled_from("abc")),
    max_size=30,
).map(lambda entries: [make_case(number, *entry) for number, entry in enumerate(entries)])


@given(cases=_CASES, count=st.integers(1, 7))
def test_the_shards_hold_every_case_once_and_whole_groups(cases: list[Case], count: int) -> None:
    parts = [Shard(number, count).select(cases) for number in range(1, count + 1)]
    assert sorted(case.name for part in parts for case in part) == sorted(case.name for case in cases)
    places = defaultdict(set)
    for number, part in enumerate(parts):
        assert part == sorted(part, key=lambda case: case.location.line), "the order stays"
        for case in part:
            places[name_group(case)].add(number)
    assert all(len(found) == 1 for found in places.values())


@given(cases=_CASES, extra=_CASES, count=st.integers(1, 7))
def test_more_cases_move_none(cases: list[Case], extra: list[Case], count: int) -> None:
    for number in range(1, count + 1):
        before = Shard(number, count).select(cases)
        after = Shard(number, count).select([*cases, *extra])
        assert after[: len(before)] == before


def test_a_checkout_elsewhere_has_the_same_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [
        f"  - {{name: c{number}, model: {{path: ../model-{number}}}, prompt: a, tolerance: {{logits: exact}}}}\n"
        for number in range(8)
    ]
    head = "version: 1\nengines: [hf]\nreference: {engine: hf, dtype: float32}\ndtype: bfloat16\ncases:\n"
    groups = []
    for checkout in ("one", "two/below"):
        folder = tmp_path / checkout
        (folder / "specs").mkdir(parents=True)
        (folder / "specs" / "a.yaml").write_text(head + "".join(cases))
        monkeypatch.chdir(folder)
        loaded = load_specs(["specs"])
        assert loaded.diagnostics == ()
        groups.append([name_group(case) for case in loaded.cases])
    assert groups[0] == groups[1]
    assert len(set(groups[0])) == 8


def test_a_revision_that_the_environment_gives_moves_no_case() -> None:
    case = make_case(1, "hf", "float32", "a")
    groups = {name_group(replace(case, model=Model(id="a/b", revision=revision))) for revision in ("$REV", "0" * 40)}
    assert len(groups) == 1


def test_groups_are_spread() -> None:
    cases = [make_case(number, "hf", "float32", f"model-{number}") for number in range(400)]
    sizes = [len(Shard(number, 4).select(cases)) for number in range(1, 5)]
    assert sum(sizes) == 400
    assert min(sizes) > 60, "of 100 on the average"


@pytest.mark.parametrize(("text", "shard"), [("1/1", Shard(1, 1)), ("2/4", Shard(2, 4)), ("4/4", Shard(4, 4))])
def test_a_shard_is_read(text: str, shard: Shard) -> None:
    assert parse_shard(text) == shard


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "1/0", "a/b", "-1/4", "1/2/3", "1.5/2", "", "１/2"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a part of a whole"):
        parse_shard(text)
