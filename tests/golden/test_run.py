"""Goldens in a run, as a user starts it: made, reviewed, held against, and never written where they must not be."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from specrunner.catalogue.engines import engine_targets
from specrunner.cli import main
from specrunner.engines.registry import find_engine
from specrunner.golden.keys import Slot, name_device
from specrunner.golden.store import State, exists, list_slots, manifest_path

SPEC = """\
version: 1
model: {path: .}
engines: [wavering]
options: {wavering: %s}
cases:
  - name: layers
    prompt: hi
    golden: %s
    decode: {max_new_tokens: 4}
    tokens: exact
    tolerance: {embeddings: exact, "**": {sqnr: 80}}
%s"""


@dataclass(frozen=True)
class Outcome:
    code: int
    err: str
    report: dict[str, Any]

    @property
    def case(self) -> dict[str, Any]:
        """The first case."""
        case: dict[str, Any] = self.report["cases"][0]
        return case


@dataclass(frozen=True)
class Workplace:
    folder: Path
    capsys: pytest.CaptureFixture[str]

    def write(self, options: str = "{}", golden: str = "true", more: str = "") -> None:
        (self.folder / "specs/a.yaml").write_text(SPEC % (options, golden, more))

    def start(self, *arguments: str) -> tuple[int, str, str]:
        """Run a command in this process: it has torch already; the engine's worker is a process of its own."""
        self.capsys.readouterr()
        code = main(arguments)
        return code, *self.capsys.readouterr()

    def run(self, *arguments: str) -> Outcome:
        code, _, err = self.start("run", "specs", "--json", "r.json", *arguments)
        return Outcome(code, err, json.loads((self.folder / "r.json").read_text()))

    def accept(self) -> None:
        assert self.start("golden", "accept", "*", "--reason", "a test")[0] == 0

    def slots(self) -> list[Slot]:
        return list_slots(self.folder / "golden")


@pytest.fixture
def workplace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Workplace]:
    """A directory with an installed plugin engine."""
    plugin = tmp_path / "plugin"
    info = plugin / "wavering-1.0.dist-info"
    info.mkdir(parents=True)
    (plugin / "wavering.py").write_text((Path(__file__).parent / "wavering.py").read_text())
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: wavering\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[specrunner.engines]\nwavering = wavering:WaveringEngine\n")
    folder = tmp_path / "work"
    (folder / "specs").mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(plugin))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(plugin), os.environ.get("PYTHONPATH", "")))))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("CI", raising=False)
    for known in (engine_targets, find_engine):
        known.cache_clear()
    yield Workplace(folder, capsys)
    for known in (engine_targets, find_engine):
        known.cache_clear()
    sys.modules.pop("wavering", None)


@pytest.mark.slow
def test_the_life_of_a_golden(workplace: Workplace) -> None:
    workplace.write()
    missing = workplace.run()
    assert (missing.code, missing.case["verdict"]) == (10, "error")
    assert missing.case["failure"]["kind"] == "golden-missing"
    assert "--update-goldens" in missing.case["failure"]["help"]
    assert workplace.slots() == []

    made = workplace.run("--update-goldens")
    assert (made.code, made.case["verdict"]) == (0, "passed")
    assert "goldens: 1 written for review" in made.err
    (slot,) = workplace.slots()
    assert exists(slot, State.NEW)
    assert not exists(slot)
    assert workplace.run().code == 10, "what waits for a review is no golden yet"
    workplace.accept()

    same = workplace.run()
    assert (same.code, same.case["verdict"]) == (0, "passed")
    checks = [check for check in same.case["checks"] if check["against"] == "golden"]
    assert [check["subject"] for check in checks] == [
        *("tokenization", "embeddings", "layers.0.output", "layers.1.output", "layers.2.output", "logits", "tokens")
    ]
    assert checks[1]["measurements"]["golden"] == slot.label

    workplace.write("{layer: 1, error: 1.0e-2}")
    wrong = workplace.run()
    assert (wrong.code, wrong.case["verdict"]) == (1, "failed")
    assert "layers.1.output" in wrong.case["message"]
    assert "at token 3" in wrong.case["message"]
    assert wrong.case["diagnosis"]["tensor"] == "layers.1.output"
    assert wrong.case["diagnosis"]["token"] == 3

    before = manifest_path(slot).read_bytes()
    updated = workplace.run("--update-goldens")
    assert (updated.code, updated.case["verdict"]) == (0, "passed")
    assert "goldens: 1 written for review" in updated.err
    assert manifest_path(slot).read_bytes() == before
    _, shown, _ = workplace.start("golden", "review", "--json")
    changed = {tensor["name"]: tensor["same"] for tensor in json.loads(shown)[0]["change"]["tensors"]}
    assert changed == {
        "embeddings": True,
        "layers.0.output": True,
        "layers.1.output": False,
        "layers.2.output": False,
        "logits": False,
    }


def test_small_noise_passes_and_is_not_rewritten(workplace: Workplace) -> None:
    workplace.write()
    workplace.run("--update-goldens")
    workplace.accept()
    workplace.write("{layer: 0, error: 1.0e-6}")
    again = workplace.run("--update-goldens")
    assert again.code == 0
    assert "goldens: 1 unchanged" in again.err
    assert not exists(workplace.slots()[0], State.NEW)


