"""Several prompts in one forward of a Transformers model: padded on the right, decoded in step by our own loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from specrunner.engines.denoising import rule_options
from specrunner.errors import CaptureIncomplete
from specrunner.spec.model import Decode

if TYPE_CHECKING:
    import numpy as np
    import torch


def pad_prompts(prompts: Sequence[Sequence[int]], device: Any) -> dict[str, torch.Tensor]:
    """Return `input_ids` and `attention_mask`, [prompts, tokens] each; padding is token 0 on the right, masked out.

    Tokens keep the positions that they have alone.
    """
    import torch

    width = max(map(len, prompts))
    ids = torch.zeros((len(prompts), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
        mask[row, : len(prompt)] = 1
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def keep_first(record: torch.Tensor, sizes: tuple[int, int], rows: int) -> torch.Tensor:
    """Return the first prompt's rows of a tensor recorded in a batched forward, [1, rows, ...] or [rows, ...].

    Args:
        record: [prompts, width, ...], or [prompts * width, ...] where a module works on flat tokens.
        sizes: prompts and width.
        rows: tokens of the first prompt.

    Raises:
        CaptureIncomplete: the tensor has neither shape.
    """
    prompts, width = sizes
    if record.ndim > 2 and tuple(record.shape[:2]) == sizes:
        return record[:1, :rows]
    if record.shape[0] == prompts * width:
        return record[:rows]
    raise CaptureIncomplete(f"a tensor of shape {list(record.shape)} does not tell {prompts} prompts of {width} apart")


def follows_generate(decode: Decode) -> bool:
    """Tell whether the modeling file's `generate` decodes by this rule."""
    return (
        decode.accept == "gt"
        and decode.fallback in ("schedule", "best")
        and not decode.exclude_mask_id
        and not decode.eos_early_stop
    )


def denoise_together(
    model: Any, prompts: Sequence[list[int]], decode: Decode, eos_ids: set[int], on_pass: Callable[[Any], None]
) -> list[int]:
    """Decode by block diffusion, all prompts in step; return the tokens of the first.

    Args:
        model: a block-diffusion model whose attention is block-causal over what its 2-D mask leaves.
        prompts: token ids.
        decode: the rule.
        eos_ids: what ends a sequence; one id.
        on_pass: called after each pass of the first prompt.
    """
    from specrunner.models.llada2_decoding import Sampler, decode_together

    assert decode.block_length is not None and decode.threshold is not None
    length = decode.block_length
    sampler = Sampler(
        block_length=length,
        threshold=decode.threshold,
        mask_id=model.config.mask_token_id,
        eos_id=-1 if decode.ignore_eos else next(iter(eos_ids), -1),
        **rule_options(decode),
    )

    def predict(states: list[list[int]]) -> list[np.ndarray]:
        logits = model(**_mask_blocks(pad_prompts(states, model.device), length)).logits
        return [logits[row, len(state) - length : len(state)].float().cpu().numpy() for row, state in enumerate(states)]

    return decode_together(predict, prompts, decode.max_new_tokens, sampler, on_pass)


def _mask_blocks(inputs: dict[str, torch.Tensor], length: int) -> dict[str, torch.Tensor]:
    """Turn a 2-D mask into one over queries and keys, [prompts, 1, tokens, tokens]: block-causal, without padding."""
    import torch

    known = inputs["attention_mask"].bool()
    block = torch.arange(known.shape[1], device=known.device) // length
    sees = (block[None, :] <= block[:, None])[None, None] & known[:, None, None, :]
    return {"input_ids": inputs["input_ids"], "attention_mask": sees}


def generate_together(model: Any, prompts: Sequence[list[int]], max_new_tokens: int, stops: set[int]) -> list[int]:
    """Decode greedily, all prompts in step and without a key-value cache; return the tokens of the first."""
    import torch

    rows = [list(prompt) for prompt in prompts]
    new: list[int] = []
    while len(new) < max_new_tokens and not (new and new[-1] in stops):
        logits = model(**pad_prompts(rows, model.device), use_cache=False).logits
        ends = torch.tensor([len(row) - 1 for row in rows], device=logits.device)
        chosen = logits[torch.arange(len(rows), device=logits.device), ends].argmax(-1).tolist()
        for row, token in zip(rows, chosen, strict=True):
            row.append(int(token))
        new.append(int(chosen[0]))
    return new
