"""The `benchmark` field: what of it makes no sense, and the value made of one that does."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specrunner.catalogue.tasks import TASKS, needs_shots
from specrunner.spec.diagnostics import Report, accepted_values
from specrunner.spec.merge import Fields
from specrunner.spec.model import Baseline, Benchmark, Evaluation

_OTHER_INPUTS = ("prompt", "tensors", "tolerance", "tokens", "trajectory", "at", "batch", "golden")


def choose_mode(benchmark: Mapping[str, Any]) -> str | None:
    """Return how the score is judged: as stated, else `absolute` where there is a threshold."""
    mode = benchmark.get("compare", {}).get("mode")
    return mode if mode is not None else "absolute" if "threshold" in benchmark else None


def needs_reference(benchmark: Mapping[str, Any]) -> bool:
    """Tell whether the case is held against another engine's answers."""
    return choose_mode(benchmark) == "paired" and "file" not in benchmark.get("baseline", {})


def check_benchmark(fields: Fields, report: Report) -> bool:
    """Check the merged fields of a benchmark case; report what is wrong."""
    benchmark = fields["benchmark"]
    for other in _OTHER_INPUTS:
        if fields.get(other) not in (None, False):
            message = f"`benchmark` and `{other}` in one case"
            return report("conflicting-keys", message, "make them two cases", "benchmark", at_key=True)
    if "task" not in benchmark:
        advice = f"one of {', '.join(f'`{name}`' for name in TASKS)}, or a list of them"
        return report("missing-key", "the benchmark has no task", advice, "benchmark", at_key=True)
    tasks = task_names(benchmark)
    found = (
        _check_metric(benchmark, tasks, report),
        _check_questions(benchmark, tasks, report),
        _check_question_asked(benchmark, tasks, report),
    )
    if needs_reference(benchmark) and fields.get("reference") is None:
        advice = "e.g. `reference: {engine: hf, dtype: float32}`, or `baseline: {file: answers.json}`"
        return report("no-reference", "`mode: paired` has neither a reference nor a baseline's file", advice)
    return all(found)


def _check_metric(benchmark: Mapping[str, Any], tasks: tuple[str, ...], report: Report) -> bool:
    metric = benchmark.get("metric")
    for task in tasks:
        if metric is not None and metric not in TASKS[task].metrics:
            advice = accepted_values(metric, list(TASKS[task].metrics), "metrics")
            return report("bad-value", f"`{task}` has no metric `{metric}`", advice, "benchmark", "metric")
    return True


def _check_questions(benchmark: Mapping[str, Any], tasks: tuple[str, ...], report: Report) -> bool:
    data = benchmark.get("data", {})
    hub = data.get("hub", False)
    if hub and len(data) > 1:
        message = "questions come from the hub or from a file, not from both"
        return report("conflicting-keys", message, "take one of them out", "benchmark", "data", "hub", at_key=True)
    if data and "file" not in data and "hub" not in data:
        advice = "state the `file` of the questions as well"
        return report("missing-key", "`data` has no `file`", advice, "benchmark", "data", at_key=True)
    if "file" in data and len(tasks) > 1:
        message = "one file holds the questions of one task"
        return report("conflicting-keys", message, "make a case for each task", "benchmark", "data", at_key=True)
    if "likelihood" in benchmark and not any(TASKS[name].likelihood for name in tasks):
        message = f"`{tasks[0]}` generates its answers and compares no log-likelihoods"
        return report("conflicting-keys", message, "take `likelihood` out", "benchmark", "likelihood", at_key=True)
    for name in tasks:
        task = TASKS[name]
        here = hub or ("shots_file" in data if "file" in data else task.packaged_shots)
        if needs_shots(task, benchmark.get("num_fewshot")) and not here:
            shots = "num_fewshot" if "num_fewshot" in benchmark else "task"
            return report(
                "no-shots",
                f"the shots of `{name}` come from its {task.shots_split} split, which is not in the data",
                "state `num_fewshot: 0`, or `data` with a `shots_file` or `hub: true`"
                + (", or take `gsm8k_cot`, which carries its own" if name == "gsm8k" else ""),
                "benchmark",
                shots,
            )
    return True


