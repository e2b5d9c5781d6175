"""The evaluating process without lm-eval: how it asks, what it reports, and what it refuses."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from specrunner.benchmark_record import BenchmarkRecord, Sample, TaskRecord, read_record, write_record
from specrunner.benchmarks import evaluate as evaluating
from specrunner.benchmarks.evaluate import Asker, describe_sample, find_masks, serve
from specrunner.catalogue.tasks import TASKS
from specrunner.errors import CaptureIncomplete, EngineError, ModelUnsupported
from specrunner.sessions.protocol import Channel, ChannelClosed

Ends = tuple[Channel, Channel]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """The evaluator's end of a control channel, and the caller's."""
    to_evaluator, to_caller = os.pipe(), os.pipe()
    made = Channel(to_evaluator[0], to_caller[1]), Channel(to_caller[0], to_evaluator[1])
    yield made
    for end in made:
        end.close()


@pytest.mark.parametrize(
    ("kind", "sizes"), [("context", [32, 32, 6]), ("prompt", [1] * 70)], ids=["likelihoods", "generations"]
)
def test_questions_go_out_in_batches(ends: Ends, kind: str, sizes: list[int]) -> None:
    evaluator, caller = ends
    questions = [{kind: number} for number in range(70)]
    start = 0
    for size in sizes:
        answers = [{"value": question[kind]} for question in questions[start : start + size]]
        caller.send({"type": "answers", "answers": answers, "kept": 2})
        start += size
    asker = Asker(evaluator)
    assert asker.ask(questions) == [{"value": number} for number in range(70)]
    assert asker.kept == 2 * len(sizes)
    start = 0
    for size in sizes:
        asked = {"type": "ask", "questions": questions[start : start + size], "done": start, "total": 70}
        assert caller.receive() == asked
        start += size
    assert asker.ask([]) == []


def test_an_answer_too_few_is_none(ends: Ends) -> None:
    evaluator, caller = ends
    caller.send({"type": "answers", "answers": [{}], "kept": 0})
    with pytest.raises(CaptureIncomplete, match="1 answers to 2 questions"):
        Asker(evaluator).ask([{"context": 1}, {"context": 2}])


@pytest.mark.parametrize(
    ("error", "kind"),
    [(CaptureIncomplete("half of it"), CaptureIncomplete.kind), (ValueError("bad"), EngineError.kind)],
)
def test_whatever_goes_wrong_is_told_to_the_caller(
    ends: Ends, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: str
) -> None:
    evaluator, caller = ends

    def fail(channel: Channel, message: Any) -> None:
        raise error

    monkeypatch.setattr(evaluating, "evaluate", fail)
    caller.send({"type": "evaluate"})
    serve(evaluator)
    told = caller.receive()
    assert told is not None
    assert (told["type"], told["kind"]) == ("failed", kind)
    assert str(error) in told["message"]


def test_what_was_found_is_told_and_a_caller_who_is_gone_is_not(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator, caller = ends
    monkeypatch.setattr(evaluating, "evaluate", lambda channel, message: {"questions": message["number"]})
    caller.send({"type": "evaluate", "number": 3})
    serve(evaluator)
    assert caller.receive() == {"type": "done", "facts": {"questions": 3}}

    def leave(channel: Channel, message: Any) -> None:
        raise ChannelClosed

    monkeypatch.setattr(evaluating, "evaluate", leave)
    caller.send({"type": "evaluate"})
    with pytest.raises(ChannelClosed):
        serve(evaluator)


def test_an_estimate_needs_a_mask_token() -> None:
    wanted = {"mask_samples": 8, "mask_block": 32, "mask_token_id": None}
    found = {"mask_samples": 8, "block_length": 32, "mask_id": 7}
    assert find_masks({"mask_samples": None}, SimpleNamespace()) == {}
    assert find_masks(wanted, SimpleNamespace(mask_token_id=7)) == found
    assert find_masks({**wanted, "mask_token_id": 0}, SimpleNamespace(mask_token_id=7)) == {**found, "mask_id": 0}
    with pytest.raises(ModelUnsupported, match="names no mask token") as caught:
        find_masks(wanted, SimpleNamespace())
    assert "mask_token_id" in str(caught.value.help)


def describe(metric: str = "acc", score: float = 1.0, subject: str = "") -> Sample:
    """Describe a question of three choices, of which the second is the likeliest a character."""
    arguments = [("Q", " a"), ("Q", " bbbb"), ("Q", " cc")]
    responses = [(-2.0, False), (-4.0, False), (-3.0, False)]
    row = {"doc_id": 5, "arguments": arguments, "filtered_resps": responses, "target": 1, metric: score}
    session = SimpleNamespace(tokens={pair: (1, len(pair[1])) for pair in arguments})
    return describe_sample(TASKS["arc_easy"], subject, row, metric, session)


def test_the_best_answer_and_its_lead_are_those_of_the_metric() -> None:
    plain, normed = describe("acc"), describe("acc_norm", 0.0, "law")
    assert (plain.id, plain.score, plain.answer, plain.target, plain.margin) == ("5", 1.0, "0", "1", 1.0)
    assert (plain.logprobs, plain.tokens) == ((-2.0, -4.0, -3.0), ((1, 2), (1, 5), (1, 3)))
    assert (normed.id, normed.score, normed.answer, normed.margin) == ("law/5", 0.0, "1", 0.5)
    with pytest.raises(CaptureIncomplete, match=r"question 5 has the score 0\.5"):
        describe(score=0.5)


def test_a_generated_answer_is_kept_as_it_was_taken_from_the_text() -> None:
    row = {
        "doc_id": 3,
        "arguments": [("Q", {"until": ["\n"]})],
        "filtered_resps": ["42"],
        "target": 41,
        "exact_match": 0,
    }
    found = describe_sample(TASKS["gsm8k"], "", row, "exact_match", SimpleNamespace(prompts={"Q": 17}))
    assert (found.id, found.score, found.answer, found.target) == ("3", 0.0, "42", "41")
    assert (found.tokens, found.logprobs, found.margin) == (((17, 0),), (), None)


RECORD = BenchmarkRecord(
    (
        TaskRecord(
            *("arc_easy", "acc", 1.0, 9, "d", "e", ""), (Sample("1", "p", 1.0, "0", "0", ((1, 2),), (-1.0, -2.0), 1.0),)
        ),
    ),
    {"engine": "hf"},
)


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "record.json"
    write_record(RECORD, file)
    assert read_record(file) == RECORD
    write_record(replace(RECORD, provenance={}), file)
    assert read_record(file) == replace(RECORD, provenance={})
    assert [path.name for path in file.parent.iterdir()] == ["record.json"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: None,
        lambda data: {**data, "version": 2},
        lambda data: {**data, "tasks": [{"task": "arc_easy"}]},
        lambda data: {key: value for key, value in data.items() if key != "provenance"},
        lambda data: [data],
    ],
    ids=["truncated", "version", "task", "key", "list"],
)
def test_what_is_no_record_is_no_evidence(tmp_path: Path, damage: Callable[[Any], Any]) -> None:
    file = tmp_path / "record.json"
    write_record(RECORD, file)
    damaged = damage(json.loads(file.read_text()))
    file.write_text(file.read_text()[:-3] if damaged is None else json.dumps(damaged))
    with pytest.raises(CaptureIncomplete, match=r"no benchmark record to read in .*record\.json"):
        read_record(file)
    with pytest.raises(CaptureIncomplete):
        read_record(tmp_path / "nowhere.json")
