"""Faults of samplers in engines that are served: in our own loop over vLLM's forwards, and around SGLang's step."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from specrunner.engines.planters.patching import Planter, replaced


def _sampler(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Planter:
    """Give vLLM's loop another `Sampler`; `change(fields)` returns those that differ."""

    def plant(_engine: Any) -> AbstractContextManager[None]:
        denoising: Any = importlib.import_module("specrunner.engines.vllm.denoising")
        original = denoising.Sampler
        return replaced(denoising, "Sampler", lambda **fields: original(**fields | change(fields)))

    return plant


def _leftmost(engine: Any) -> AbstractContextManager[None]:
    from specrunner.engines.planters import oracle

    return oracle.PLANTERS["sampler-leftmost"](engine)


VLLM: dict[str, Planter] = {
    "sampler-low-threshold": _sampler(lambda fields: {"threshold": 0.01}),
    "sampler-wrong-mask-id": _sampler(lambda fields: {"mask_id": 1}),
    "sampler-two-a-pass": _sampler(lambda fields: {"steps": fields["block_length"] // 2, "fallback": "schedule"}),
    "sampler-leftmost": _leftmost,
    "sampler-at-least": _sampler(lambda fields: {"accept": "ge"}),
    "decoding-eos-ignored": _sampler(lambda fields: {"eos_id": -1}),
}
"""Context managers by the fault's name."""

Step = Callable[[Any, Any, Any, Any], Any]
"""SGLang's `LowConfidence.step(algorithm, batch, logits, states)`, for a batch of one block."""


def _low_threshold(original: Step) -> Step:
    def step(algorithm: Any, batch: Any, logits: Any, states: Any) -> Any:
        algorithm.threshold = 0.01
        return original(algorithm, batch, logits, states)

    return step


def _find_masked(algorithm: Any, batch: Any) -> Any:
    masked = batch.input_ids == algorithm.mask_id
    if batch.dllm_prompt_mask is not None:
        masked &= ~batch.dllm_prompt_mask.view(-1)
    return masked


def _first(original: Step) -> Step:
    """Where no position is sure, fill the first and not the best."""

    def step(algorithm: Any, batch: Any, logits: Any, states: Any) -> Any:
        before, masked = batch.input_ids.clone(), _find_masked(algorithm, batch)
        confidence, tokens = logits.softmax(-1).max(-1)
        done = original(algorithm, batch, logits, states)
        if bool(masked.any()) and not bool((masked & (confidence > algorithm.threshold)).any()):
            place = int(masked.nonzero()[0])
            before[place] = tokens[place]
            batch.input_ids.copy_(before)
        return done

    return step


def _two(original: Step) -> Step:
    """Fill two positions at least, as with half the steps."""

    def step(algorithm: Any, batch: Any, logits: Any, states: Any) -> Any:
        masked = _find_masked(algorithm, batch)
        confidence, tokens = logits.softmax(-1).max(-1)
        done = original(algorithm, batch, logits, states)
        best = confidence.masked_fill(~masked, -1.0).topk(2).indices
        for place in best[masked[best]].tolist():
            batch.input_ids[place] = tokens[place]
        return done

    return step


SGLANG: dict[str, Callable[[Step], Step]] = {
    "sampler-low-threshold": _low_threshold,
    "sampler-leftmost": _first,
    "sampler-two-a-pass": _two,
}
"""By the fault's name: what it makes of SGLang's step, in the process that holds the model."""
