"""A benchmark from the command line to the reports, on a small real model: kept answers, verdicts and exit statuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.benchmarks.questions import QUESTIONS

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(
        not all(map(find_spec, ("lm_eval", "glassllm", "torch"))), reason="lm-eval or glassllm is not installed"
    ),
]

SPEC = """\
version: 1
model: {recipe: glass-0.8m}
engines: [hf]
defaults:
  benchmark: {task: arc_easy, data: {file: questions.jsonl}}
cases:
  - name: measured
    benchmark: {threshold: 0.0}
  - name: too-few
    benchmark: {threshold: 0.6, compare: {mode: absolute, tolerance: 0.01}}
  - name: out-of-reach
    benchmark: {threshold: 1.0}
"""
PAIRED = """\
version: 1
model: {recipe: glass-0.8m}
engines: [hf]
cases:
  - name: again
    benchmark:
      task: arc_easy
      data: {file: questions.jsonl}
      baseline: {file: kept.json}
      compare: {mode: paired, max_abs_ll_diff: 1e-5}
"""


def run(folder: Path, *arguments: str) -> tuple[int, dict[str, dict[str, object]]]:
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1", "SPECRUNNER_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "specrunner", "run", *arguments, "--json", "out.json"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    report = json.loads((folder / "out.json").read_text(encoding="utf-8"))
    assert done.returncode == report["run"]["exit_code"], done.stderr
    return done.returncode, {case["name"]: case for case in report["cases"]}


def test_a_benchmark_from_the_command_line(tmp_path: Path) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in QUESTIONS)
    (tmp_path / "questions.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "s.yaml").write_text(SPEC, encoding="utf-8")
    status, cases = run(tmp_path, "s.yaml")
    verdicts = {name: case["verdict"] for name, case in cases.items()}
    assert verdicts == {"measured": "passed", "too-few": "inconclusive", "out-of-reach": "failed"}
    assert status == 1
    assert "rules out no drop of 1 points" in str(cases["too-few"]["message"])

    kept = tmp_path / ".specrunner" / "benchmarks" / "s" / "measured[engine=hf].json"
    kept.rename(tmp_path / "kept.json")
    (tmp_path / "p.yaml").write_text(PAIRED, encoding="utf-8")
    status, cases = run(tmp_path, "p.yaml")
    assert (status, cases["again"]["verdict"]) == (0, "passed")
