"""`specrunner prove` on a live engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specrunner.cli import main

SPEC = """\
version: 1
model: {recipe: tiny-llada2, trust_remote_code: true}
engines: [hf]
dtype: float32
reference: {engine: oracle}
cases:
  - name: forward
    prompt: {text: "reverse stone:enots 27+77=104 sort 53102:", length: 39}
    tolerance: {LAYER: {sqnr: 90}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def test_a_spec_that_sees_everything_proves_itself(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "good.yaml").write_text(SPEC.replace("LAYER", '"layers.*.output"'))
    chosen = ["--fault", "mask-causal", "--fault", "routing-softmax", "--fault", "sampler-leftmost"]
    chosen += ["--fault", "variant-row-by-row", "--fault", "variant-padded"]
    code = main(["prove", "good.yaml", *chosen, "--prompts", "1", "--json", "proof.json"])
    out = capsys.readouterr().out
    assert code == 0, out
    assert "2 of 2 faults caught, 0 false alarms in 4 runs of 2 legitimate variants" in out
    report = json.loads((folder / "proof.json").read_text())
    assert [row["fault"] for row in report["faults"]] == ["mask-causal", "routing-softmax"]
    assert all(row["entries"][0]["share"] > 100 for row in report["faults"])
    assert all(entry["share"] < 0.1 for row in report["variants"] for entry in row["entries"])


def test_a_spec_that_looks_at_one_layer_misses_what_comes_after(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "blind.yaml").write_text(SPEC.replace("LAYER", "layers.0.output"))
    code = main(["prove", "blind.yaml", "--fault", "mask-causal", "--fault", "routing-softmax", "--only", "faults"])
    out = capsys.readouterr().out
    assert code == 1
    assert "NOT CAUGHT  routing-softmax [hf/float32]" in out
    assert "1 of 2 faults caught" in out


def test_what_cannot_be_proven_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "good.yaml").write_text(SPEC.replace("LAYER", "logits"))
    assert main(["prove", "good.yaml", "--fault", "rooting"]) == 4
    assert "no fault is called 'rooting'" in capsys.readouterr().err
    assert main(["prove", "good.yaml", "--fault", "sampler"]) == 5  # no case decodes
    assert main(["prove", "good.yaml", "--engine", "vllm"]) == 5
    (folder / "bad.yaml").write_text("version: 1\ncases: 3\n")
    assert main(["prove", "bad.yaml"]) == 4


def test_the_registry_is_listed_without_running_anything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prove", "--list"]) == 0
    assert "vllm#12002" in capsys.readouterr().out
