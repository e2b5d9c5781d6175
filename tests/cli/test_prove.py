"""`specrunner prove` on a live engine."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from specrunner.cli import main
from specrunner.config import Settings
from specrunner.errors import ExitCode
from specrunner.proof import proving
from specrunner.proof.matrix import Matrix
from specrunner.proof.proving import Trial
from specrunner.reporters.base import Reporter
from specrunner.results import CaseResult
from specrunner.runner import RunOptions
from tests.workplace import NO_CLUSTER

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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.parametrize(
    "wrong, help", [("vlm", "did you mean `vllm`?"), ("nothing-like-it", "engines: hf, oracle, vllm, sglang")]
)
@pytest.mark.parametrize("more", [["good.yaml"], ["--list"]])
def test_an_engine_that_does_not_exist_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], wrong: str, help: str, more: list[str]
) -> None:
    (folder / "good.yaml").write_text(SPEC.replace("LAYER", "logits"))
    assert main(["prove", "--engine", "hf", "--engine", wrong, *more]) == ExitCode.USAGE
    assert f"error: unknown engine `{wrong}`\n  help: {help}" in capsys.readouterr().err


def test_an_engine_that_no_case_tests_is_told_from_cases_that_are_expected_to_fail(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "good.yaml").write_text(SPEC.replace("LAYER", "logits"))
    chosen = ["--engine", "vllm", "--engine", "oracle"]
    assert main(["prove", "good.yaml", *chosen]) == ExitCode.NOTHING_VERIFIED
    assert capsys.readouterr().err == "error: no case tests `vllm` or `oracle`; engines of these cases: `hf`\n"
    (folder / "failing.yaml").write_text(SPEC.replace("LAYER", "logits") + "    xfail: {reason: known}\n")
    assert main(["prove", "failing.yaml", *chosen]) == ExitCode.NOTHING_VERIFIED
    assert "cases that are expected to fail prove nothing" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["prove", "calibrate"])
@pytest.mark.parametrize("stated, seconds", [("SPECRUNNER_TIMEOUT", 7.0), (None, 60.0)])
def test_a_stated_timeout_stands_above_cases(
    folder: Path, monkeypatch: pytest.MonkeyPatch, command: str, stated: str | None, seconds: float
) -> None:
    timeouts: set[float] = set()

    def note(trials: Sequence[Trial], *_: Any, **__: Any) -> tuple[dict[str, CaseResult], ExitCode]:
        timeouts.update(trial.case.timeout for trial in trials)
        return {}, ExitCode.INTERRUPTED

    monkeypatch.setattr(proving, "run_trials", note)
    if stated is not None:
        monkeypatch.setenv(stated, "7")
    (folder / "good.yaml").write_text(SPEC.replace("LAYER", "logits") + "    timeout: 60\n")
    assert main([command, "good.yaml"]) == ExitCode.INTERRUPTED
    assert timeouts == {seconds}


@pytest.mark.parametrize("command", ["prove", "calibrate"])
def test_the_executor_that_is_stated_serves(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.setenv("SPECRUNNER_EXECUTOR", "ray")
    monkeypatch.setenv("SPECRUNNER_RAY_ADDRESS", "127.0.0.1:1")
    (folder / "good.yaml").write_text(SPEC.replace("LAYER", "logits"))
    assert main([command, "good.yaml"]) == ExitCode.USAGE
    assert NO_CLUSTER in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_an_error_before_the_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(proving, "run_trials", lambda *_, **__: pytest.fail("it ran"))
    (folder / "good.yaml").write_text(SPEC.replace("LAYER", "logits"))
    assert main(["prove", "good.yaml", "--json", "good.yaml/r.json"]) == ExitCode.USAGE
    assert "cannot write the JSON report to good.yaml/r.json" in capsys.readouterr().err


def test_a_disk_that_fills_during_the_run_costs_the_report_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill(*_: object, **__: object) -> tuple[dict[str, CaseResult], ExitCode]:
        monkeypatch.setattr(os, "fsync", refuse)
        return {}, ExitCode.PASSED

    def refuse(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(proving, "run_trials", fill)
    monkeypatch.setattr(proving, "make_matrix", lambda *_: Matrix((), ()))
    (folder / "good.yaml").write_text(SPEC.replace("LAYER", "logits"))
    (folder / "r.json").write_text("old")
    assert main(["prove", "good.yaml", "--json", "r.json"]) == ExitCode.USAGE
    told = capsys.readouterr()
    assert "nothing was proven" in told.out
    assert "cannot write the JSON report to r.json: no space left on device" in told.err
    assert (folder / "r.json").read_text() == "old"


@pytest.mark.parametrize("executor, retries", [("local", 2), ("ray", 0)])
def test_a_trial_is_run_under_the_settings_but_for_what_would_cut_the_matrix_short(
    monkeypatch: pytest.MonkeyPatch, executor: str, retries: int
) -> None:
    noted: list[RunOptions] = []

    class Noted:
        def __init__(self, plan: object, environments: object, reporters: object, options: RunOptions) -> None:
            noted.append(options)

        def execute(self) -> ExitCode:
            return ExitCode.PASSED

    monkeypatch.setattr(proving, "Run", Noted)
    settings = Settings(jobs=5, strict=True, max_fail=1, executor=executor, retries=retries)
    proving.run_trials([], settings=settings)
    assert noted == [RunOptions(jobs=5, executor=executor, retries=retries, diagnose=False)]


def test_reporters_are_closed_when_the_run_breaks_off(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __init__(self, *_: object) -> None:
            pass

        def execute(self) -> ExitCode:
            raise OSError(28, "No space left on device")

    class Noted(Reporter):
        closed = 0

        def close(self) -> None:
            self.closed += 1

    monkeypatch.setattr(proving, "Run", Broken)
    reporter = Noted()
    with pytest.raises(OSError, match="No space left"):
        proving.run_trials([], [reporter])
    assert reporter.closed == 1


def test_the_registry_is_listed_without_running_anything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prove", "--list"]) == 0
    out = capsys.readouterr().out
    assert "vllm#12002" in out
    assert out.endswith("\nAll of them are planted in models of LLaDA2's architecture alone.\n")
    lines = [line for line in out.split("\n\n")[0].splitlines() if not line.startswith(" ")]
    assert {(line[34], line[56]) for line in lines} == {(" ", " ")}, "no name leaves its column"
