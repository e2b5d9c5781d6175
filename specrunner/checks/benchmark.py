"""The verdict on a benchmark: which question its score answers, and what the answer is; pure numbers, no I/O.

Evidence comes first. Two runs that were not asked the same thing, answers that are missing or cannot come from a model:
such a check has the rule `evidence`, and nothing else is compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a task's score is made of, as counts of questions.

    Attributes:
        samples: asked.
        correct: answered right; of no use where runs are paired.
        regressed: right in the baseline and wrong here, where runs are paired.
        improved: the other way round.
    """

    samples: int
    correct: int
    regressed: int = 0
    improved: int = 0


@dataclass(frozen=True, slots=True)
class _Worst:
    """What the worst score that a task could have come to would show.

    Attributes:
        lost: the right answers of the baseline, all of which it loses; None without a paired baseline.
        p: its p-value; adjusted (Holm) once the other tasks are known.
        drop_upper: the upper bound of its drop.
    """

    lost: int | None
    p: float
    drop_upper: float


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
        `p` is already adjusted for the number of tasks (Holm), and so is `worst_p`, that of the worst score there
        could be while the other tasks stay as they are. A score that even then would not fail is inconclusive, or a
        trend where the log-likelihoods decide.
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
    p_values = {name: measured["p"] for name, measured in judged.items()}
    adjusted = adjust_by_holm(p_values)
    results: list[CheckResult] = []
    for name, measured in judged.items():
        worst = _imagine_worst(benchmark, tasks[name], others.get(name))
        worst = replace(worst, p=adjust_by_holm({**p_values, name: worst.p})[name])
        measured |= {"p": adjusted[name], "worst_p": worst.p, "tasks": len(judged)}
        results.append(replace(_decide(benchmark, name, measured, worst), location=location))
        if benchmark.max_abs_ll_diff is not None:
            check = compare_likelihoods(tasks[name], others[name], benchmark.max_abs_ll_diff)
            results.append(replace(check, location=location))
    return results


def find_fault(record: TaskRecord | None, name: str) -> str | None:
    """Return why a task's answers are no evidence, or None.

    Args:
        record: the answers of one run to the task; log-likelihoods in nats, at most 0. None where there are none.
        name: the task's.
    """
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
    """Return what differs between the questions of two runs, or None: their answers can be compared one by one.

    Args:
        candidate: the answers of the engine under test.
        baseline: those that they are held against, to the same task, in any order.
    """
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
    """Return every question whose answer differs: both answers, the right one, both scores and both margins.

    Args:
        candidate: the answers of the engine under test.
        baseline: those that they are held against, to the same questions (`find_change`).

    Raises:
        KeyError: the baseline lacks a question.
    """
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
    """Hold every answer's log-likelihood against the baseline's.

    Args:
        candidate: the answers of the engine under test.
        baseline: those that they are held against, to the same questions (`find_change`).
        limit: the largest difference that passes, in nats, at least 0.

    Raises:
        KeyError: the baseline lacks a question.
        ValueError: it has another number of log-likelihoods for one.
    """
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
    outcome = _Outcome(samples, _count_right(candidate))
    alpha = benchmark.alpha
    low, high = bound_score(outcome.correct, samples, alpha)
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
        detectable = smallest_drop_below_floor(benchmark.threshold, samples, alpha)
    elif benchmark.mode == "recorded":
        recorded = benchmark.baseline
        assert recorded is not None and recorded.score is not None and recorded.samples is not None, "no record"
        detectable = smallest_drop_from_recorded(recorded.score, samples, recorded.samples, alpha)
    else:
        assert baseline is not None, "a paired benchmark without a baseline"
        theirs = {sample.id: sample.score for sample in baseline.samples}
        regressed = sum(sample.score < theirs[sample.id] for sample in candidate.samples)
        improved = sum(sample.score > theirs[sample.id] for sample in candidate.samples)
        outcome = replace(outcome, regressed=regressed, improved=improved)
        flips = find_flips(candidate, baseline)
        detectable = smallest_paired_drop((regressed + improved) / samples, samples, alpha)
        measured |= {
            "baseline_score": baseline.score,
            "regressed": regressed,
            "improved": improved,
            "flips": len(flips),
            "flipped": flips[:MOST_FLIPS],
        }
    return measured | _weigh(benchmark, outcome) | {"smallest_detectable_drop": detectable}


def _count_right(record: TaskRecord) -> int:
    return round(sum(sample.score for sample in record.samples))


