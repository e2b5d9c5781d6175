"""`specrunner golden` as a user starts it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from specrunner.cli import main
from specrunner.golden.kept import read_golden
from specrunner.golden.keys import Slot
from specrunner.golden.record import write_new
from specrunner.golden.store import State, exists, manifest_path
from specrunner.spec.loader import load_specs
from specrunner.spec.model import Case
from tests.golden.builders import keep, make, make_capture, plant_checkpoint

SPEC = """\
version: 1
model: {recipe: glass-0.8m}
engines: [hf]
defaults:
  prompt: hi
  decode: {max_new_tokens: 4}
  tokens: exact
  tensors: [embeddings, logits]
  tolerance: {"**": {sqnr: 80}}
  golden: true
cases:
  - {name: one}
  - {name: two}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("CI", raising=False)
    plant_checkpoint(tmp_path, monkeypatch)
    (tmp_path / "specs/a").mkdir(parents=True)
    (tmp_path / "specs/a/spec.yaml").write_text(SPEC)
    return tmp_path


def cases() -> dict[str, Case]:
    return {case.name: case for case in load_specs(["specs"]).require_valid()}


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(["golden", *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def wait(name: str, scale: float, **changes: Any) -> Slot:
    """Put a golden up for review."""
    return write_new(make(cases()[name], make_capture(scale, **changes), make_capture(scale, **changes))).slot


def test_status_tells_what_is_missing_waiting_and_fine(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "status")
    assert (status, out.count("missing")) == (0, 2)
    keep(cases()["one"])
    wait("two", 0)
    status, out, _ = run(capsys, "status")
    assert status == 0
    assert "ok       a/spec/one--engine=hf@" in out
    assert "0 from the anchor" in out
    assert "waiting  a/spec/two--engine=hf@" in out
    assert out.splitlines()[-1].startswith("2 goldens, 0.")
    assert out.endswith(" MB; 0 goldens without a case\n")


def test_status_fails_for_a_damaged_golden(capsys: pytest.CaptureFixture[str]) -> None:
    slot = keep(cases()["one"]).slot
    manifest_path(slot).write_text("{")
    status, out, _ = run(capsys, "status", "--json")
    assert status == 1
    states = {entry["case"]: entry["state"] for entry in json.loads(out)["goldens"]}
    assert list(states.values()) == ["damaged", "missing"]


def test_status_shows_drift_from_the_anchor(capsys: pytest.CaptureFixture[str]) -> None:
    """Each step is within the tolerance of the last, and all of them together are not."""
    for scale in (0, 3e-5, 6e-5):
        keep(cases()["one"], make_capture(scale))
    status, out, _ = run(capsys, "status")
    assert status == 1
    assert "drifted  a/spec/one--engine=hf@" in out
    assert "7.8e-05 from the anchor" in out


def test_status_fails_for_a_stale_golden(capsys: pytest.CaptureFixture[str]) -> None:
    keep(cases()["one"])
    Path("specs/a/spec.yaml").write_text(SPEC.replace("prompt: hi", "prompt: ho"))
    status, out, _ = run(capsys, "status")
    assert status == 1
    assert "stale" in out


def test_status_fails_for_a_golden_of_another_checkpoint(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    keep(cases()["one"])
    (weights,) = folder.glob("cache/models/glass-0.8m-*/model.safetensors")
    weights.write_text("others")
    status, out, _ = run(capsys, "status", "--json")
    assert status == 1
    assert [entry["state"] for entry in json.loads(out)["goldens"]] == ["stale", "missing"]
    weights.unlink()
    status, out, _ = run(capsys, "status")
    assert status == 0
    assert "unknown  a/spec/one--engine=hf@" in out
    assert "glass-0.8m is not on this machine" in out


def test_accept_needs_a_pattern_that_fits_and_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    slot = wait("one", 0)
    other = wait("two", 0)
    status, _, err = run(capsys, "accept", "one")
    assert status == 4
    assert "--reason" in err
    status, _, err = run(capsys, "accept", "three", "--reason", "x")
    assert status == 4
    assert "no golden that waits fits 'three'" in err
    status, _, err = run(capsys, "accept", "one", "--reason", " ")
    assert status == 4
    assert "without a reason" in err
    status, out, _ = run(capsys, "accept", "one[engine=hf]", "--reason", "the first")
    assert (status, out.count("accepted")) == (0, 1)
    assert read_golden(slot).manifest.reason == "the first"
    assert not exists(other)
    status, out, _ = run(capsys, "accept", "*::t*", "--reason", "the first")
    assert (status, out.count("accepted")) == (0, 1)


def test_a_change_beyond_the_anchor_needs_to_be_meant(capsys: pytest.CaptureFixture[str]) -> None:
    slot = keep(cases()["one"]).slot
    wait("one", 1e-2)
    status, _, err = run(capsys, "accept", "one", "--reason", "a new kernel")
    assert status == 4
    assert "further from its anchor" in err
    assert "--new-anchor" in err
    assert read_golden(slot).manifest.reason == "first"
    status, _, _ = run(capsys, "accept", "one", "--reason", "a new kernel", "--new-anchor")
    assert status == 0
    assert read_golden(slot, State.ANCHOR).manifest.reason == "a new kernel"
    assert run(capsys, "status")[0] == 0


def test_reject_keeps_the_old(capsys: pytest.CaptureFixture[str]) -> None:
    slot = keep(cases()["one"]).slot
    before = manifest_path(slot).read_bytes()
    wait("one", 1e-2)
    assert run(capsys, "reject", "one")[0] == 0
    assert not exists(slot, State.NEW)
    assert manifest_path(slot).read_bytes() == before


def test_review_shows_what_changed_and_takes_answers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    slot = keep(cases()["one"]).slot
    wait("one", 1e-2, output=(5, 6, 9, 8))
    other = wait("two", 0)
    monkeypatch.setattr("sys.stdin", io.StringIO("what\na\nI see\nA\na new kernel\nr\n"))
    status, out, _ = run(capsys, "review")
    assert status == 0
    assert "case specs/a/spec.yaml::one[engine=hf]" in out
    assert "repeats: 1 -> 2" in out
    assert "output tokens: 4 became 4, the first 2 are the same" in out
    assert "       2         7         9  <" in out
    assert "embeddings: the same" in out
    assert "beyond the tolerance" in out
    assert "sqnr: sqnr" in out
    assert "token 5: rel l2 about" in out
    assert "further from its anchor" in out
    assert "this is the first" in out
    assert out.endswith("1 accepted, 1 rejected, 0 skipped\n")
    assert read_golden(slot).manifest.reason == "a new kernel"
    assert not exists(other, State.NEW)
    assert run(capsys, "review")[1] == "no golden waits for a review\n"


def test_an_end_of_input_leaves_the_rest_waiting(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = wait("one", 0), wait("two", 0)
    monkeypatch.setattr("sys.stdin", io.StringIO("s\n"))
    status, out, _ = run(capsys, "review")
    assert status == 0
    assert out.endswith("0 accepted, 0 rejected, 2 skipped\n")
    assert exists(one, State.NEW)
    assert exists(two, State.NEW)


def test_review_as_json_changes_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    keep(cases()["one"])
    slot = wait("one", 1e-2)
    status, out, _ = run(capsys, "review", "--json")
    assert status == 0
    (shown,) = json.loads(out)
    assert shown["case"] == "specs/a/spec.yaml::one[engine=hf]"
    assert shown["leaves_anchor"]
    tensors = {tensor["name"]: tensor for tensor in shown["change"]["tensors"]}
    assert tensors["embeddings"]["same"]
    assert tensors["logits"]["movers"][0]["token"] == 5
    assert not tensors["logits"]["checks"][0]["passed"]
    assert exists(slot, State.NEW)


@pytest.mark.parametrize("command", [["accept", "one", "--reason", "x"], ["reject", "one"], ["review"], ["prune"]])
def test_nothing_changes_under_ci(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    slot = wait("one", 0)
    monkeypatch.setenv("CI", "true")
    status, _, err = run(capsys, *command)
    assert status == 4
    assert err.count("error:") == 1
    assert "does not run under CI" in err
    assert exists(slot, State.NEW)


def test_prune_deletes_what_no_case_names_and_only_that(capsys: pytest.CaptureFixture[str]) -> None:
    one, two = keep(cases()["one"]).slot, keep(cases()["two"]).slot
    Path("specs/a/spec.yaml").write_text(SPEC.replace("  - {name: two}\n", ""))
    status, out, _ = run(capsys, "status")
    assert status == 0
    assert "no case  a/spec/two--engine=hf@" in out
    status, _, err = run(capsys, "prune", "specs/a/spec.yaml::one")
    assert status == 4
    assert "whole specs" in err
    assert "would delete a/spec/two" in run(capsys, "prune", "--dry-run")[1]
    assert exists(two)
    assert "deleted a/spec/two" in run(capsys, "prune")[1]
    assert not exists(two)
    assert exists(one)
    assert run(capsys, "prune")[1] == "every golden is named by a case\n"


def test_prune_leaves_the_goldens_of_other_specs_alone(capsys: pytest.CaptureFixture[str]) -> None:
    Path("specs/b").mkdir()
    Path("specs/b/other.yaml").write_text(SPEC)
    slot = keep(load_specs(["specs/b"]).cases[0]).slot
    Path("specs/b/other.yaml").write_text(
        SPEC.replace("golden: true", "golden: false").replace(
            "engines: [hf]", "engines: [hf]\nreference: {engine: oracle}"
        )
    )
    assert run(capsys, "prune", "specs/a")[1] == "every golden is named by a case\n"
    assert exists(slot)
    assert "deleted b/other/one" in run(capsys, "prune", "specs")[1]
    assert not exists(slot)


def test_a_folder_named_by_its_full_path_is_the_same(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    keep(cases()["two"])
    wait("one", 0)
    Path("specs/a/spec.yaml").write_text(SPEC.replace("  - {name: two}\n", ""))
    status, out, _ = run(capsys, "status", str(folder / "specs"))
    assert status == 0
    assert (out.count("two--engine=hf@"), out.count("one--engine=hf@")) == (1, 1)
