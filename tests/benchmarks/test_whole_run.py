"""A benchmark from the command line to the reports, on a small real model: kept answers, verdicts and exit statuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from specrunner.errors import ExitCode
from tests.benchmarks.questions import QUESTIONS
from tests.waiting import wait_for

pytestmark = [
    pytest.mark.slow,
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
    benchmark: {threshold: 0.1}
  - name: too-few
    benchmark: {threshold: 0.6, samples: [0, 1, 2, 3, 4, 5], compare: {mode: absolute, tolerance: 0.01}}
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


def run(
    folder: Path, *arguments: str, interrupt: bool = False, **variables: str
) -> tuple[int, dict[str, dict[str, Any]], str]:
    """Run a spec; with `interrupt`, only until the first batch of answers is kept. Returns status, cases and stderr."""
    root = str(Path(__file__).parents[2])
    environment = {
        **os.environ,
        "PYTHONPATH": root,
        "HF_HUB_OFFLINE": "1",
        "SPECRUNNER_CACHE": str(folder / "cache"),
        "SPECRUNNER_NO_CACHE": "0",
        **variables,
    }
    command = [sys.executable, "-m", "specrunner", "run", *arguments, "--json", "out.json"]
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    if interrupt:
        wait_for(lambda: process.poll() is not None or kept_answers(folder), "the first answers are kept")
        process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=300)
    report = json.loads((folder / "out.json").read_text(encoding="utf-8"))
    assert process.returncode == report["run"]["exit_code"], stderr
    return process.returncode, {case["name"]: case for case in report["cases"]}, stderr


def kept_answers(folder: Path) -> int:
    return sum(len(book.read_bytes().splitlines()) for book in (folder / "cache" / "answers").glob("*.jsonl"))


def test_a_benchmark_from_the_command_line(tmp_path: Path) -> None:
    many = [
        {**row, "id": f"{turn}-{row['id']}", "question": f"{turn}. {row['question']}"}
        for turn in range(15)
        for row in QUESTIONS
    ]
    lines = "".join(json.dumps(row) + "\n" for row in many)
    (tmp_path / "questions.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "s.yaml").write_text(SPEC, encoding="utf-8")
    status, cases, _ = run(tmp_path, "s.yaml", interrupt=True)
    assert (status, {case["verdict"] for case in cases.values()}) == (ExitCode.INTERRUPTED, {"error"})
    kept, asked = kept_answers(tmp_path), 15 * sum(len(row["choices"]["text"]) for row in QUESTIONS)
    assert 0 < kept < asked
    _, cases, stderr = run(tmp_path, "s.yaml", "-k", "too-few", ATEN_CPU_CAPABILITY="default")
    assert "interrupted run" not in stderr, "other kernels answer"
    status, cases, stderr = run(tmp_path, "s.yaml")
    (check,) = cases["measured"]["checks"]
    assert check["measurements"]["kept_answers"] == kept
    (fewer,) = cases["too-few"]["checks"]
    taken = kept + fewer["measurements"]["kept_answers"]
    assert f"{taken} answers were taken from an earlier, interrupted run" in stderr
    verdicts = {name: case["verdict"] for name, case in cases.items()}
    assert verdicts == {"measured": "passed", "too-few": "inconclusive", "out-of-reach": "failed"}
    assert status == 1
    assert "rules out no drop of 1 points" in str(cases["too-few"]["message"])

    kept = tmp_path / ".specrunner" / "benchmarks" / "s" / "measured[engine=hf].json"
    kept.rename(tmp_path / "kept.json")
    (tmp_path / "p.yaml").write_text(PAIRED, encoding="utf-8")
    status, cases, stderr = run(tmp_path, "p.yaml")
    assert (status, cases["again"]["verdict"]) == (0, "passed")
    assert "interrupted run" not in stderr, "a run that came to its end leaves nothing to the next"
