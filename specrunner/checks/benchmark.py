"""The verdict on a benchmark: which question its score answers, and what the answer is; pure numbers, no I/O.

Evidence comes first. Two runs that were not asked the same thing, answers that are missing or cannot come from a model:
such a check has the rule `evidence`, and nothing else is compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from specrunner.benchmark_record import TaskRecord
from specrunner.checks.statistics import (
    adjust_by_holm,
    bound_paired_drop,
    bound_recorded_drop,
    bound_score,
    smallest_drop_below_floor,
    smallest_drop_from_recorded,
    smallest_paired_drop,
    weigh_against_floor,
    weigh_against_recorded,
    weigh_pairs,
)
from specrunner.results import CheckResult
from specrunner.spec.model import Benchmark

MOST_FLIPS = 32
"""Flips that are told one by one."""


def check_benchmark(
    benchmark: Benchmark, candidate: Sequence[TaskRecord], baseline: Sequence[TaskRecord] | None, location: str = ""
) -> list[CheckResult]:
    """Judge a benchmark.

    Args:
        benchmark: the question asked of the score.
        candidate: the answers of the engine under test, one record a task.
        baseline: for `paired`, the answers that they are held against.
        location: `specs/x.yaml:12`.

    Returns:
        Two checks a task at most: `benchmark` (the score) and `log_likelihoods` (where their difference is limited).
        `p` is already adjusted for the number of tasks (Holm).
    """
    tasks = {record.task: record for record in candidate}
    others = {record.task: record for record in baseline or ()}
    evidence: list[CheckResult] = []
    for name in benchmark.evaluation.tasks:
        reason = find_fault(tasks.get(name), name)
        if reason is None and benchmark.mode == "paired":
            reason = find_fault(others.get(name), name) or find_change(tasks[name], others[name])
        if reason is not None:
            evidence.append(CheckResult(name, "evidence", False, reason, {}, {}, location, against=""))
    if evidence:
        return evidence
    judged = {name: _measure(benchmark, tasks[name], others.get(name)) for name in benchmark.evaluation.tasks}
    adjusted = adjust_by_holm({name: measured["p"] for name, measured in judged.items()})
    results: list[CheckResult] = []
    for name, measured in judged.items():
        measured["p"] = adjusted[name]
        measured["tasks"] = len(judged)
        results.append(replace(_decide(benchmark, name, measured), location=location))
        if benchmark.max_abs_ll_diff is not None:
            check = compare_likelihoods(tasks[name], others[name], benchmark.max_abs_ll_diff)
            results.append(replace(check, location=location))
    return results


def find_fault(record: TaskRecord | None, name: str) -> str | None:
    """Return why a task's answers are no evidence, or None."""
    if record is None:
        return f"there are no answers to {name}"
    if not record.samples:
        return "no question was answered"
    if any(not math.isfinite(sample.score) for sample in record.samples):
        return "a score is not a number"
    logprobs = [value for sample in record.samples for value in sample.logprobs]
    if any(not math.isfinite(value) for value in logprobs):
        return "a log-likelihood is not a finite number"
    if len(logprobs) > 1 and not any(logprobs):
        return f"all {len(logprobs)} log-likelihoods are 0.0: the engine does not compute them"
    if any(value > 0 for value in logprobs):
        return f"a log-likelihood is {max(logprobs):.3g}, and a probability is never above 1"
    return None


def find_change(candidate: TaskRecord, baseline: TaskRecord) -> str | None:
    """Return what differs between the questions of two runs, or None: their answers can be compared one by one."""
    names = {
        "metric": "the metric",
        "data": "the questions' data",
        "definition": "the task's definition, its shots or lm-eval's version",
        "template": "the chat template",
    }
    for field, what in names.items():
        if getattr(candidate, field) != getattr(baseline, field):
            return f"{what} changed since the baseline"
    theirs = {sample.id: sample for sample in baseline.samples}
    missing = [sample.id for sample in candidate.samples if sample.id not in theirs]
    if missing or len(theirs) != len(candidate.samples):
        return f"the baseline has {len(theirs)} questions and the candidate {len(candidate.samples)}" + (
            f"; question {missing[0]} is not in the baseline" if missing else ""
        )
    for sample in candidate.samples:
        other = theirs[sample.id]
        if sample.prompt != other.prompt:
            return f"the prompt of question {sample.id} changed since the baseline"
        if [list(pair) for pair in sample.tokens] != [list(pair) for pair in other.tokens]:
            return (
                f"question {sample.id} has other token counts than in the baseline: "
                f"{[sum(pair) for pair in sample.tokens]}, not {[sum(pair) for pair in other.tokens]}"
            )
        if len(sample.logprobs) != len(other.logprobs):
            return f"question {sample.id} has another number of answers than in the baseline"
    return None


def find_flips(candidate: TaskRecord, baseline: TaskRecord) -> list[dict[str, Any]]:
    """Return every question whose answer differs: both answers, the right one, and both margins."""
    theirs = {sample.id: sample for sample in baseline.samples}
    return [
        {
            "question": sample.id,
            "candidate": sample.answer,
            "baseline": theirs[sample.id].answer,
            "target": sample.target,
            "candidate_score": sample.score,
            "baseline_score": theirs[sample.id].score,
            "candidate_margin": sample.margin,
            "baseline_margin": theirs[sample.id].margin,
        }
        for sample in candidate.samples
        if sample.answer != theirs[sample.id].answer or sample.score != theirs[sample.id].score
    ]