@pytest.mark.parametrize(
    ("options", "why"),
    [("{nan: true}", "logits holds NaN or infinity"), ("{noise: 0.1}", "repeat 2 of 2 does not agree")],
)
def test_nothing_is_written_of_what_is_not_sound(workplace: Workplace, options: str, why: str) -> None:
    workplace.write(options)
    outcome = workplace.run("--update-goldens")
    assert (outcome.code, outcome.case["verdict"]) == (10, "error")
    assert outcome.case["failure"]["kind"] == "golden-refused"
    assert why in outcome.case["failure"]["message"]
    assert "goldens: 1 refused" in outcome.err
    assert workplace.slots() == []


def test_repeats_within_the_tolerance_are_enough(workplace: Workplace) -> None:
    workplace.write("{noise: 1.0e-6}")
    assert workplace.run("--update-goldens", "--golden-repeats", "3").code == 0
    manifest = json.loads(manifest_path(workplace.slots()[0], State.NEW).read_text())
    assert (manifest["repeats"], manifest["agreement"]) == (3, "tolerance")


def test_nothing_is_written_of_a_case_that_fails(workplace: Workplace) -> None:
    """It fails against its reference, which is the same engine without the fault."""
    more = "    reference: {engine: wavering, dtype: float32, options: {}}\n"
    workplace.write("{layer: 1, error: 1.0e-2}", more=more)
    outcome = workplace.run("--update-goldens")
    assert (outcome.code, outcome.case["verdict"]) == (1, "failed")
    assert "1 not written, since the case did not pass" in outcome.err
    assert workplace.slots() == []
    failing = workplace.run()
    assert failing.case["verdict"] == "failed", "wrong numbers count for more than a missing golden"


def test_a_failure_says_which_of_reference_and_golden_it_is_against(workplace: Workplace) -> None:
    """The candidate changes, and each report tells one comparison: of the reference where that fails, too."""
    reference = "    reference: {engine: wavering, dtype: float32, options: {digest: '0000000000000000'%s}}\n"
    workplace.write(more=reference % "")
    assert workplace.run("--update-goldens").code == 0
    workplace.accept()
    (slot,) = workplace.slots()
    changed = "layer: 1, error: 1.0e-2"

    workplace.write(f"{{{changed}}}", more=reference % f", {changed}")
    code, out, _ = workplace.start("run", "specs", "--json", "r.json", "--junit-xml", "r.xml")
    told = "layers.1.output against the golden: sqnr 40 dB at token 3 is below 80 dB"
    assert (code, json.loads((workplace.folder / "r.json").read_text())["cases"][0]["message"]) == (1, told)
    body = (workplace.folder / "r.xml").read_text()
    for report in (out, body):
        assert told in report
        assert f"layers.1.output is the first that went wrong  (sqnr against the golden {slot.label}, specs/a" in report
        assert f" golden     {slot.label}  20" in report
    _, out, _ = workplace.start("run", "specs", "--output-format", "github")
    assert told in out
    _, out, _ = workplace.start("show", "layers")
    titles = [line for line in out.splitlines() if line.startswith(("CHECKS", "GOLDEN"))]
    assert titles == [
        "GOLDEN",
        "CHECKS against the reference, in model order",
        "CHECKS against the golden, in model order",
    ]

    workplace.write(f"{{{changed}}}", more=reference % ", layer: 2, error: 2.0e-2")
    code, out, _ = workplace.start("run", "specs", "--json", "r.json")
    case = json.loads((workplace.folder / "r.json").read_text())["cases"][0]
    assert case["message"] == told.replace(" against the golden", "")
    (last,) = (
        check["measurements"]["relative_l2"]
        for check in case["checks"]
        if check["subject"] == "logits" and check["against"] == "reference"
    )
    assert f"\n      logits           {last:.5g} " in out
    assert "\n      2 of 3 later checks failed too\n      3 of 7 checks against the golden failed too\n" in out


def test_only_what_ran_is_written(workplace: Workplace) -> None:
    workplace.write(more="  - {name: other, prompt: ho, golden: true, tolerance: {logits: {sqnr: 80}}}\n")
    assert workplace.run("--update-goldens", "-k", "other").code == 0
    assert [slot.case for slot in workplace.slots()] == ["other--engine=wavering"]


def test_not_under_ci(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    workplace.write()
    monkeypatch.setenv("CI", "true")
    code, _, err = workplace.start("run", "specs", "--update-goldens")
    assert code == 4
    assert err.startswith("error: `--update-goldens` does not run under CI")
    assert workplace.slots() == []


def test_another_devices_golden_serves_where_the_spec_says_so(workplace: Workplace) -> None:
    workplace.write()
    workplace.run("--update-goldens")
    workplace.accept()
    (slot,) = workplace.slots()
    other = slot.on("cpu-other")
    for file in list(slot.stem.parent.iterdir()):
        if file.suffix == ".safetensors":
            continue
        file.rename(file.with_name(file.name.replace(f"@{slot.device}", "@cpu-other")))
    assert exists(other)
    assert workplace.run().case["failure"]["kind"] == "golden-missing"
    workplace.write(golden="{fallback: [cpu-other]}")
    served = workplace.run()
    assert served.code == 0
    numbers = served.case["checks"][0]["measurements"]
    assert numbers["golden_fallback"] == f"cpu-other served for {name_device('cpu')}"


def test_another_checkpoint_is_no_evidence(workplace: Workplace) -> None:
    workplace.write()
    workplace.run("--update-goldens")
    workplace.accept()
    workplace.write('{digest: "1111111111111111"}')
    outcome = workplace.run()
    assert (outcome.code, outcome.case["failure"]["kind"]) == (10, "golden-stale")
    assert "another checkpoint" in outcome.case["failure"]["message"]
