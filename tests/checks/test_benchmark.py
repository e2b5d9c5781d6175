"""The verdict on a benchmark: in each mode a degraded candidate, a healthy one, and evidence that is none."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from specrunner.benchmark_record import Sample, TaskRecord
from specrunner.checks.benchmark import check_benchmark, find_flips
from specrunner.results import CheckResult
from specrunner.spec.model import Baseline, Benchmark, Evaluation

LLS = (-1.0, -2.0, -3.0, -4.0)


def make_task(scores: Sequence[float], name: str = "arc_easy", **changes: object) -> TaskRecord:
    samples = tuple(
        Sample(str(index), f"p{index}", score, "0" if score else "1", "0", ((9, 2),) * 4, LLS, 1.0)
        for index, score in enumerate(scores)
    )
    made = TaskRecord(name, "acc", sum(scores) / len(scores), 2376, "data", "definition", "", samples)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def change_sample(task: TaskRecord, index: int, **changes: object) -> TaskRecord:
    samples = list(task.samples)
    samples[index] = dataclasses.replace(samples[index], **changes)  # type: ignore[arg-type]
    return dataclasses.replace(task, samples=tuple(samples))


def make_benchmark(mode: str, *tasks: str, **fields: object) -> Benchmark:
    return Benchmark(Evaluation(tasks or ("arc_easy",)), mode, **fields)  # type: ignore[arg-type]


def flip(scores: list[float], lost: int, won: int = 0) -> list[float]:
    """Lose the first right answers, win the first wrong ones."""
    right = [index for index, score in enumerate(scores) if score][:lost]
    wrong = [index for index, score in enumerate(scores) if not score][:won]
    return [1.0 - score if index in {*right, *wrong} else score for index, score in enumerate(scores)]


SCORES = [1.0] * 300 + [0.0] * 200
PAIRED = make_benchmark("paired")


def judge(benchmark: Benchmark, candidate: list[float], baseline: list[float] | None = None) -> str:
    (check,) = check_benchmark(
        benchmark, [make_task(candidate)], None if baseline is None else [make_task(baseline)], "s.yaml:3"
    )
    assert check.rule == "benchmark" and check.location == "s.yaml:3"
    assert bool(check.message) != check.passed
    return "inconclusive" if check.inconclusive else "passed" if check.passed else "failed"


@pytest.mark.parametrize(
    ("right", "threshold", "tolerance", "verdict"),
    [
        (300, 0.60, None, "passed"),
        (285, 0.60, None, "passed"),  # 57 %: below, and within the noise of 500 questions
        (270, 0.60, None, "failed"),
        (300, 0.60, 0.05, "passed"),
        (300, 0.60, 0.03, "inconclusive"),  # 3.6 points below cannot be ruled out
        (320, 0.60, 0.03, "passed"),
        (270, 0.60, 0.2, "passed"),  # a drop, and provably less than the tolerance
        (270, 0.60, 0.03, "failed"),
        (0, 0.25, None, "failed"),
        (500, 1.0, None, "passed"),
    ],
)
def test_a_floor(right: int, threshold: float, tolerance: float | None, verdict: str) -> None:
    benchmark = make_benchmark("absolute", threshold=threshold, tolerance=tolerance)
    assert judge(benchmark, [1.0] * right + [0.0] * (500 - right)) == verdict


@pytest.mark.parametrize(
    ("right", "samples", "verdict"), [(262, 10_000, "failed"), (262, 500, "failed"), (262, 60, "passed")]
)
def test_a_recorded_score_has_noise_of_its_own(right: int, samples: int, verdict: str) -> None:
    benchmark = make_benchmark("recorded", baseline=Baseline(0.6, samples))
    assert judge(benchmark, [1.0] * right + [0.0] * (500 - right)) == verdict


@pytest.mark.parametrize(
    ("lost", "won", "tolerance", "verdict"),
    [
        (0, 0, None, "passed"),
        (5, 5, None, "passed"),
        (12, 2, None, "failed"),
        (0, 0, 0.01, "passed"),
        (5, 5, 0.02, "passed"),
        (15, 15, 0.01, "inconclusive"),
        (12, 2, 0.01, "failed"),
        (12, 2, 0.10, "passed"),
    ],
)
def test_paired_answers(lost: int, won: int, tolerance: float | None, verdict: str) -> None:
    assert judge(dataclasses.replace(PAIRED, tolerance=tolerance), flip(SCORES, lost, won), SCORES) == verdict


def test_paired_sees_what_a_recorded_score_cannot() -> None:
    degraded = flip(SCORES, 15, 3)
    assert judge(PAIRED, degraded, SCORES) == "failed"
    assert judge(make_benchmark("recorded", baseline=Baseline(0.6, 500)), degraded) == "passed"


def test_a_failure_says_which_question_was_asked() -> None:
    (check,) = check_benchmark(PAIRED, [make_task(flip(SCORES, 12, 2))], [make_task(SCORES)])
    assert check.message == (
        "acc 0.5800 of 500 questions is worse than the baseline, 12 answers lost and 2 won: p = 0.0065"
    )
    assert check.against == "reference"
    assert check.measurements["flips"] == 14 == len(check.measurements["flipped"])
    assert check.measurements["flipped"][0]["question"] == "0"


def test_holm_keeps_one_alpha_over_all_tasks() -> None:
    names = ("mmlu", "hellaswag", "arc_easy")
    benchmark = make_benchmark("paired", *names)
    baseline = [make_task(SCORES, name) for name in names]
    degraded = [make_task(flip(SCORES, 8, 1), "mmlu"), *baseline[1:]]
    alone = check_benchmark(make_benchmark("paired", "mmlu"), degraded[:1], baseline[:1])
    together = check_benchmark(benchmark, degraded, baseline)
    assert [check.passed for check in alone] == [False]
    assert [check.passed for check in together] == [True, True, True]
    assert together[0].measurements["p"] == pytest.approx(3 * alone[0].measurements["p"])


@pytest.mark.parametrize("tolerance", [None, 0.05])
@pytest.mark.parametrize("mode", ["absolute", "recorded", "paired"])
def test_without_a_change_the_verdict_alarms_no_more_often_than_stated(mode: str, tolerance: float | None) -> None:
    """500 runs of a model whose true score is 60 %; where runs are paired, 4 % of the answers differ by chance."""
    generator = np.random.default_rng(5)
    runs, samples = 500, 100
    fields: dict[str, object] = {"threshold": 0.6} if mode == "absolute" else {}
    alarms = 0
    truth = generator.random((runs, samples)) < 0.6
    noise = generator.random((2, runs, samples)) < 0.04
    recorded = generator.binomial(2 * samples, 0.6, runs) / (2 * samples)
    for run in range(runs):
        if mode == "recorded":
            fields = {"baseline": Baseline(float(recorded[run]), 2 * samples)}
        baseline, candidate = ((truth[run] ^ noise[side, run]).astype(float).tolist() for side in range(2))
        if mode != "paired":
            candidate, baseline = truth[run].astype(float).tolist(), None
        verdict = judge(make_benchmark(mode, tolerance=tolerance, **fields), candidate, baseline)
        alarms += verdict == "failed"
    assert alarms / runs <= PAIRED.alpha


def test_without_a_change_three_tasks_together_alarm_no_more_often_than_one() -> None:
    generator = np.random.default_rng(6)
    names = ("mmlu", "hellaswag", "arc_easy")
    benchmark, alone = make_benchmark("absolute", *names, threshold=0.6), make_benchmark("absolute", threshold=0.6)
    alarms = single = 0
    for scores in generator.random((500, 3, 100)) < 0.6:
        tasks = [make_task(row.astype(float).tolist(), name) for row, name in zip(scores, names, strict=True)]
        alarms += not all(check.passed for check in check_benchmark(benchmark, tasks, None))
        single += any(
            not check_benchmark(alone, [dataclasses.replace(task, task="arc_easy")], None)[0].passed for task in tasks
        )
    assert alarms / 500 <= benchmark.alpha < single / 500, "without Holm, three tasks alarm more often"


def test_log_likelihoods_are_a_sharper_gate() -> None:
    benchmark = dataclasses.replace(PAIRED, max_abs_ll_diff=1e-3)
    baseline = make_task(SCORES)
    near = change_sample(baseline, 7, logprobs=(-1.0, -2.0009, -3.0, -4.0))
    far = change_sample(baseline, 7, logprobs=(-1.0, -2.002, -3.0, -4.0))
    assert [check.passed for check in check_benchmark(benchmark, [near], [baseline])] == [True, True]
    score, likelihoods = check_benchmark(benchmark, [far], [baseline])
    assert score.passed and not likelihoods.passed
    assert likelihoods.message == "a log-likelihood of question 7 differs by 0.002 nats"
    assert likelihoods.measurements["compared"] == 2000


def test_a_flip_without_a_change_of_score_is_told() -> None:
    baseline = make_task([0.0, 1.0])
    changed = change_sample(baseline, 0, answer="3", margin=0.01)
    (told,) = find_flips(changed, baseline)
    assert (told["question"], told["candidate"], told["baseline"], told["target"]) == ("0", "3", "1", "0")
    assert (told["candidate_margin"], told["baseline_margin"]) == (0.01, 1.0)


BASE = make_task(SCORES)
EMPTY = dataclasses.replace(BASE, samples=())


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        (EMPTY, "no question was answered"),
        (dataclasses.replace(BASE, samples=BASE.samples[1:]), "the baseline has 500 questions and the candidate 499"),
        (change_sample(BASE, 3, id="x"), "question x is not in the baseline"),
        (change_sample(BASE, 3, prompt="q"), "the prompt of question 3 changed"),
        (change_sample(BASE, 3, tokens=((10, 2),) * 4), r"question 3 has other token counts .*\[12, 12, 12, 12\], not"),
        (change_sample(BASE, 3, logprobs=(-1.0,)), "another number of answers"),
        (change_sample(BASE, 3, logprobs=(float("nan"),) * 4), "not a finite number"),
        (change_sample(BASE, 3, logprobs=(0.5, -1.0, -1.0, -1.0)), "a probability is never above 1"),
        (change_sample(BASE, 3, score=float("nan")), "a score is not a number"),
        (dataclasses.replace(BASE, data="other"), "the questions' data changed"),
        (dataclasses.replace(BASE, definition="other"), "the task's definition, its shots or lm-eval's version"),
        (dataclasses.replace(BASE, template="other"), "the chat template changed"),
        (dataclasses.replace(BASE, metric="acc_norm"), "the metric changed"),
        (
            dataclasses.replace(
                BASE, samples=tuple(dataclasses.replace(sample, logprobs=(0.0,) * 4) for sample in BASE.samples)
            ),
            r"all 2000 log-likelihoods are 0\.0",
        ),
    ],
)
def test_what_is_no_evidence(candidate: TaskRecord, message: str) -> None:
    (check,) = check_benchmark(dataclasses.replace(PAIRED, max_abs_ll_diff=1.0), [candidate], [BASE])
    assert check.rule == "evidence" and check.fails
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(check.message)


def test_a_task_without_answers_is_no_evidence() -> None:
    found = check_benchmark(make_benchmark("absolute", "mmlu", "arc_easy", threshold=0.1), [BASE], None)
    assert [(check.subject, check.rule, check.message) for check in found] == [
        ("mmlu", "evidence", "there are no answers to mmlu")
    ]


def test_likelihoods_of_nothing_are_not_compared() -> None:
    benchmark = dataclasses.replace(PAIRED, max_abs_ll_diff=1.0)
    silent = dataclasses.replace(
        BASE, samples=tuple(dataclasses.replace(sample, logprobs=()) for sample in BASE.samples)
    )
    _, likelihoods = check_benchmark(benchmark, [silent], [silent])
    assert (likelihoods.passed, likelihoods.message) == (
        False,
        "compared nothing: the answers have no log-likelihoods",
    )
    same, likelihoods = check_benchmark(dataclasses.replace(PAIRED, max_abs_ll_diff=0.0), [BASE], [BASE])
    assert same.passed and likelihoods.passed
    assert (likelihoods.measurements["max_abs_ll_diff"], likelihoods.measurements["flips"]) == (0.0, 0)


def measured_of(benchmark: Benchmark, candidate: TaskRecord, baseline: TaskRecord | None = None) -> CheckResult:
    (check,) = check_benchmark(benchmark, [candidate], None if baseline is None else [baseline])
    return check


def test_each_mode_states_its_question_its_limits_and_its_numbers() -> None:
    right = [1.0] * 240 + [0.0] * 260
    floor = measured_of(make_benchmark("absolute", threshold=0.6, tolerance=0.2), make_task(right))
    assert floor.limits == {"mode": "absolute", "alpha": floor.limits["alpha"], "threshold": 0.6, "tolerance": 0.2}
    numbers = floor.measurements
    assert (numbers["score"], numbers["samples"], numbers["population"], numbers["tasks"]) == (0.48, 500, 2376, 1)
    assert numbers["drop"] == pytest.approx(0.12)
    assert numbers["drop_lower"] == pytest.approx(0.6 - numbers["score_upper"])
    assert numbers["drop_upper"] == pytest.approx(0.6 - numbers["score_lower"])
    assert numbers["score_lower"] < 0.48 < numbers["score_upper"]
    assert (floor.passed, floor.against, "kept_answers" in numbers) == (True, "", False)
    failed = measured_of(make_benchmark("absolute", threshold=0.6), make_task(right, kept_answers=3))
    assert failed.message.startswith("acc 0.4800 of 500 questions is below the threshold 0.6: p = ")
    assert (failed.limits.keys(), failed.measurements["kept_answers"]) == ({"mode", "alpha", "threshold"}, 3)
    recorded = measured_of(make_benchmark("recorded", baseline=Baseline(0.6, 1000)), make_task(right))
    assert recorded.message.startswith("acc 0.4800 of 500 questions is below the recorded 0.6 of 1000 questions: p = ")
    assert recorded.limits == {"mode": "recorded", "alpha": recorded.limits["alpha"], "score": 0.6, "samples": 1000}
    assert (recorded.against, recorded.measurements["drop"]) == ("", pytest.approx(0.12))
    paired = measured_of(PAIRED, make_task(flip(SCORES, 12, 2)), make_task(SCORES))
    numbers = paired.measurements
    assert (numbers["regressed"], numbers["improved"], numbers["drop"]) == (12, 2, pytest.approx(0.02))
    assert (numbers["baseline_score"], paired.limits.keys()) == (0.6, {"mode", "alpha"})


def test_an_answer_too_small_to_tell_says_what_it_could_have_seen() -> None:
    unsure = measured_of(make_benchmark("absolute", threshold=0.6, tolerance=0.03), make_task(SCORES))
    assert unsure.inconclusive and not unsure.fails
    seen, upper = (unsure.measurements[name] for name in ("smallest_detectable_drop", "drop_upper"))
    assert unsure.message == (
        f"acc 0.6000 of 500 questions rules out no drop of 3 points; this many can detect {100 * seen:.3g} points, "
        f"and the drop may be up to {100 * upper:.3g}"
    )
    few = measured_of(dataclasses.replace(PAIRED, tolerance=0.001), make_task([1.0] * 5), make_task([1.0] * 5))
    assert few.inconclusive
    assert "too few answers differ to tell" in few.message


def answer(right: int, samples: int) -> list[float]:
    return [1.0] * right + [0.0] * (samples - right)


def test_a_score_that_nothing_could_fail_is_inconclusive() -> None:
    for wrong, threshold in ((1, 0.85), (1, 0.5), (4, 0.5), (8, 0.3), (11, 0.22), (100, 0.02), (500, 0.005)):
        for right in (0, wrong):
            assert judge(make_benchmark("absolute", threshold=threshold), answer(right, wrong)) == "inconclusive"
    for baseline in (Baseline(0.612, 14042), Baseline(0.6, 3)):
        assert judge(make_benchmark("recorded", baseline=baseline), answer(0, 2)) == "inconclusive"
    assert judge(PAIRED, answer(0, 4), answer(4, 4)) == "inconclusive"
    assert judge(PAIRED, answer(100, 100), answer(4, 100)) == "inconclusive", "there is no more to lose than 4 answers"
    assert judge(PAIRED, answer(0, 5), answer(5, 5)) == "failed"


def test_a_tolerance_does_not_pass_what_nothing_could_fail() -> None:
    tolerant = dataclasses.replace(PAIRED, tolerance=0.05)
    assert judge(tolerant, answer(0, 100), answer(0, 100)) == "inconclusive"
    check = measured_of(tolerant, make_task(answer(10, 1000)), make_task(answer(10, 1000)))
    assert check.inconclusive and check.measurements["worst_p"] == pytest.approx(2**-10)
    assert check.message == (
        "acc 0.0100 of 1000 questions says nothing, for no score could fail: "
        "if all 10 right answers of the baseline were lost, that would be within the tolerance of 5 points; "
        "state a smaller one"
    )
    assert judge(make_benchmark("absolute", threshold=0.2, tolerance=0.2), answer(500, 500)) == "inconclusive"
    assert judge(make_benchmark("absolute", threshold=0.2, tolerance=0.19), answer(500, 500)) == "passed"


def test_what_nothing_could_fail_says_why() -> None:
    check = measured_of(make_benchmark("absolute", threshold=0.5), make_task(answer(3, 4)))
    assert check.message == (
        "acc 0.7500 of 4 questions says nothing, for no score could fail: "
        "if every answer were wrong, p would be 0.062; ask more questions"
    )
    assert check.measurements["worst_p"] == pytest.approx(1 / 16)
    assert check.measurements["smallest_detectable_drop"] is None


def test_what_can_fail_is_asked_over_all_tasks() -> None:
    names = ("mmlu", "hellaswag", "arc_easy")
    benchmark, whole = (
        make_benchmark("absolute", *names, threshold=0.5),
        [make_task(answer(5, 5), name) for name in names],
    )
    checks = check_benchmark(benchmark, whole, None)
    assert all(check.inconclusive for check in checks), "3 / 32 is more than alpha, and 1 / 32 is not"
    assert [check.measurements["worst_p"] for check in checks] == pytest.approx([3 / 32] * 3)
    assert {check.measurements["smallest_detectable_drop"] for check in checks} == {None}
    assert judge(make_benchmark("absolute", threshold=0.5), answer(5, 5)) == "passed"
    # What fails for certain leaves the others a larger share of alpha.
    lost = [make_task(answer(0, 20), name) for name in names[:2]]
    assert [check.inconclusive for check in check_benchmark(benchmark, [*lost, whole[2]], None)] == [False] * 3


def test_where_the_log_likelihoods_decide_a_score_that_nothing_could_fail_is_a_trend() -> None:
    benchmark = dataclasses.replace(PAIRED, max_abs_ll_diff=1e-3)
    few = make_task(answer(2, 4))
    score, likelihoods = check_benchmark(benchmark, [few], [few])
    assert (score.gates, score.passed, score.inconclusive, likelihoods.passed) == (False, False, False, True)
    assert "no score could fail" in score.message
    enough = make_task(answer(9, 20))
    score, likelihoods = check_benchmark(benchmark, [enough], [enough])
    assert (score.gates, score.passed, likelihoods.passed) == (True, True, True)


ALPHAS = st.floats(1e-6, 0.5)
TOLERANCES = st.none() | st.floats(0.001, 1.0)
COUNTS = st.integers(1, 60).flatmap(lambda samples: st.tuples(st.integers(0, samples), st.just(samples)))


@given(COUNTS, st.floats(1e-3, 1.0), ALPHAS, TOLERANCES)
def test_below_a_floor_the_worst_score_fails_or_no_verdict_is_given(
    score: tuple[int, int], threshold: float, alpha: float, tolerance: float | None
) -> None:
    benchmark = make_benchmark("absolute", threshold=threshold, alpha=alpha, tolerance=tolerance)
    found, worst = judge(benchmark, answer(*score)), judge(benchmark, answer(0, score[1]))
    assert worst in ("failed", "inconclusive")
    assert found == "inconclusive" or worst == "failed"
    if tolerance is None:
        chance = (1 - Fraction(threshold)) ** score[1]
        assume(abs(chance / Fraction(alpha) - 1) > 1e-9)
        can_fail = chance <= Fraction(alpha)
        assert (found == "inconclusive") != can_fail


@given(COUNTS, COUNTS.filter(lambda recorded: recorded[0] > 0), ALPHAS)
def test_below_a_record_the_worst_score_fails_or_no_verdict_is_given(
    score: tuple[int, int], recorded: tuple[int, int], alpha: float
) -> None:
    baseline = Baseline(recorded[0] / recorded[1], recorded[1])
    benchmark = make_benchmark("recorded", baseline=baseline, alpha=alpha)
    found, worst = judge(benchmark, answer(*score)), judge(benchmark, answer(0, score[1]))
    # All right answers of both runs are the record's: C(its questions, right) of C(all questions, right) ways.
    chance = Fraction(math.comb(recorded[1], recorded[0]), math.comb(recorded[1] + score[1], recorded[0]))
    assume(abs(chance / Fraction(alpha) - 1) > 1e-9)
    assert worst == ("failed" if chance <= Fraction(alpha) else "inconclusive")
    assert (found == "inconclusive") == (worst == "inconclusive")


@given(COUNTS, st.data(), ALPHAS, TOLERANCES)
def test_against_paired_answers_the_worst_score_fails_or_no_verdict_is_given(
    score: tuple[int, int], data: st.DataObject, alpha: float, tolerance: float | None
) -> None:
    right, samples = score
    candidate = data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=samples, max_size=samples))
    benchmark = make_benchmark("paired", alpha=alpha, tolerance=tolerance)
    found, worst = (judge(benchmark, one, answer(right, samples)) for one in (candidate, answer(0, samples)))
    assert worst in ("failed", "inconclusive")
    assert found == "inconclusive" or worst == "failed"
    if tolerance is None:
        assert (found == "inconclusive") == (Fraction(1, 2**right) > Fraction(alpha))


def test_many_flips_are_counted_and_some_are_told() -> None:
    check = measured_of(PAIRED, make_task(flip(SCORES, 40, 40)), make_task(SCORES))
    assert (check.measurements["flips"], len(check.measurements["flipped"])) == (80, 32)
