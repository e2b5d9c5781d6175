# ruff: noqa: E402 - what is imported after `importorskip` may not be installed
"""Our model class against lm-eval's own `hf` model on the same checkpoint: the same tokens, numbers and scores."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

lm_eval = pytest.importorskip("lm_eval")
pytest.importorskip("glassllm")
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from specrunner.benchmark_record import TaskRecord
from specrunner.benchmarks.evaluate import define_task, evaluate_task
from specrunner.benchmarks.model import SessionModel, check_likelihoods
from specrunner.catalogue.tasks import TASKS
from specrunner.checks.benchmark import check_benchmark
from specrunner.engines.hf import HfEngine
from specrunner.engines.questions import answer_questions
from specrunner.errors import CaptureIncomplete, ModelUnsupported
from specrunner.models.recipes import ensure_model
from specrunner.requests import Session
from specrunner.spec.model import Benchmark, Evaluation, Model
from tests.benchmarks.questions import QUESTIONS

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HfEngine, Any, Any]]:
    """The engine, its tokenizer, and lm-eval's own model over the same weights."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("SPECRUNNER_CACHE", str(cache))
        model = Model(recipe="glass-0.8m")
        path = ensure_model(model)
        engine = HfEngine(Session("hf", "", model, "float32", "cpu"), path, cache)
        engine.load()
        peer = HFLM(pretrained=engine._model, tokenizer=engine._tokenizer, batch_size=1, device="cpu")
        yield engine, engine._tokenizer, peer
        engine.close()


def make_session(loaded: tuple[HfEngine, Any, Any], **changes: Any) -> SessionModel:
    engine, tokenizer, _ = loaded
    return SessionModel(
        lambda questions: answer_questions(engine, questions, None), tokenizer, engine._model.config, **changes
    )


def write_questions(folder: Path, rows: Sequence[Mapping[str, Any]] = QUESTIONS) -> str:
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def ask(kind: str, *arguments: Any) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


@pytest.mark.parametrize("metric", ["acc", "acc_norm"])
def test_scores_and_log_likelihoods_equal_those_of_lm_eval_to_the_last_digit(
    loaded: tuple[HfEngine, Any, Any], tmp_path: Path, metric: str
) -> None:
    wanted = {
        "tasks": ["arc_easy"],
        "metric": metric,
        "file": write_questions(tmp_path),
        "shots_file": None,
        "num_fewshot": None,
        "samples": [0, 1, 2, 4, 5],
        "seed": 0,
        "chat_template": False,
    }
    record = evaluate_task(TASKS["arc_easy"], wanted, make_session(loaded))
    definition, _ = define_task(TASKS["arc_easy"], "", {"test": QUESTIONS})
    plain = lm_eval.simple_evaluate(
        loaded[2],
        tasks=[definition],
        samples={"arc_easy": [0, 1, 2, 4, 5]},
        bootstrap_iters=0,
        task_manager=TaskManager(include_defaults=False),
    )
    assert record.score == plain["results"]["arc_easy"][f"{metric},none"]
    theirs = {str(row["doc_id"]): row for row in plain["samples"]["arc_easy"]}
    assert [sample.id for sample in record.samples] == ["0", "1", "2", "4", "5"]
    for sample in record.samples:
        assert sample.logprobs == tuple(answer[0] for answer in theirs[sample.id]["filtered_resps"])
        assert sample.score == theirs[sample.id][metric]
        assert (sample.answer == sample.target) == (sample.score == 1.0)
        assert sample.margin is not None and sample.margin > 0


def evaluate(loaded: tuple[HfEngine, Any, Any], file: str, **changes: Any) -> TaskRecord:
    wanted = {
        "tasks": ["arc_easy"],
        "metric": None,
        "file": file,
        "shots_file": None,
        "num_fewshot": None,
        "samples": None,
        "seed": 0,
        "chat_template": False,
    }
    return evaluate_task(TASKS["arc_easy"], wanted, make_session(loaded, **changes))


