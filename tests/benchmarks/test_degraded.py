"""A degraded engine gets the right verdict in every mode: real faults in a real mixture of experts, asked by lm-eval.

The questions have one right answer out of four letters: for nine in ten the one that the healthy model gives. So a
healthy candidate scores 90 %, and whatever disturbs the model loses questions.
"""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")
pytest.importorskip("torch")
from tokenizers.processors import TemplateProcessing

from specrunner.benchmark_record import TaskRecord
from specrunner.benchmarks.evaluate import evaluate_task
from specrunner.benchmarks.model import SessionModel
from specrunner.catalogue.tasks import TASKS
from specrunner.checks.benchmark import check_benchmark
from specrunner.engines.hf import HfEngine
from specrunner.engines.planters import plant
from specrunner.engines.questions import answer_questions
from specrunner.models.recipes import ensure_model
from specrunner.requests import Session
from specrunner.spec.model import Baseline, Benchmark, Evaluation, Model

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.filterwarnings("ignore")]

QUESTIONS = 40
FLOOR = 0.88
"""Just below the healthy 90 %."""

MODES = {
    "absolute": Benchmark(Evaluation(("hellaswag",)), "absolute", threshold=FLOOR),
    "recorded": Benchmark(Evaluation(("hellaswag",)), "recorded", baseline=Baseline(0.9, 4000)),
    "paired": Benchmark(Evaluation(("hellaswag",)), "paired", max_abs_ll_diff=1e-3),
}
OTHER_TEMPLATE = "{%- for message in messages -%}[INST] {{ message['content'] }} [/INST]{%- endfor -%}"


class Exam:
    """A loaded tiny-llada2, its questions, and what the healthy model answers to them."""

    def __init__(self, folder: Path) -> None:
        model = Model(recipe="tiny-llada2", trust_remote_code=True)
        self.engine = HfEngine(Session("hf", "", model, "float32", "cpu"), ensure_model(model), folder)
        self.engine.load()
        self.tokenizer: Any = self.engine._tokenizer
        # The checkpoint has no BOS; its unused system token serves as one, so that one can be dropped.
        self.tokenizer.bos_token = "<|system|>"
        self.tokenizer._tokenizer.post_processor = TemplateProcessing(
            single="<|system|> $A", special_tokens=[("<|system|>", 260)]
        )
        self.file = folder / "questions.jsonl"
        self.rows = self.write([0] * QUESTIONS)
        chosen = [int(sample.answer) for sample in self.ask().samples]
        self.rows = self.write([answer if number % 10 else (answer + 1) % 4 for number, answer in enumerate(chosen)])
        self.baseline = self.ask()

    def write(self, labels: list[int]) -> list[dict[str, Any]]:
        """Write the questions, in the form of HellaSwag's, with these right answers."""
        drawn = random.Random(3)
        rows = []
        for number, label in enumerate(labels):
            word = "".join(drawn.sample("abcdefghijklmnopqrstuvwxyz", drawn.randint(4, 9)))
            title = f"{drawn.choice(('reverse', 'upper', 'copy', 'sort'))} {word}"
            row = {"ind": number, "activity_label": title, "ctx_a": "", "ctx_b": "", "ctx": "", "label": str(label)}
            rows.append(row | {"endings": drawn.sample([*"abcdefghijklmnopqrstuvwxyzABCDEFGH0123456789"], 4)})
        self.file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return rows

    def ask(self, fault: str | None = None, file: Path | None = None, **changes: Any) -> TaskRecord:
        """Have lm-eval ask all questions."""
        masks = {"mask_samples": 1, "block_length": 16, "mask_id": 257}
        wanted = {
            "tasks": ["hellaswag"],
            "metric": "acc",
            "file": str(file or self.file),
            "shots_file": None,
            "num_fewshot": None,
            "samples": None,
            "seed": 0,
            "chat_template": True,
        }
        session = SessionModel(
            lambda questions: answer_questions(self.engine, questions, None),
            self.tokenizer,
            self.engine._model.config,
            masks=masks,
            **changes,
        )
        with plant(self.engine, fault):
            return evaluate_task(TASKS["hellaswag"], wanted, session)


@pytest.fixture(scope="module")
def exam(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exam]:
    """One exam for all tests."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("SPECRUNNER_CACHE", str(tmp_path_factory.mktemp("cache")))
        made = Exam(tmp_path_factory.mktemp("exam"))
        yield made
        made.engine.close()


def judge(candidate: TaskRecord, baseline: TaskRecord) -> dict[str, dict[str, bool]]:
    """Return, by mode, each check's rule and whether it passed."""
    return {
        mode: {
            check.rule: check.passed
            for check in check_benchmark(benchmark, [candidate], [baseline] if mode == "paired" else None)
        }
        for mode, benchmark in MODES.items()
    }


HEALTHY = {"absolute": {"benchmark": True}, "recorded": {"benchmark": True}}
LOST = {"absolute": {"benchmark": False}, "recorded": {"benchmark": False}}
REFUSED = {"paired": {"evidence": False}}


def test_a_healthy_engine_passes_in_every_mode(exam: Exam) -> None:
    assert exam.baseline.score == 0.9
    same = exam.ask()
    assert judge(same, exam.baseline) == HEALTHY | {"paired": {"benchmark": True, "log_likelihoods": True}}


def test_a_fault_in_the_mixture_of_experts_fails_in_every_mode(exam: Exam) -> None:
    faulty = exam.ask("routing-softmax")
    assert judge(faulty, exam.baseline) == LOST | {"paired": {"benchmark": False, "log_likelihoods": False}}


def test_a_fault_that_no_score_shows_is_seen_in_the_log_likelihoods(exam: Exam) -> None:
    faulty = exam.ask("dtype-router-rounded")
    assert judge(faulty, exam.baseline) == HEALTHY | {"paired": {"benchmark": True, "log_likelihoods": False}}


def test_a_dropped_bos_loses_questions_and_is_no_pair(exam: Exam) -> None:
    dropped = exam.ask(add_bos_token=False)
    assert judge(dropped, exam.baseline) == LOST | REFUSED
    (check,) = check_benchmark(MODES["paired"], [dropped], [exam.baseline])
    assert "other token counts" in check.message


def test_a_wrong_chat_template_loses_questions_and_is_no_pair(exam: Exam) -> None:
    template = exam.tokenizer.chat_template
    exam.tokenizer.chat_template = OTHER_TEMPLATE
    try:
        wrong = exam.ask()
    finally:
        exam.tokenizer.chat_template = template
    assert judge(wrong, exam.baseline) == LOST | REFUSED
    (check,) = check_benchmark(MODES["paired"], [wrong], [exam.baseline])
    assert check.message == "the chat template changed since the baseline"


def test_another_order_of_the_questions_keeps_the_score_and_is_no_pair(exam: Exam, tmp_path: Path) -> None:
    turned = tmp_path / "turned.jsonl"
    turned.write_text("".join(json.dumps(row) + "\n" for row in exam.rows[::-1]), encoding="utf-8")
    other = exam.ask(file=turned)
    assert other.score == exam.baseline.score
    assert judge(other, exam.baseline) == HEALTHY | REFUSED
    (check,) = check_benchmark(MODES["paired"], [other], [exam.baseline])
    assert check.message == "the questions' data changed since the baseline"
