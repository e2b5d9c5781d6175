"""Questions of benchmarks as every adapter gets them, with the answers of Transformers, for the adapters' tests."""

from __future__ import annotations

from typing import Any

from specrunner.engines.hf import HfEngine
from specrunner.spec.model import Decode

Ids = list[int]

LONG_ANSWER = list(b"copy xskqbpetgmihwjzdrfvo:")
"""A prompt that tiny-llada2 answers with 20 letters, which reach into a second block of 16."""


def scored_questions() -> list[dict[str, Any]]:
    """Log-likelihood questions: alone, several of one context, several that differ in their last token only."""
    contexts = [
        [(7 * i * i + 3 * i + 5 * start) % 300 for i in range(length)] for start, length in enumerate((1, 9, 40))
    ]
    endings = [[17], [23], [4, 99, 12], [4, 99, 13], list(range(30, 45))]
    return [{"context": context, "continuation": ending} for context in contexts for ending in endings]


def masked_questions(mask_id: int, block_length: int) -> list[dict[str, Any]]:
    """Log-likelihood questions to a diffusion model: within a block, over two blocks, of one token."""
    masks = {"mask_samples": 2, "mask_id": mask_id, "block_length": block_length}
    texts = [("reverse olna:", "anlo"), ("The capital of France is ", "Paris, and of Spain Madrid"), ("3+4=", "7")]
    return [{"context": [*first.encode()], "continuation": [*second.encode()], **masks} for first, second in texts]


def find_stop(engine: HfEngine, prompt: Ids, decode: Decode) -> tuple[Ids, str]:
    """Generate without a stop text; return the ids, and a text that first appears after a third of them."""
    ids = engine.generate(prompt, decode)
    text = engine.read_text(ids)
    before = engine.read_text(ids[: len(ids) // 3])
    assert text is not None and before is not None
    for end in range(len(before) + 1, len(text)):
        stop = text[end - 2 : end]
        if stop not in text[: end - 1] and stop.isascii() and stop.isprintable():
            return ids, stop
    raise AssertionError(f"{text!r} never says anything new")
