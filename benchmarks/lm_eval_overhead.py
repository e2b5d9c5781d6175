"""What a benchmark costs under specrunner: a run against the bare `lm_eval` command on the same questions.

    python benchmarks/lm_eval_overhead.py [--engine hf|vllm] [--task arc_easy] [--questions 100] [--rounds 3]

Both are whole commands with their start-up and the load of SmolLM2-135M in float32, with as many threads. They take
turns, and which goes first changes from round to round. Beside the wall time stands the processor time of all
processes, which other work on the machine disturbs less. The scores of both are compared, so that they are known to
have done the same. `--engine vllm` needs `--python`, an interpreter that has vllm and lm-eval.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from timing import Cost, time_processes

from specrunner.benchmark_record import read_record
from specrunner.benchmarks.data import choose_questions, load_questions
from specrunner.catalogue.tasks import TASKS
from specrunner.engines.vllm.options import plan_environment
from specrunner.errors import ExitCode
from specrunner.models.recipes import ensure_model
from specrunner.requests import Session
from specrunner.spec.model import Model

SPEC = """\
version: 1
model: {{recipe: smollm2-135m}}
engines: [{engine}]
timeout: 3600
cases:
  - name: asked
    benchmark: {{task: {task}, samples: {questions}, threshold: 1e-6}}
"""
TASK = """\
include: {definition}
task: {task}_offline
tag: []
dataset_path: json
dataset_name: null
dataset_kwargs: {{data_files: {{train: {data}, validation: {data}, test: {data}}}}}
"""


def write_task(folder: Path, name: str) -> int:
    """Write lm-eval's own definition of a task with the questions as a local file; return how many there are."""
    task = TASKS[name]
    (splits,) = load_questions(task).values()
    rows = splits[task.split]
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    package = find_spec("lm_eval")
    assert package is not None and package.origin is not None, "lm-eval is not installed"
    definition = Path(package.origin).parent / "tasks" / task.definition
    (folder / "tasks").mkdir()
    written = TASK.format(definition=definition, task=name, data=data)
    (folder / "tasks" / f"{name}.yaml").write_text(written, encoding="utf-8")
    return len(rows)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("hf", "vllm"), default="hf")
    parser.add_argument("--task", choices=("arc_easy", "arc_challenge", "hellaswag", "gsm8k_cot"), default="arc_easy")
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--python", default=sys.executable, help="the interpreter that runs the bare command")
    options = parser.parse_args()
    path = ensure_model(Model(recipe="smollm2-135m"))
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(options.threads)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        total = write_task(folder, options.task)
        chosen = choose_questions({"": total}, options.questions, 0, options.task)[""]
        spec = SPEC.format(engine=options.engine, task=options.task, questions=options.questions)
        (folder / "s.yaml").write_text(spec, encoding="utf-8")
        bare = [options.python, "-m", "lm_eval", "--model", options.engine, "--include_path", str(folder / "tasks")]
        arguments = f"pretrained={path},dtype=float32"
        bare += ["--device", "cpu", "--batch_size", "1"] if options.engine == "hf" else ["--batch_size", "auto"]
        settings: dict[str, str] = {}
        if options.engine == "vllm":
            # What the adapter sets as well: without it vLLM does not start in a container of two processors.
            arguments += ",enforce_eager=True,max_model_len=4096,kv_cache_memory_bytes=1073741824"
            session = Session("vllm", "", Model(recipe="smollm2-135m"), "float32", "cpu")
            settings = plan_environment(session, folder) | {"OMP_NUM_THREADS": str(options.threads)}
        bare += ["--model_args", arguments]
        bare += ["--tasks", f"{options.task}_offline", "--output_path", str(folder / "out"), "--log_samples"]
        bare += ["--samples", json.dumps({f"{options.task}_offline": chosen})]
        commands = {
            "specrunner run": (
                [sys.executable, "-m", "specrunner", "run", "s.yaml", "--no-cache"],
                {**environment, "PYTHONPATH": root},
                ExitCode.NOTHING_VERIFIED,  # measured only: a threshold that nothing could miss
            ),
            "lm_eval": (bare, environment | settings, 0),
        }
        costs: dict[str, list[Cost]] = {subject: [] for subject in commands}
        for number in range(options.rounds + 1):
            for subject, (command, variables, status) in sorted(commands.items(), reverse=bool(number % 2)):
                cost, _ = time_processes(command, variables, folder, status)
                print(f"round {number}, {subject}: {cost.wall:.1f} s, {cost.cpu:.1f} s of processors", file=sys.stderr)
                if number:  # the first round fills the page cache
                    costs[subject].append(cost)
        check_scores(folder, options.task)
    print(f"{options.engine}, {options.questions} questions of {options.task}, {options.threads} thread(s); medians, s")
    print(f"{'':<16}{'wall':>8}{'ratio':>8}{'cpu':>8}{'ratio':>8}")
    for subject, found in costs.items():
        columns = []
        for clock in ("wall", "cpu"):
            mine, theirs = ([getattr(cost, clock) for cost in them] for them in (found, costs["lm_eval"]))
            columns += [statistics.median(mine), statistics.median(a / b for a, b in zip(mine, theirs, strict=True))]
        print(f"{subject:<16}{columns[0]:>8.1f}{columns[1]:>8.3f}{columns[2]:>8.1f}{columns[3]:>8.3f}")


def check_scores(folder: Path, name: str) -> None:
    """Make sure that both have asked the same and come to the same score."""
    (kept,) = (folder / ".specrunner" / "benchmarks").rglob("*.json")
    (ours,) = read_record(kept).tasks
    results = max((folder / "out").rglob("results_*.json"), key=lambda path: path.stat().st_mtime)
    theirs = json.loads(results.read_text(encoding="utf-8"))["results"][f"{name}_offline"]
    key = ours.metric if "," in ours.metric else f"{ours.metric},none"
    if ours.score != theirs[key]:
        raise SystemExit(f"the scores differ: {ours.score} and {theirs[key]}")


if __name__ == "__main__":
    main()
