"""DiffusionGemma: the ids that are its canvas, and that the canvas is read as the architecture says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from specrunner.engines.hf import HfEngine
from specrunner.errors import ModelUnsupported
from specrunner.models.random_diffusion_gemma import CANVAS_LENGTH
from specrunner.requests import Request
from specrunner.spec.model import Prompt

PROMPT = [114, 101, 118, 101, 114, 115, 101, 32]
CANVAS = [301, 17, 440, 9, 275, 388, 62, 133, 499, 210, 71, 350, 5, 428, 96, 187]


@pytest.fixture
def engine(start: Callable[..., Any]) -> Any:
    return start(HfEngine, "tiny-diffusion-gemma", attn_implementation="eager")


def logits(engine: Any, ids: list[int]) -> Any:
    found = engine.capture(Request(Prompt(token_ids=tuple(ids)), ("logits",))).tensors["logits"]
    return np.asarray(found)


def test_the_last_ids_are_the_canvas(engine: Any) -> None:
    with torch.inference_mode():
        expected = engine._model(input_ids=torch.tensor([PROMPT]), decoder_input_ids=torch.tensor([CANVAS])).logits[0]
    found = logits(engine, PROMPT + CANVAS)
    assert found.shape == (CANVAS_LENGTH, 512)
    assert (found == expected.numpy()).all()
    assert (found == logits(engine, PROMPT + CANVAS)).all(), "nothing is drawn at random"


def test_every_position_of_the_canvas_sees_all_of_it_and_the_prompt(engine: Any) -> None:
    found = logits(engine, PROMPT + CANVAS)
    for changed in ([*PROMPT, *CANVAS[:-1], 3], [*PROMPT, 3, *CANVAS[1:]], [*PROMPT[:-1], 3, *CANVAS]):
        assert (np.abs(logits(engine, changed) - found).max(axis=1) > 1e-4).all()


def test_a_layer_adds_attention_and_feed_forward_and_scales(engine: Any) -> None:
    tensors = engine.capture(Request(Prompt(token_ids=(*PROMPT, *CANVAS)), ("**",))).tensors
    tensors = {name: torch.as_tensor(value) for name, value in tensors.items()}
    for index, layer in enumerate(engine._model.model.decoder.layers):
        if index:
            added = [tensors[f"layers.{index}.{part}.output"] for part in ("attention", "mlp")]
            expected = (tensors[f"layers.{index - 1}.output"] + sum(added)) * layer.layer_scalar
            torch.testing.assert_close(tensors[f"layers.{index}.output"], expected)
    with torch.inference_mode():
        head = engine._model.lm_head(tensors["final_norm"]) / 30
    torch.testing.assert_close(tensors["logits"], 30 * torch.tanh(head))
    table = engine._model.model.decoder.embed_tokens.weight
    torch.testing.assert_close(tensors["embeddings"], table[torch.tensor(CANVAS)] * 128**0.5)


def test_logits_are_capped(engine: Any) -> None:
    found = logits(engine, PROMPT + CANVAS)
    assert np.abs(found).max() <= 30
    assert 1 < found.std() < 10, "the distribution is neither flat nor spiked"


def test_a_prompt_is_needed_before_the_canvas(engine: Any) -> None:
    with pytest.raises(
        ModelUnsupported, match="a prompt and a canvas of 16 tokens are needed, and there are 16 tokens"
    ):
        logits(engine, CANVAS)
