"""The judging of a benchmark: which file is read, which is written, and in which order."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from specrunner.benchmark_record import BenchmarkRecord, Sample, TaskRecord, locate_answers, read_record, write_record
from specrunner.judging import check_answers
from specrunner.results import CheckResult
from specrunner.sessions.captures import StoredCapture
from specrunner.spec.loader import load_specs

SPEC = """\
version: 1
model: {recipe: glass-0.8m}
engines: [hf]
cases:
  - name: c
    benchmark: {task: mmlu, compare: {mode: paired}, baseline: {file: FILE}}
"""


def make_record(score: float) -> BenchmarkRecord:
    samples = tuple(Sample(str(index), "p", score, "a", "a", ((9, 2),)) for index in range(40))
    return BenchmarkRecord((TaskRecord("mmlu", "acc", score, 99, "data", "definition", "", samples),))


def judge(file: str, candidate: Path) -> CheckResult:
    Path("x.yaml").write_text(SPEC.replace("FILE", file), encoding="utf-8")
    (case,) = load_specs(["x.yaml"]).require_valid()
    assert case.benchmark is not None
    captures = {"candidate": StoredCapture(None, (), (), None, {}, candidate)}
    (check,) = check_answers(case, case.benchmark, captures)
    return check


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return locate_answers("x", "c[engine=hf]")


@pytest.mark.parametrize("copied", [True, False])
def test_a_baseline_is_read_before_the_answers_are_kept(kept: Path, tmp_path: Path, copied: bool) -> None:
    kept.parent.mkdir(parents=True)
    write_record(make_record(1.0), kept)
    write_record(make_record(0.0), tmp_path / "candidate.json")
    baseline = Path(shutil.copyfile(kept, tmp_path / "baseline.json")) if copied else kept
    check = judge(f"'{baseline}'", tmp_path / "candidate.json")
    assert (check.fails, check.measurements["baseline_score"], check.measurements["score"]) == (True, 1.0, 0.0)
    assert read_record(kept).tasks == make_record(0.0).tasks


def test_answers_are_kept_also_where_there_is_no_baseline_yet(kept: Path, tmp_path: Path) -> None:
    write_record(make_record(1.0), tmp_path / "candidate.json")
    check = judge("none.json", tmp_path / "candidate.json")
    assert (check.rule, check.fails) == ("evidence", True)
    assert read_record(kept).tasks == make_record(1.0).tasks
