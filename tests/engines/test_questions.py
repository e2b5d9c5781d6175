"""How a session answers a benchmark's questions, against a direct computation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from specrunner.engines.base import Capabilities, Capture, Engine
from specrunner.engines.hf import HfEngine
from specrunner.engines.questions import answer_questions, score_continuation
from specrunner.errors import ModelUnsupported
from specrunner.requests import Request, Session
from specrunner.spec.model import Decode, Model
from tests.engines.asked import LONG_ANSWER, find_stop
from tests.engines.conftest import Start

VOCABULARY = 11


class TableEngine(Engine):
    """The logits after a token are a row of a fixed table, which makes every answer known."""

    name = "table"

    def __init__(self) -> None:
        super().__init__(Session("table", "", Model(path="m"), "float32", "cpu"), "m", Path("w"))
        self.table = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(3))
        self.forwards: list[tuple[int, ...]] = []
        self.decodes: list[tuple[Sequence[int], Decode]] = []

    @classmethod
    def capabilities(cls) -> Capabilities:
        return Capabilities({"cpu": ("float32",)})

    def load(self) -> dict[str, Any]:
        return {}

    def capture(self, request: Request) -> Capture:
        ids = request.prompt.token_ids or ()
        if request.decode is not None:
            self.decodes.append((ids, request.decode))
            return Capture(list(ids), output_token_ids=[1, 2, 3])
        assert request.tensors == ("logits",)
        self.forwards.append(ids)
        return Capture(list(ids), {"logits": self.table[list(ids)]})


def test_a_log_likelihood_is_the_chain_of_next_token_probabilities() -> None:
    engine = TableEngine()
    probabilities = torch.softmax(engine.table.double(), -1)
    (answer,) = answer_questions(engine, [{"context": [4, 7], "continuation": [2, 9]}], None)
    expected = (probabilities[7, 2] * probabilities[2, 9]).log()
    assert answer["logprob"] == pytest.approx(float(expected), abs=1e-6)
    assert engine.forwards == [(4, 7, 2)]


def test_greedy_means_that_every_token_is_the_most_probable_one() -> None:
    engine = TableEngine()
    best = [int(engine.table[7].argmax())]
    best.append(int(engine.table[best[0]].argmax()))
    worse = [best[0], int(engine.table[best[0]].argmin())]
    first, second = answer_questions(
        engine, [{"context": [7], "continuation": best}, {"context": [7], "continuation": worse}], None
    )
    assert (first["greedy"], second["greedy"]) == (True, False)


def test_answers_that_differ_in_the_last_token_share_a_forward_and_keep_their_order() -> None:
    engine = TableEngine()
    questions = [{"context": [5], "continuation": [token]} for token in (1, 2, 3)]
    questions.insert(1, {"context": [6], "continuation": [1]})
    answers = answer_questions(engine, questions, None)
    logprobs = torch.log_softmax(engine.table, -1)
    expected = [logprobs[5, 1], logprobs[6, 1], logprobs[5, 2], logprobs[5, 3]]
    assert [answer["logprob"] for answer in answers] == pytest.approx([float(value) for value in expected])
    assert engine.forwards == [(5,), (6,)]


def test_a_model_that_denoises_blocks_has_no_log_likelihoods(start: Start) -> None:
    with pytest.raises(ModelUnsupported, match="does not predict the next token"):
        answer_questions(start(HfEngine, "tiny-llada2"), [{"context": [4], "continuation": [2]}], None)


def test_half_precision_logits_are_scored_in_float32() -> None:
    logits = torch.tensor([[8.0, 8.0625, -3.0]], dtype=torch.bfloat16)
    answer = score_continuation(logits, [0])
    assert answer["logprob"] == pytest.approx(float(torch.log_softmax(logits.double(), -1)[0, 0]), abs=1e-6)


def test_a_generation_takes_its_length_from_the_question_and_its_way_from_the_case() -> None:
    engine = TableEngine()
    question = {"prompt": [4, 5], "max_new_tokens": 9, "stop": ["\n"]}
    assert answer_questions(engine, [question], None) == [{"token_ids": [1, 2, 3]}]
    way = {"max_new_tokens": 1, "algorithm": "low_confidence", "block_length": 32, "threshold": 0.9}
    answer_questions(engine, [question], way)
    assert [decode for _, decode in engine.decodes] == [Decode(9), Decode(9, "low_confidence", 32, 0.9)]


@pytest.mark.slow
def test_a_generation_ends_behind_its_stop_text(start: Start) -> None:
    engine = start(HfEngine, "glass-0.8m")
    assert isinstance(engine, HfEngine)
    prompt = [(7 * i * i + 3 * i + 5) % 300 for i in range(24)]
    whole, stop = find_stop(engine, prompt, Decode(48))
    question = {"prompt": prompt, "max_new_tokens": 48, "stop": ["", "never said", stop]}
    (answer,) = answer_questions(engine, [question], None)
    early = answer["token_ids"]
    assert early == whole[: len(early)] != whole
    texts = [engine.read_text(ids) or "" for ids in (whole, early, early[:-1])]
    assert texts[0].partition(stop)[0] == texts[1].partition(stop)[0], "the early end changes what is cut out"
    assert [stop in text for text in texts] == [True, True, False]
    assert engine.generate(prompt, Decode(48)) == whole, "a stop text outlives its question"


@pytest.mark.slow
def test_block_diffusion_ends_behind_the_block_of_its_stop_text(start: Start) -> None:
    engine = start(HfEngine, "tiny-llada2")
    assert isinstance(engine, HfEngine)
    decode = Decode(48, "low_confidence", 16, 0.95, ignore_eos=True)
    prompt = LONG_ANSWER
    whole, stop = find_stop(engine, prompt, decode)
    assert len(whole) == 48
    early = engine.generate(prompt, decode, [stop])
    assert early == whole[: len(early)] != whole
    assert (len(prompt) + len(early)) % 16 == 0
    assert stop in (engine.read_text(early) or "") and stop not in (engine.read_text(early[:-16]) or "")
    assert engine.generate(prompt, decode, ["never said"]) == whole, "the blocks of one call and of several differ"
    ended = Decode(48, "low_confidence", 16, 0.95)
    assert engine.generate(prompt, ended, ["never said"]) == engine.generate(prompt, ended)