def test_a_degraded_candidate_gets_the_right_verdict(loaded: tuple[HfEngine, Any, Any], tmp_path: Path) -> None:
    # So many that the baseline has enough right answers to lose: of six questions no score could fail.
    questions = [{**row, "question": f"{turn}. {row['question']}"} for turn in range(6) for row in QUESTIONS]
    file = write_questions(tmp_path, questions)
    baseline = evaluate(loaded, file)
    benchmark = Benchmark(Evaluation(("arc_easy",)), "paired", max_abs_ll_diff=1e-3)

    def judge(candidate: TaskRecord) -> list[tuple[str, bool]]:
        return [(check.rule, check.passed) for check in check_benchmark(benchmark, [candidate], [baseline])]

    assert judge(evaluate(loaded, file)) == [("benchmark", True), ("log_likelihoods", True)]
    weight = loaded[0]._model.model.layers[0].self_attn.o_proj.weight.data
    kept = weight.clone()
    weight *= 1.01
    faulty = evaluate(loaded, file)
    weight.copy_(kept)
    assert judge(faulty)[1] == ("log_likelihoods", False)

    other = tmp_path / "other"
    other.mkdir()
    rows = [{**row, "question": row["question"] + " "} for row in questions]
    (other / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    reordered = tmp_path / "reordered.jsonl"
    reordered.write_text("".join(json.dumps(row) + "\n" for row in questions[::-1]), encoding="utf-8")
    for changed in (str(other / "q.jsonl"), str(reordered)):
        (check,) = check_benchmark(benchmark, [evaluate(loaded, changed)], [baseline])
        assert (check.rule, check.message) == ("evidence", "the questions' data changed since the baseline")
    bos = dataclasses.replace(
        baseline,
        samples=tuple(
            dataclasses.replace(sample, tokens=tuple((one + 1, two) for one, two in sample.tokens))
            for sample in baseline.samples
        ),
    )
    (check,) = check_benchmark(benchmark, [bos], [baseline])
    assert check.rule == "evidence" and "other token counts" in check.message


@pytest.mark.parametrize("bos", [None, True, False])
def test_texts_become_the_tokens_that_lm_eval_takes(loaded: tuple[HfEngine, Any, Any], bos: bool | None) -> None:
    tokenizer, peer = loaded[1:]
    session = make_session(loaded, add_bos_token=bos)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peer, "add_bos_token", bos)
        for text in ("The sun is", "  spaces ", f"{tokenizer.bos_token or tokenizer.eos_token}already there"):
            for special in (None, True, False):
                assert session.tok_encode(text, special) == peer.tok_encode(text, special)
        assert session.prefix_token_id == peer.prefix_token_id
        assert session.max_length == peer.max_length
        pairs = [("The sun is ", "hot"), ("", "hot"), ("A", " b c")]
        requests = [ask("loglikelihood", *pair) for pair in pairs]
        assert session.loglikelihood(requests, True) == peer.loglikelihood(requests, True)


def test_generated_texts_end_where_lm_eval_ends_them(loaded: tuple[HfEngine, Any, Any]) -> None:
    session, peer = make_session(loaded), loaded[2]
    for until in (["."], [" the", "."], ["not there"]):
        requests = [
            ask("generate_until", text, {"until": list(until), "max_gen_toks": 24, "do_sample": False})
            for text in ("Once upon a time", "The house was")
        ]
        ours, theirs = (model.generate_until(requests, disable_tqdm=True) for model in (session, peer))
        assert ours == theirs
        assert any(ours)


def test_what_would_be_cut_is_an_error(loaded: tuple[HfEngine, Any, Any]) -> None:
    session = make_session(loaded, max_length=8)
    with pytest.raises(ModelUnsupported, match="longer than the model's 8 and would be cut"):
        session.loglikelihood([ask("loglikelihood", "a b c d e f g h i j k l", " m")], True)
    with pytest.raises(ModelUnsupported, match="would be cut"):
        session.generate_until([ask("generate_until", "a", {"until": [], "max_gen_toks": 8})])
    with pytest.raises(ModelUnsupported, match="samples its answers"):
        session.generate_until([ask("generate_until", "a", {"until": [], "do_sample": True, "temperature": 1.0})])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.0, 0.0], "all 2 log-likelihoods are 0.0"),
        ([-1.0, float("nan")], "is nan"),
        ([-1.0, float("-inf")], "is -inf"),
        ([0.5, -1.0], "is 0.5"),
    ],
)
def test_log_likelihoods_that_no_model_gives(values: list[float], message: str) -> None:
    with pytest.raises(CaptureIncomplete, match=message):
        check_likelihoods(values)
    check_likelihoods([0.0, -1.0])