def _weigh(benchmark: Benchmark, outcome: _Outcome) -> dict[str, float]:
    """Return the drop of a score, its bounds at the benchmark's alpha, and the p-value of "there is none"."""
    samples, correct, alpha = outcome.samples, outcome.correct, benchmark.alpha
    if benchmark.mode == "absolute":
        assert benchmark.threshold is not None, "an absolute benchmark without a threshold"
        floor = benchmark.threshold
        low, high = bound_score(correct, samples, alpha)
        drop, bounds = floor - correct / samples, (floor - high, floor - low)
        p = weigh_against_floor(correct, samples, floor)
    elif benchmark.mode == "recorded":
        recorded = benchmark.baseline
        assert recorded is not None and recorded.score is not None and recorded.samples is not None, "no record"
        there = round(recorded.score * recorded.samples)
        drop = recorded.score - correct / samples
        bounds = bound_recorded_drop(correct, samples, there, recorded.samples, alpha)
        p = weigh_against_recorded(correct, samples, there, recorded.samples)
    else:
        drop = (outcome.regressed - outcome.improved) / samples
        bounds = bound_paired_drop(outcome.regressed, outcome.improved, samples, alpha)
        p = weigh_pairs(outcome.regressed, outcome.improved)
    return {"drop": drop, "drop_lower": bounds[0], "drop_upper": bounds[1], "p": p}


def _imagine_worst(benchmark: Benchmark, candidate: TaskRecord, baseline: TaskRecord | None) -> _Worst:
    """Weigh the score without a right answer; where runs are paired, that loses all the right ones of the baseline.

    In every mode the p-value rises and the upper bound of the drop falls with each right answer, so that no score fails
    where this one does not.
    """
    lost = _count_right(baseline) if benchmark.mode == "paired" and baseline is not None else None
    weighed = _weigh(benchmark, _Outcome(len(candidate.samples), 0, regressed=lost or 0))
    return _Worst(lost, weighed["p"], weighed["drop_upper"])


def _decide(benchmark: Benchmark, name: str, measured: dict[str, Any], worst: _Worst) -> CheckResult:
    """Settle one task: failed, passed or inconclusive.

    What no score could fail is no gate, and a pass would say nothing. With a tolerance, a drop larger than it must be
    ruled out, at the same alpha (non-inferiority). A significant drop that is provably smaller than the tolerance
    passes; one that is not fails; where neither can be shown, the evidence is too small.
    """
    tolerance = benchmark.tolerance
    limits: dict[str, Any] = {"mode": benchmark.mode, "alpha": benchmark.alpha}
    limits |= {} if benchmark.threshold is None else {"threshold": benchmark.threshold}
    limits |= {} if tolerance is None else {"tolerance": tolerance}
    if benchmark.mode == "recorded" and benchmark.baseline is not None:
        limits |= {"score": benchmark.baseline.score, "samples": benchmark.baseline.samples}
    against = "reference" if benchmark.mode == "paired" else ""
    score = f"{measured['metric']} {measured['score']:.4f} of {measured['samples']} questions"
    why = _find_hindrance(benchmark, worst)
    if why is not None:
        measured["smallest_detectable_drop"] = None
        message = f"{score} says nothing, for no score could fail: {why}"
        decisive = benchmark.max_abs_ll_diff is None  # otherwise the log-likelihoods are a gate that can fail
        return CheckResult(
            name, "benchmark", False, message, measured, limits, gates=decisive, against=against, inconclusive=decisive
        )
    significant = measured["p"] <= benchmark.alpha
    ruled_out = tolerance is None or measured["drop_upper"] <= tolerance
    if ruled_out and not (significant and tolerance is None):
        return CheckResult(name, "benchmark", True, "", measured, limits, against=against)
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


def _find_hindrance(benchmark: Benchmark, worst: _Worst) -> str | None:
    """Return why even the worst score would not fail, and what helps; None where it would."""
    if worst.lost is None:
        worst_case = "if every answer were wrong"
    elif worst.lost:
        worst_case = f"if all {worst.lost} right answers of the baseline were lost"
    else:
        return "the baseline has no right answer to lose; ask more questions, or easier ones"
    if worst.p > benchmark.alpha:
        return f"{worst_case}, p would be {worst.p:.2g}; ask more questions"
    tolerance = benchmark.tolerance
    if tolerance is not None and worst.drop_upper <= tolerance:
        return f"{worst_case}, that would be within the tolerance of {100 * tolerance:.3g} points; state a smaller one"
    return None


def _describe_null(benchmark: Benchmark, measured: Mapping[str, Any]) -> str:
    if benchmark.mode == "absolute":
        return f"below the threshold {benchmark.threshold:g}"
    if benchmark.mode == "recorded" and benchmark.baseline is not None:
        return f"below the recorded {benchmark.baseline.score:g} of {benchmark.baseline.samples} questions"
    return f"worse than the baseline, {measured['regressed']} answers lost and {measured['improved']} won"
