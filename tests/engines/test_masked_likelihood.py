"""The estimate of a diffusion model's log-likelihoods, against the sum over every mask, and between engines."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from specrunner.engines.base import Capabilities, Capture, Engine
from specrunner.engines.hf import HfEngine
from specrunner.engines.masked_likelihood import draw_mask, split_blocks
from specrunner.engines.oracle import OracleEngine
from specrunner.engines.questions import answer_questions
from specrunner.errors import ModelUnsupported
from specrunner.requests import Request, Session
from specrunner.spec.model import Model
from tests.engines.conftest import Start

MASK = 5
PINNED = [[2], [2], [2, 3, 4], [2], [3], [2, 3, 4]]
"""The masks of a question that were drawn when this was written."""


class MixingEngine(Engine):
    """Every row of the logits depends on all tokens before it and in its block of 4."""

    name = "mixing"

    def __init__(self) -> None:
        super().__init__(Session("mixing", "", Model(path="m"), "float32", "cpu"), "m", Path("w"))
        generator = np.random.default_rng(2)
        self.table = generator.normal(size=(40, 6, 6))
        self.forwards = 0

    @classmethod
    def capabilities(cls) -> Capabilities:
        return Capabilities({"cpu": ("float32",)})

    def load(self) -> dict[str, Any]:
        return {}

    def is_causal(self) -> bool:
        return False

    def capture(self, request: Request) -> Capture:
        ids = list(request.prompt.token_ids or ())
        self.forwards += 1
        return Capture(ids, {"logits": torch.from_numpy(self.rows(ids))})

    def rows(self, ids: list[int]) -> np.ndarray[Any, Any]:
        rows = []
        for place, own in enumerate(ids):
            seen = ids[: (place // 4 + 1) * 4]
            far = sum(self.table[(7 * other + place) % 40, token] for other, token in enumerate(seen))
            rows.append(self.table[place, own] + 0.7 * far)
        return np.array(rows)


def ask(context: list[int], continuation: list[int], samples: int, block_length: int = 4) -> dict[str, Any]:
    masks = {"mask_samples": samples, "mask_id": MASK, "block_length": block_length}
    return {"context": context, "continuation": continuation, **masks}


def sum_over_masks(engine: MixingEngine, tokens: list[int], start: int, end: int) -> float:
    """The bound of one block by its definition: the mean over sizes, and over every mask of each size."""
    span = end - start
    sizes = []
    for size in range(1, span + 1):
        values = []
        for masked in itertools.combinations(range(start, end), size):
            rows = engine.rows([MASK if place in masked else token for place, token in enumerate(tokens[:end])])
            logs = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
            values.append(span / size * sum(logs[place, tokens[place]] for place in masked))
        sizes.append(sum(values) / len(values))
    return sum(sizes) / span


@pytest.mark.slow
def test_the_mean_is_the_bound_over_every_mask() -> None:
    engine = MixingEngine()
    context, continuation = [1, 2, 0, 3, 4], [2, 2, 1, 4, 0, 3]
    tokens = context + continuation
    expected = sum_over_masks(engine, tokens, 5, 8) + sum_over_masks(engine, tokens, 8, 11)
    values = []
    for samples in (8, 3000):
        (answer,) = answer_questions(engine, [ask(context, continuation, samples)], None)
        values.append(answer["logprob"])
    assert engine.forwards == 2 * 3008
    assert values[1] == pytest.approx(expected, abs=0.1)
    assert abs(values[1] - expected) < abs(values[0] - expected)
    one_block = sum_over_masks(engine, tokens, 5, 11)
    assert abs(one_block - expected) > 0.5, "the problem cannot tell blocks apart"


def test_one_token_is_exact_and_costs_one_forward() -> None:
    engine = MixingEngine()
    (answer,) = answer_questions(engine, [ask([1, 2], [3], 64)], None)
    row = engine.rows([1, 2, MASK])[2]
    assert answer == {"logprob": pytest.approx(row[3] - math.log(np.exp(row).sum())), "greedy": False}
    assert engine.forwards == 1


def test_masks_are_uniform_and_the_same_everywhere() -> None:
    question = ask([1, 2], [3, 4, 0], 1)
    assert [draw_mask(question, 2, 5, number) for number in range(6)] == PINNED
    assert [draw_mask(question | {"mask_samples": 9}, 2, 5, number) for number in range(6)] == PINNED
    drawn = Counter(tuple(draw_mask(question, 2, 5, number)) for number in range(6000))
    assert len(drawn) == 7
    for masked, count in drawn.items():
        share = 1 / 3 / math.comb(3, len(masked))
        assert abs(count - 6000 * share) < 5 * math.sqrt(6000 * share * (1 - share))


def test_blocks_begin_at_multiples_of_their_length() -> None:
    assert list(split_blocks(5, 11, 4)) == [(5, 8), (8, 11)]
    assert list(split_blocks(8, 12, 4)) == [(8, 12)]
    assert list(split_blocks(3, 14, 4)) == [(3, 4), (4, 8), (8, 12), (12, 14)]


def test_engines_that_share_masks_agree_in_float32(start: Start) -> None:
    context, continuation = [72, 101, 108, 108, 111, 32, 119, 111, 114, 108, 100], [33, 32, 84, 104, 101, 32, 115, 117]
    question = ask(context, continuation, 3, 16) | {"mask_id": 257}
    (ours,) = answer_questions(start(HfEngine, "tiny-llada2"), [question], None)
    (exact,) = answer_questions(start(OracleEngine, "tiny-llada2", "float64"), [question], None)
    assert ours["logprob"] == pytest.approx(exact["logprob"], abs=1e-3)
    (other,) = answer_questions(start(HfEngine, "tiny-llada2"), [question | {"mask_samples": 2}], None)
    assert abs(other["logprob"] - ours["logprob"]) > 1e-2


def test_a_causal_model_needs_no_masks(start: Start) -> None:
    with pytest.raises(ModelUnsupported, match="need no masks"):
        answer_questions(start(HfEngine, "glass-0.8m"), [ask([4], [2], 1)], None)