def _check_question_asked(benchmark: Mapping[str, Any], tasks: tuple[str, ...], report: Report) -> bool:
    """Check that the score has a question to answer, with all that it needs and nothing besides."""
    mode, baseline = choose_mode(benchmark), benchmark.get("baseline", {})
    if mode is None:
        advice = "state a `threshold`, or `compare: {mode: recorded}` or `{mode: paired}`"
        return report("no-check", "nothing says when the score is good enough", advice, "benchmark", at_key=True)
    if (mode == "absolute") != ("threshold" in benchmark):
        said = "no `threshold`" if mode == "absolute" else "a `threshold`, which it does not use"
        advice = "`threshold` belongs to `mode: absolute`"
        return report("conflicting-keys", f"`mode: {mode}` has {said}", advice, "benchmark", at_key=True)
    if mode == "recorded" and not {"score", "samples"} <= set(baseline):
        advice = "e.g. `baseline: {score: 0.612, samples: 14042}`; the number of samples says how noisy the score is"
        return report("missing-key", "`mode: recorded` needs a score and its samples", advice, "benchmark", at_key=True)
    if mode == "recorded" and len(tasks) > 1:
        message = "one recorded score cannot judge several tasks"
        return report("conflicting-keys", message, "make a case for each task", "benchmark", "task")
    wrong = {"absolute": baseline, "recorded": "file" in baseline, "paired": {"score", "samples"} & set(baseline)}[mode]
    if wrong:
        advice = "`score` and `samples` belong to `mode: recorded`, `file` to `mode: paired`"
        message = f"this baseline means nothing to `mode: {mode}`"
        return report("conflicting-keys", message, advice, "benchmark", "baseline", at_key=True)
    if "max_abs_ll_diff" in benchmark.get("compare", {}):
        generated = [name for name in tasks if not TASKS[name].likelihood]
        if mode != "paired" or generated:
            why = (
                f"`{generated[0]}` has no log-likelihoods"
                if generated
                else f"`mode: {mode}` compares no single answers"
            )
            advice = "it belongs to `mode: paired` and to tasks that compare log-likelihoods"
            return report("conflicting-keys", why, advice, "benchmark", "compare", "max_abs_ll_diff", at_key=True)
    return True


def task_names(benchmark: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the tasks, one or several."""
    task = benchmark["task"]
    return (task,) if isinstance(task, str) else tuple(task)


def read_benchmark(benchmark: Mapping[str, Any], spec_path: str) -> Benchmark:
    """Make the value of a field that `check_benchmark` has let pass; relative files start at the spec."""
    compare, data, baseline, likelihood = (
        benchmark.get(name, {}) for name in ("compare", "data", "baseline", "likelihood")
    )
    samples = benchmark.get("samples")
    mode = choose_mode(benchmark)
    assert mode is not None, "a benchmark without a mode"

    def locate(path: str | None) -> str | None:
        if path is None:
            return None
        return Path(os.path.normpath(Path.cwd() / Path(spec_path).parent / path)).as_posix()

    evaluation = Evaluation(
        tasks=task_names(benchmark),
        metric=benchmark.get("metric"),
        samples=tuple(map(int, samples)) if isinstance(samples, list) else _whole(samples),
        seed=int(benchmark.get("seed", 0)),
        num_fewshot=_whole(benchmark.get("num_fewshot")),
        file=locate(data.get("file")),
        shots_file=locate(data.get("shots_file")),
        chat_template=benchmark.get("chat_template", False),
        add_bos_token=benchmark.get("add_bos_token"),
        max_length=_whole(benchmark.get("max_length")),
        max_gen_toks=_whole(benchmark.get("max_gen_toks")),
        mask_samples=_whole(likelihood.get("samples")),
        mask_block=int(likelihood.get("block_length", 32)),
        mask_token_id=_whole(likelihood.get("mask_token_id")),
        hub=data.get("hub", False),
    )
    recorded = Baseline(baseline.get("score"), _whole(baseline.get("samples")), locate(baseline.get("file")))
    return Benchmark(
        evaluation,
        mode,
        alpha=float(compare.get("alpha", 0.05)),
        threshold=benchmark.get("threshold"),
        tolerance=compare.get("tolerance"),
        max_abs_ll_diff=compare.get("max_abs_ll_diff"),
        baseline=recorded if baseline else None,
    )


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)