def compare_likelihoods(candidate: TaskRecord, baseline: TaskRecord, limit: float) -> CheckResult:
    """Hold every answer's log-likelihood against the baseline's, in nats."""
    theirs = {sample.id: sample for sample in baseline.samples}
    worst, question, compared = 0.0, "", 0
    for sample in candidate.samples:
        for here, there in zip(sample.logprobs, theirs[sample.id].logprobs, strict=True):
            compared += 1
            if abs(here - there) > worst or not question:
                worst, question = abs(here - there), sample.id
    flips = find_flips(candidate, baseline)
    measured = {"max_abs_ll_diff": worst, "question": question, "compared": compared, "flips": len(flips)}
    message = "" if worst <= limit else f"a log-likelihood of question {question} differs by {worst:.3g} nats"
    if not compared:
        message = "compared nothing: the answers have no log-likelihoods"
    return CheckResult(candidate.task, "log_likelihoods", not message, message, measured, {"max_abs_ll_diff": limit})


def _measure(benchmark: Benchmark, candidate: TaskRecord, baseline: TaskRecord | None) -> dict[str, Any]:
    """Return everything measured of one task; `p` is still its own."""
    samples = len(candidate.samples)
    correct = round(sum(sample.score for sample in candidate.samples))
    alpha = benchmark.alpha
    low, high = bound_score(correct, samples, alpha)
    measured: dict[str, Any] = {
        "score": candidate.score,
        "metric": candidate.metric,
        "samples": samples,
        "population": candidate.population,
        "score_lower": low,
        "score_upper": high,
    }
    if candidate.kept_answers:
        measured["kept_answers"] = candidate.kept_answers
    if benchmark.mode == "absolute":
        assert benchmark.threshold is not None, "an absolute benchmark without a threshold"
        floor = benchmark.threshold
        drop, bounds = floor - correct / samples, (floor - high, floor - low)
        p = weigh_against_floor(correct, samples, floor)
        detectable = smallest_drop_below_floor(floor, samples, alpha)
    elif benchmark.mode == "recorded":
        recorded = benchmark.baseline
        assert recorded is not None and recorded.score is not None and recorded.samples is not None, "no record"
        there = round(recorded.score * recorded.samples)
        drop = recorded.score - correct / samples
        bounds = bound_recorded_drop(correct, samples, there, recorded.samples, alpha)
        p = weigh_against_recorded(correct, samples, there, recorded.samples)
        detectable = smallest_drop_from_recorded(recorded.score, samples, recorded.samples, alpha)
    else:
        assert baseline is not None, "a paired benchmark without a baseline"
        theirs = {sample.id: sample.score for sample in baseline.samples}
        regressed = sum(sample.score < theirs[sample.id] for sample in candidate.samples)
        improved = sum(sample.score > theirs[sample.id] for sample in candidate.samples)
        drop = (regressed - improved) / samples
        bounds = bound_paired_drop(regressed, improved, samples, alpha)
        p = weigh_pairs(regressed, improved)
        flips = find_flips(candidate, baseline)
        detectable = smallest_paired_drop((regressed + improved) / samples, samples, alpha)
        measured |= {
            "baseline_score": baseline.score,
            "regressed": regressed,
            "improved": improved,
            "flips": len(flips),
            "flipped": flips[:MOST_FLIPS],
        }
    return measured | {
        "drop": drop,
        "drop_lower": bounds[0],
        "drop_upper": bounds[1],
        "p": p,
        "smallest_detectable_drop": detectable,
    }


def _decide(benchmark: Benchmark, name: str, measured: Mapping[str, Any]) -> CheckResult:
    """Settle one task: failed, passed or inconclusive.

    With a tolerance, a drop larger than it must be ruled out, at the same alpha (non-inferiority). A significant drop
    that is provably smaller than the tolerance passes; one that is not fails; where neither can be shown, the evidence
    is too small.
    """
    tolerance = benchmark.tolerance
    limits: dict[str, Any] = {"mode": benchmark.mode, "alpha": benchmark.alpha}
    limits |= {} if benchmark.threshold is None else {"threshold": benchmark.threshold}
    limits |= {} if tolerance is None else {"tolerance": tolerance}
    if benchmark.mode == "recorded" and benchmark.baseline is not None:
        limits |= {"score": benchmark.baseline.score, "samples": benchmark.baseline.samples}
    against = "reference" if benchmark.mode == "paired" else ""
    significant = measured["p"] <= benchmark.alpha
    ruled_out = tolerance is None or measured["drop_upper"] <= tolerance
    if ruled_out and not (significant and tolerance is None):
        return CheckResult(name, "benchmark", True, "", measured, limits, against=against)
    score = f"{measured['metric']} {measured['score']:.4f} of {measured['samples']} questions"
    if significant:
        message = f"{score} is {_describe_null(benchmark, measured)}: p = {measured['p']:.2g}"
        return CheckResult(name, "benchmark", False, message, measured, limits, against=against)
    seen = measured["smallest_detectable_drop"]
    assert tolerance is not None, "inconclusive without a tolerance"
    message = (
        f"{score} rules out no drop of {100 * tolerance:.3g} points; "
        + (f"this many can detect {100 * seen:.3g} points" if seen is not None else "too few answers differ to tell")
        + f", and the drop may be up to {100 * measured['drop_upper']:.3g}"
    )
    return CheckResult(name, "benchmark", False, message, measured, limits, against=against, inconclusive=True)


def _describe_null(benchmark: Benchmark, measured: Mapping[str, Any]) -> str:
    if benchmark.mode == "absolute":
        return f"below the threshold {benchmark.threshold:g}"
    if benchmark.mode == "recorded" and benchmark.baseline is not None:
        return f"below the recorded {benchmark.baseline.score:g} of {benchmark.baseline.samples} questions"
    return f"worse than the baseline, {measured['regressed']} answers lost and {measured['improved']} won"
