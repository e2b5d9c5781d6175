"""Taking stock of goldens: each state, what no case names, and which patterns mean which golden."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from specrunner.engines.checkpoint_digest import describe_checkpoint
from specrunner.errors import GoldenError
from specrunner.golden import staleness
from specrunner.golden.census import (
    Entry,
    examine,
    find_unreferenced,
    find_waiting,
    match_slot,
    measure_bytes,
    take_stock,
)
from specrunner.golden.check import find_golden
from specrunner.golden.keys import find_slot, name_device
from specrunner.golden.record import write_new
from specrunner.golden.store import State, manifest_path
from specrunner.spec.model import GoldenChoice, Prompt
from tests.golden.builders import FACTS, keep, make, make_capture, make_case, plant_checkpoint

DEVICE = name_device("cpu")


@pytest.fixture(autouse=True)
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkpoint that the goldens are made with, on this machine."""
    return plant_checkpoint(tmp_path, monkeypatch)


def small(scale: float = 0.0) -> object:
    return make_capture(scale, rows=6, width=50)


def states(entries: list[Entry]) -> list[tuple[str, bool, bool]]:
    return [(entry.state, entry.waits, entry.is_bad) for entry in entries]


def test_the_states_of_a_golden(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    (entry,) = take_stock([case, replace(case, golden=None)])
    assert states([entry]) == [("missing", False, False)]
    assert (entry.slot.device, entry.golden, entry.drift) == ("?", None, None)
    shown = entry.to_json()
    assert (shown["waits_for_review"], shown["bytes"], shown["date"], shown["drift"]) == (False, 0, None, None)

    write_new(make(case, small()))  # type: ignore[arg-type]
    assert states(take_stock([case])) == [("waiting", True, False)]
    slot = keep(case, small()).slot  # type: ignore[arg-type]
    (entry,) = take_stock([case])
    assert states([entry]) == [("ok", False, False)]
    assert (entry.note, entry.drift is not None and entry.drift.largest) == ("", 0.0)
    assert entry.golden is not None
    assert entry.to_json() == {
        "golden": slot.label,
        "case": case.node_id,
        "device": DEVICE,
        "state": "ok",
        "note": "",
        "waits_for_review": False,
        "bytes": measure_bytes(slot),
        "date": entry.golden.manifest.date,
        "reason": "first",
        "drift": entry.drift.to_json() if entry.drift else None,
    }
    write_new(make(case, small(1e-3)))  # type: ignore[arg-type]
    assert states(take_stock([case])) == [("ok", True, False)]
    assert states(take_stock([replace(case, prompt=Prompt(text="ho"))])) == [("stale", True, True)]
    assert examine(slot, None).state == "ok", "nobody says what it should be of"
    manifest_path(slot, State.ANCHOR).unlink()
    assert examine(slot, case).note == "it has no anchor"
    manifest_path(slot, State.ANCHOR).write_text("{")
    assert states([examine(slot, case)]) == [("damaged", True, True)]


def test_a_golden_that_left_its_anchor_step_by_step(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    for scale in (0.0, 1e-3):
        slot = keep(case, small(scale)).slot  # type: ignore[arg-type]
    (entry,) = take_stock([case])
    assert states([entry]) == [("drifted", False, True)]
    assert entry.drift is not None and entry.drift.largest == pytest.approx(1.5e-3, rel=0.5)
    assert examine(slot, None).state == "ok", "without a case nothing is judged"


def test_a_golden_of_another_checkpoint_is_stale(tmp_path: Path, checkpoint: Path) -> None:
    case = make_case(tmp_path)
    slot = keep(case, small()).slot  # type: ignore[arg-type]
    assert states(take_stock([case])) == [("ok", False, False)]
    (checkpoint / "model.safetensors").write_text("Weights")
    (entry,) = take_stock([case])
    assert states([entry]) == [("stale", False, True)]
    with pytest.raises(GoldenError) as caught:
        find_golden(case, {**FACTS, "model_digest": describe_checkpoint(checkpoint)["model_digest"]})
    assert entry.note == caught.value.message, "a run says the same"
    assert "another checkpoint" in entry.note
    assert examine(slot, None).state == "ok", "nobody says what it should be of"


@pytest.mark.parametrize("absent", ["config.json", "model.safetensors", "all"])
def test_a_checkpoint_that_is_elsewhere_tells_nothing(tmp_path: Path, checkpoint: Path, absent: str) -> None:
    case, nameless = make_case(tmp_path), make_case(tmp_path, "nameless")
    keep(case, small())  # type: ignore[arg-type]
    keep(nameless, small(), facts={"model_digest": None})  # type: ignore[arg-type]
    for file in sorted(checkpoint.iterdir()):
        if absent in (file.name, "all"):
            file.unlink()
    entry, plain = take_stock([case, nameless])
    assert states([entry, plain]) == [("unknown", False, False), ("ok", False, False)]
    assert entry.note == "glass-0.8m is not on this machine, so its checkpoint may be another"
    assert states(take_stock([replace(case, prompt=Prompt(text="ho"))])) == [("stale", False, True)]


def test_a_checkpoint_that_cannot_be_read_tells_nothing(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case(tmp_path)
    keep(case, small())  # type: ignore[arg-type]

    def refuse(folder: Path) -> None:
        raise PermissionError(folder)

    monkeypatch.setattr(staleness, "describe_checkpoint", refuse)
    assert states(take_stock([case])) == [("unknown", False, False)]


def test_a_checkpoint_is_read_once_for_all_goldens(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [make_case(tmp_path, name) for name in ("one", "two")]
    for case in cases:
        keep(case, small())  # type: ignore[arg-type]
    read: list[Path] = []
    monkeypatch.setattr(
        staleness, "describe_checkpoint", lambda folder: read.append(folder) or describe_checkpoint(folder)
    )
    assert states(take_stock(cases)) == [("ok", False, False)] * 2
    assert read == [checkpoint]


def test_every_device_has_an_entry(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    keep(case, small())  # type: ignore[arg-type]
    keep(case, small(), facts={"device": "cuda (A)"})  # type: ignore[arg-type]
    other = make_case(tmp_path, "other")
    keep(other, small())  # type: ignore[arg-type]
    assert [entry.slot.device for entry in take_stock([case])] == [DEVICE, "cuda-a"]
    assert [entry.slot.case for entry in take_stock([other])] == ["other--engine=hf"]


def test_what_no_case_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    case, gone = make_case(tmp_path), make_case(tmp_path, "gone")
    slots = [keep(one, small()).slot for one in (case, gone)]  # type: ignore[arg-type]
    spec = tmp_path / "specs/a/spec.yaml"
    spec.parent.mkdir(parents=True)
    spec.write_text("")
    files = [spec.as_posix()]
    for paths in (["specs"], ["specs/a"], files):
        assert [slot.case for slot in find_unreferenced(paths, files, [case])] == [slots[1].case]
    assert find_unreferenced(["specs"], files, [case, gone]) == []
    assert len(find_unreferenced(["specs"], files, [replace(case, golden=None)])) == 2
    (tmp_path / "specs/b").mkdir()
    assert find_unreferenced(["specs/b"], [], [case]) == [], "a golden of a spec elsewhere"


def test_what_waits(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    slot = keep(case, small()).slot  # type: ignore[arg-type]
    assert find_waiting([slot.root]) == []
    write_new(make(case, small(1e-3)))  # type: ignore[arg-type]
    assert find_waiting([slot.root, slot.root]) == [slot]


def test_bytes_are_those_of_all_its_files(tmp_path: Path) -> None:
    slot = keep(make_case(tmp_path), small()).slot  # type: ignore[arg-type]
    keep(make_case(tmp_path, "capital-two"), small())  # type: ignore[arg-type]
    mine = [file for file in slot.stem.parent.iterdir() if file.name.startswith("capital--")]
    assert len(mine) == 3
    assert measure_bytes(slot) == sum(file.stat().st_size for file in mine)
    assert measure_bytes(find_slot(make_case(tmp_path / "nowhere"), "x")) == 0


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("capital", True),
        ("apita", True),
        ("a/spec/capital--engine=hf@cpu", True),
        ("capital[engine=hf]", True),
        ("*::capital[engine=hf]", True),
        ("*capital*", True),
        ("capital[*]", True),
        ("capital*@cpu", False),
        ("*@cpu", True),
        ("*", True),
        ("capitals", False),
        ("c?pital", False),
        ("*::capital", False),
    ],
)
def test_patterns_of_goldens(tmp_path: Path, pattern: str, found: bool) -> None:
    case = make_case(tmp_path)
    assert match_slot(pattern, find_slot(case, "cpu"), case) is found


def test_without_a_case_only_its_own_name_counts(tmp_path: Path) -> None:
    slot = find_slot(make_case(tmp_path), "cpu")
    assert match_slot("capital--engine", slot, None)
    assert match_slot("*.json", slot, None)
    assert not match_slot("capital[engine=hf]", slot, None)


def test_a_planted_faults_case_has_the_golden_of_the_sound_one(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    planted = make_case(tmp_path, "planted", golden=GoldenChoice(case_id=case.id))
    assert find_slot(planted, "cpu") == find_slot(case, "cpu")
