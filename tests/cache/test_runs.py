"""What a second run takes from the first, with real workers: all that nothing has touched, and not one thing more."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Command
from tests.remembered import prepare_cache
from tests.workplace import make_workplace


@dataclass
class Bench:
    """A directory with a spec, a checkpoint, an installed plugin engine and a cache of its own."""

    folder: Path
    environment: dict[str, str]

    def write_spec(self, prompts: Sequence[str], rule: str = "exact") -> None:
        cases = "\n".join(f"  - {{name: c{index}, prompt: {text!r}}}" for index, text in enumerate(prompts))
        head = textwrap.dedent(
            f"""\
            version: 1
            model: {{path: model}}
            engines: [misbehaving]
            reference: {{engine: misbehaving, dtype: float32, options: {{role: reference}}}}
            defaults:
              tolerance: {{logits: {rule}}}
            cases:
            """
        )
        (self.folder / "spec.yaml").write_text(head + cases + "\n", encoding="utf-8")

    def run(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        """Run, and return the JSON report with `starts` (processes started) and what was printed."""
        command = ["run", "spec.yaml", "-j", "1", *arguments]
        command += ["--json", "r.json"] if "--plan" not in arguments else []
        process = Command(command, self.folder, self.environment)
        stdout, stderr = process.communicate(timeout=240)
        assert process.returncode == code, stderr[-3000:]
        report: dict[str, Any] = json.loads((self.folder / "r.json").read_text()) if "--plan" not in arguments else {}
        starts = sum(session["starts"] for session in report.get("sessions", ()))
        return {**report, "starts": starts, "stdout": stdout, "told": stderr}

    def imported(self) -> set[str]:
        """Run in a fresh interpreter, and return what was imported."""
        command = [sys.executable, "-X", "importtime", "-m", "specrunner", "run", "spec.yaml", "-j", "1"]
        command += ["--json", "r.json"]
        done = subprocess.run(command, cwd=self.folder, env=self.environment, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr[-3000:]
        assert [session["why"] for session in json.loads((self.folder / "r.json").read_text())["sessions"]] == []
        return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "import time:" in line}


@pytest.fixture
def bench(tmp_path: Path, remembered: Path) -> Bench:
    place = make_workplace(tmp_path)
    cache = prepare_cache(tmp_path / "cache", remembered)
    settings = {"SPECRUNNER_NO_CACHE": "0", "SPECRUNNER_CACHE": str(cache)}
    return Bench(place.folder, {**place.environment, **settings})


def kept(report: dict[str, Any]) -> list[str]:
    return [case["kept"] for case in report["cases"]]


def verdicts(report: dict[str, Any]) -> list[str]:
    return [case["verdict"] for case in report["cases"]]


@pytest.mark.slow
def test_nothing_runs_again_until_something_changes(bench: Bench) -> None:
    bench.write_spec(["a", "b"])
    first = bench.run()
    assert (first["starts"], kept(first)) == (2, ["", ""])
    assert "runs because nothing of it is kept" not in bench.run("--plan")["stdout"]

    again = bench.run()
    assert (again["starts"], kept(again), verdicts(again)) == (0, ["verdict", "verdict"], ["passed", "passed"])
    assert {"specrunner.runner"} <= (imported := bench.imported())
    assert "torch" not in imported
    assert {"candidate", "checks", "reference"} <= set(again["cases"][0])
    for name in ("checks", "candidate", "reference", "diagnosis", "verdict"):
        assert again["cases"][0][name] == first["cases"][0][name]
    assert "2 verdicts kept" in again["stdout"]

    bench.write_spec(["a", "b"], rule="{allclose: {rtol: 1e-3, atol: 0}}")
    rule = bench.run()
    assert (rule["starts"], kept(rule)) == (0, ["captures", "captures"]), "another rule is judged on the same captures"

    bench.write_spec(["a", "b", "c"], rule="{allclose: {rtol: 1e-3, atol: 0}}")
    plan = bench.run("--plan")["stdout"]
    assert "1 request not asked before, or no longer kept (2 of 3 answers kept)" not in plan, "two verdicts are kept"
    assert "2 verdicts kept" in plan
    more = bench.run()
    assert (more["starts"], kept(more)) == (2, ["verdict", "verdict", ""])

    (bench.folder / "model" / "weights").write_text("other")
    assert bench.run("--plan")["stdout"].count("runs because changed since the last run: the model's files") == 2
    model = bench.run()
    assert (model["starts"], kept(model)) == (2, ["", "", ""])
    assert {session["why"] for session in model["sessions"]} == {"changed since the last run: the model's files"}

    assert bench.run("--no-cache")["starts"] == 2
    bench.environment["OMP_PROC_BIND"] = "true"
    assert bench.run()["starts"] == 2


@pytest.mark.slow
def test_a_failure_is_judged_again_and_an_error_asked_again(bench: Bench) -> None:
    bench.write_spec(["wrong", "raise", "fine"])
    first = bench.run(code=1)
    assert verdicts(first) == ["failed", "error", "passed"]
    again = bench.run(code=1)
    assert verdicts(again) == ["failed", "error", "passed"]
    assert kept(again) == ["captures", "", "verdict"]
    assert sorted((session["kept"], session["starts"]) for session in again["sessions"]) == [(1, 1), (2, 0)]
    assert again["cases"][0]["checks"] == first["cases"][0]["checks"]


@pytest.mark.slow
def test_what_is_damaged_is_made_again_and_said(bench: Bench) -> None:
    bench.write_spec(["a"])
    bench.run()
    store = Path(bench.environment["SPECRUNNER_CACHE"]) / "kept"
    for file in [*store.glob("verdicts/*/*"), *store.glob("captures/*/*/capture.json")]:
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content[:-1])
    again = bench.run()
    assert (again["starts"], kept(again)) == (2, [""])
    assert "3 kept entries were damaged or of another version, and made again" in again["told"]
    assert bench.run()["starts"] == 0


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_costs_no_verdict(bench: Bench, tmp_path: Path) -> None:
    bench.write_spec(["a"])
    shutil.rmtree(tmp_path / "cache" / "kept")
    (tmp_path / "cache" / "kept").write_text("in the way")
    report = bench.run()
    assert verdicts(report) == ["passed"]
    assert "could not be kept" in report["told"]


@pytest.mark.slow
def test_what_is_exported_serves_elsewhere(bench: Bench, tmp_path: Path, remembered: Path) -> None:
    def call(*arguments: str) -> str:
        process = Command(["cache", *arguments], bench.folder, bench.environment)
        stdout, stderr = process.communicate(timeout=240)
        assert process.returncode == 0, stderr
        return stdout

    bench.write_spec(["a"])
    bench.run()
    status = json.loads(call("status", "--json"))
    assert (status["captures"]["count"], status["verdicts"]["count"]) == (2, 1)
    assert "2 captures" in " ".join(call("status").split())
    call("export", str(tmp_path / "exported"))
    assert "0 B stay" in call("prune", "--all")
    assert bench.run("--plan")["stdout"].count("runs because nothing of it is kept") == 2
    bench.environment["SPECRUNNER_CACHE"] = str(prepare_cache(tmp_path / "elsewhere", remembered))
    call("import", str(tmp_path / "exported"))
    elsewhere = bench.run()
    assert kept(elsewhere) == ["verdict"], [session["why"] for session in elsewhere["sessions"]]


@pytest.mark.slow
def test_each_repeat_keeps_its_own_answer(bench: Bench) -> None:
    bench.write_spec(["alternating"])
    first = bench.run("--repeat", "2", "--no-cache", code=1)
    assert first["cases"][0]["message"].startswith("flaky: 1 of 2 repeats failed (repeat 2)")
    again = [bench.run("--repeat", "2", code=1) for _ in range(2)]
    assert [run["cases"][0]["message"] == first["cases"][0]["message"] for run in again] == [True, True]
    assert [run["starts"] > 0 for run in again] == [True, False], "both answers are kept, the wrong one among them"
    assert bench.run("--repeat", "3", code=1)["starts"] == 1, "the third is not, and the reference is"
