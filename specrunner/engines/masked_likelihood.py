"""The log-likelihood of a continuation under a block-diffusion model: a Monte-Carlo estimate of its lower bound."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from specrunner.errors import ModelUnsupported

if TYPE_CHECKING:
    from specrunner.engines.base import Engine


def estimate_likelihood(engine: Engine, question: Mapping[str, Any]) -> dict[str, Any]:
    """Estimate log p(continuation | context) by forwards on partly masked continuations.

    For a span of L tokens the bound is E[(L / l) sum over the l masked tokens of log p(token | the rest)], l uniform on
    1 .. L and the l tokens drawn without replacement (Nie et al., Large Language Diffusion Models, arXiv 2502.09992,
    conditional log-likelihood evaluation). A model that attends block by block is trained on one masked block behind
    clean ones, so every block of the continuation is a span of its own and the estimates are added (Arriola et al.,
    Block Diffusion, arXiv 2503.09573). The sequence ends with the block's part of the continuation, without padding. A
    span of one token has one mask, and is exact.

    Args:
        engine: the loaded engine; its logits have a row for each token, which predicts that very token.
        question: ids `context` and `continuation`, `mask_id`, `block_length`, and `mask_samples`, masks a block.

    Returns:
        `logprob` in nats, by a softmax in float32 or float64, and `greedy`, which is not determined and always False.

    Raises:
        ModelUnsupported: the model predicts the next token, so it has an exact log-likelihood.
    """
    import torch

    if engine.is_causal():
        raise ModelUnsupported(
            "the model predicts the next token, so its log-likelihoods need no masks",
            help="take `likelihood` out of the benchmark",
        )
    tokens = [*question["context"], *question["continuation"]]
    total = 0.0
    for start, end in split_blocks(len(question["context"]), len(tokens), question["block_length"]):
        samples = 1 if end - start == 1 else question["mask_samples"]
        estimates = []
        for number in range(samples):
            masked = draw_mask(question, start, end, number)
            shown = [question["mask_id"] if place in masked else token for place, token in enumerate(tokens[:end])]
            rows = torch.as_tensor(engine.read_logits(shown))[masked]
            rows = rows if rows.dtype == torch.float64 else rows.float()
            wanted = torch.tensor([tokens[place] for place in masked], device=rows.device).unsqueeze(1)
            chosen = torch.log_softmax(rows, dim=-1).gather(1, wanted)
            estimates.append(float(chosen.sum()) * (end - start) / len(masked))
        total += sum(estimates) / samples
    return {"logprob": total, "greedy": False}


def split_blocks(start: int, end: int, block_length: int) -> Iterator[tuple[int, int]]:
    """Split the places `start` .. `end` - 1 at multiples of the block length."""
    while start < end:
        edge = min(end, (start // block_length + 1) * block_length)
        yield start, edge
        start = edge


def draw_mask(question: Mapping[str, Any], start: int, end: int, sample: int) -> list[int]:
    """Draw the masked places of a sample, ascending.

    The draw depends on the question's ids, the span and the sample's number alone, by SHA-256: every engine masks the
    same places under any version of Python, and more samples begin with the same ones.
    """
    seed = [list(question["context"]), list(question["continuation"]), start, sample]
    count = 1 + _draw(seed) % (end - start)
    return sorted(sorted(range(start, end), key=lambda place: _draw([*seed, place]))[:count])


def _draw(seed: Sequence[Any]) -> int:
    return int.from_bytes(hashlib.sha256(json.dumps(seed).encode()).digest(), "big")
