"""Faults around SGLang's step, on a stand-in of its batch: what each fills."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from specrunner.engines.planters import sampling
from specrunner.faults.catalogue import find_faults

MASK = 7


@dataclass
class Algorithm:
    mask_id: int = MASK
    threshold: float = 0.9


@dataclass
class Batch:
    input_ids: torch.Tensor
    dllm_prompt_mask: Any = None


def fill(algorithm: Algorithm, batch: Batch, logits: torch.Tensor, _: Any) -> list[bool]:
    """Fill what is above the threshold, else the best, as SGLang does."""
    masked = batch.input_ids == algorithm.mask_id
    confidence, tokens = logits.softmax(-1).max(-1)
    accepted = masked & (confidence > algorithm.threshold)
    if not bool(accepted.any()):
        accepted[int(confidence.masked_fill(~masked, -1.0).argmax())] = True
    batch.input_ids[accepted] = tokens[accepted]
    return [not bool(masked.any())]


@pytest.mark.parametrize(
    ("fault", "left"),
    [
        (None, [1, 7, 7, 4]),
        ("sampler-leftmost", [1, 2, 7, 7]),
        ("sampler-two-a-pass", [1, 7, 3, 4]),
        ("sampler-low-threshold", [1, 2, 3, 4]),
    ],
)
def test_each_fault_fills_other_positions(fault: str | None, left: list[int]) -> None:
    logits = torch.zeros(4, 8)
    for place, (token, height) in enumerate([(6, 9.0), (2, 1.0), (3, 2.0), (4, 3.0)]):
        logits[place, token] = height
    batch = Batch(torch.tensor([1, MASK, MASK, MASK]))
    step = sampling.SGLANG[fault](fill) if fault else fill
    step(Algorithm(), batch, logits, [None])
    assert batch.input_ids.tolist() == left


def test_served_engines_can_have_them() -> None:
    names = {
        engine: {fault.name for fault in find_faults(engine, ["sampler", "decoding"])} for engine in ("vllm", "sglang")
    }
    assert names == {"vllm": set(sampling.VLLM), "sglang": set(sampling.SGLANG)}
