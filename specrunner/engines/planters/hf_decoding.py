"""Faults of `hf` in the sampler and the order of decoding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from specrunner.engines.planters.hf_parts import change_method, find_class, find_code, find_model
from specrunner.engines.planters.patching import Planter, replaced

Tensor = torch.Tensor


def _generate(change: Callable[[Any, dict[str, Any]], None]) -> Planter:
    """Call `generate` with other arguments; `change(model, options)` edits them in place."""

    def make(original: Any) -> Any:
        def generate(self: Any, inputs: Tensor, **options: Any) -> Tensor:
            change(self, options)
            result: Tensor = original(self, inputs, **options)
            return result

        return _with_signature(generate)

    return change_method("LLaDA2MoeModelLM", "generate", make)


def _with_signature(function: Any) -> Any:
    """State `on_pass`, by which the adapter recognises a `generate` that reports its passes."""

    def generate(self: Any, inputs: Tensor, *, on_pass: Any = None, **options: Any) -> Tensor:
        result: Tensor = function(self, inputs, on_pass=on_pass, **options)
        return result

    return torch.no_grad()(generate)


def _set(**values: Any) -> Callable[[Any, dict[str, Any]], None]:
    return lambda _model, options: options.update(values)


def _half_the_steps(model: Any, options: dict[str, Any]) -> None:
    options["steps"] = (options.get("block_length") or model.config.block_length) // 2


def _half_the_block(model: Any, options: dict[str, Any]) -> None:
    options["block_length"] = (options.get("block_length") or model.config.block_length) // 2


def _denoise(choose: Callable[[Tensor, Tensor, float], Tensor]) -> Planter:
    """Replace which positions a pass fills; `choose(masked, confidence, threshold)` returns bool [L]."""

    def plant(engine: Any) -> Any:
        code = find_code(engine)

        def _denoise(
            self: Any, tokens: Tensor, start: int, length: int, threshold: float, steps: int, mask_id: int, on_pass: Any
        ) -> None:
            block = tokens[start:]
            mask = code.block_causal_mask(torch.arange(len(tokens), device=tokens.device)[None], length)
            for _step in range(steps):
                masked = block == mask_id
                if not bool(masked.any()):
                    return
                logits = self(tokens[None], attention_mask=mask).logits[0, start:]
                predicted = logits.argmax(-1)
                confidence = logits.softmax(-1).gather(-1, predicted[:, None])[:, 0]
                accepted = choose(masked, confidence, threshold)
                before = block.clone()
                block[accepted] = predicted[accepted]
                if on_pass is not None:
                    on_pass(code.DenoisingPass(start, before, logits, accepted, block.clone()))

        return replaced(find_class(engine, "LLaDA2MoeModelLM"), "_denoise", _denoise)

    return plant


def _best(masked: Tensor, confidence: Tensor) -> Tensor:
    return torch.zeros_like(masked).index_fill(0, confidence.masked_fill(~masked, -1.0).argmax()[None], True)


def _leftmost(masked: Tensor, confidence: Tensor, threshold: float) -> Tensor:
    accepted = masked & (confidence > threshold)
    return accepted if bool(accepted.any()) else torch.zeros_like(masked).index_fill(0, masked.nonzero()[0], True)


def _rewritten(masked: Tensor, confidence: Tensor, threshold: float) -> Tensor:
    accepted = masked & (confidence > threshold)
    accepted = accepted if bool(accepted.any()) else _best(masked, confidence)
    upper = torch.arange(len(masked), device=masked.device) >= len(masked) // 2
    return accepted | (~masked & (confidence > threshold) & upper)


def _at_least(masked: Tensor, confidence: Tensor, threshold: float) -> Tensor:
    accepted = masked & (confidence >= threshold)
    return accepted if bool(accepted.any()) else _best(masked, confidence)


def _blocks_from_the_prompt(_original: Any) -> Any:
    """Begin the first block where the prompt ends, whatever the block's edge."""

    def generate(self: Any, inputs: Tensor, on_pass: Any, max_new_tokens: int, **options: Any) -> Tensor:
        length = options.get("block_length") or self.config.block_length
        eos = options.get("eos_id", self.config.eos_token_id)
        mask_id, prompt = self.config.mask_token_id, inputs.shape[1]
        tokens = inputs[0]
        while len(tokens) < prompt + max_new_tokens and eos not in tokens[prompt:].tolist():
            start = len(tokens)
            tokens = torch.cat([tokens, tokens.new_full((length,), mask_id)])
            self._denoise(tokens, start, length, options.get("threshold", 0.95), length, mask_id, on_pass)
        new = tokens[prompt : prompt + max_new_tokens]
        stops = (new == eos).nonzero()
        return new[: int(stops[0]) + 1 if len(stops) else None][None]

    return _with_signature(generate)


def _stale_blocks(engine: Any) -> Any:
    """Let later blocks see a finished one as its last denoising pass saw it, with masks that were filled since."""
    model = find_model(engine)
    original = model.forward
    seen: dict[int, Tensor] = {}

    def forward(input_ids: Tensor, **options: Any) -> Any:
        if options.get("attention_mask") is None:
            return original(input_ids, **options)
        length, tokens = model.config.block_length, input_ids.shape[1]
        stale = input_ids.clone()
        for start in range(0, tokens - length, length):
            if start in seen and bool((seen[start] != input_ids[0, start : start + length]).any()):
                stale[0, start : start + length] = seen[start]
        if tokens % length == 0:
            seen[tokens - length] = input_ids[0, tokens - length :].clone()
        return original(stale, **options)

    return replaced(model, "forward", forward)


def _tail_lost(original: Any) -> Any:
    """Mask the prompt's tail in the block that it shares with the first new tokens."""

    def generate(self: Any, inputs: Tensor, **options: Any) -> Tensor:
        length = options.get("block_length") or self.config.block_length
        kept = inputs.shape[1] // length * length
        changed = inputs.clone()
        if kept:
            changed[:, kept:] = self.config.mask_token_id
        result: Tensor = original(self, changed, **options)
        return result

    return _with_signature(generate)


PLANTERS: dict[str, Planter] = {
    "sampler-low-threshold": _generate(_set(threshold=0.01)),
    "sampler-wrong-mask-id": _generate(_set(mask_id=1)),
    "sampler-two-a-pass": _generate(_half_the_steps),
    "sampler-leftmost": _denoise(_leftmost),
    "sampler-at-least": _denoise(_at_least),
    "decoding-tokens-rewritten": _denoise(_rewritten),
    "decoding-eos-ignored": _generate(_set(eos_id=-1)),
    "decoding-half-blocks": _generate(_half_the_block),
    "decoding-blocks-from-the-prompt": change_method("LLaDA2MoeModelLM", "generate", _blocks_from_the_prompt),
    "decoding-prompt-tail-lost": change_method("LLaDA2MoeModelLM", "generate", _tail_lost),
    "kv_cache-stale-block": _stale_blocks,
}
"""Context managers by the fault's name."""
