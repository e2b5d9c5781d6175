"""Block-diffusion decoding on vLLM: the adapter's denoising loop over the engine's own forwards.

Each pass is one request: the whole sequence so far, masks included, prefilled block by block. The keys and values of
finished blocks are computed anew at every pass (or come from the prefix cache, where the spec turns it on), so the pass
sees exactly the state that a forced prompt would show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from specrunner.engines.denoising import PassLog
from specrunner.errors import CaptureIncomplete, ModelUnsupported

if TYPE_CHECKING:
    import torch

    from specrunner.engines.base import Capture
    from specrunner.engines.vllm import VllmEngine
    from specrunner.spec.model import Decode

DEFAULT_THRESHOLD = 0.95


@dataclass(frozen=True, slots=True)
class DenoisingPass:
    """One pass; the fields are those of `specrunner.engines.denoising.Pass`."""

    block_start: int
    tokens_before: torch.Tensor
    logits: torch.Tensor
    accepted: torch.Tensor
    tokens_after: torch.Tensor


def denoise_blocks(engine: VllmEngine, capture: Capture, decode: Decode, patterns: Sequence[str]) -> None:
    """Decode by low confidence at temperature 0; put tokens, wanted passes and the trajectory into `capture`.

    A block starts as masks; the tail of a prompt that ends inside a block shares it. A pass fills the masked positions
    whose probability is above the threshold, or else the single most probable one; ties go to the lower token id and
    the earlier position. Decoding ends after the block with an end of sequence.

    Raises:
        ModelUnsupported: a block length other than the session's, or no mask id.
        CaptureIncomplete: the engine computed fewer rows than a block has, or a pattern selects no pass.
    """
    import torch

    length = engine.block_length
    if decode.block_length not in (None, length):
        raise ModelUnsupported(
            f"the session runs blocks of {length} tokens, the decode asks for {decode.block_length}",
            help=f"set specrunner_block_length: {decode.block_length} in the engine's options",
        )
    threshold = DEFAULT_THRESHOLD if decode.threshold is None else decode.threshold
    mask_id = engine.mask_id()
    stops = set() if decode.ignore_eos else engine.eos_ids()
    log = PassLog(patterns)
    prompt = len(capture.prompt_token_ids)
    tokens = list(capture.prompt_token_ids)
    while len(tokens) < prompt + decode.max_new_tokens:
        start = len(tokens) // length * length
        block = torch.full((length,), mask_id, dtype=torch.long)
        block[: len(tokens) - start] = torch.tensor(tokens[start:], dtype=torch.long)
        fresh = len(tokens) - start
        # A pass may predict the mask's own id, so the number of passes is bounded, not the number of masks left.
        for _ in range(length):
            if not bool((block == mask_id).any()):
                break
            done = denoise_once(engine, tokens[:start], block, threshold, mask_id)
            log.add(done)
            block = done.tokens_after
        tokens = tokens[:start] + block.tolist()
        if stops & set(tokens[start + fresh :]):
            break
    new = tokens[prompt : prompt + decode.max_new_tokens]
    end = next((index + 1 for index, token in enumerate(new) if token in stops), len(new))
    capture.output_token_ids = new[:end]
    capture.tensors |= log.finish()
    capture.facts |= log.facts()
    capture.facts["finished_blocks"] = "prefix cache" if engine.prefix_caching else "recomputed"


def denoise_once(
    engine: VllmEngine, before: Sequence[int], block: torch.Tensor, threshold: float, mask_id: int
) -> DenoisingPass:
    """Run one pass over `before` + `block` and fill what it accepts."""
    import torch

    rows, tensors = engine.run_prompt([*before, *block.tolist()], ["logits"], last_rows=len(block))
    chunks = next(iter(rows.values()), [])
    if not chunks or chunks[-1] != len(block) or len(tensors["logits"]) != len(block):
        raise CaptureIncomplete(
            f"the engine computed {chunks} rows, the last of which are not the block of {len(block)}"
        )
    logits = tensors["logits"].float()
    masked = block == mask_id
    predicted = logits.argmax(-1)
    confidence = logits.softmax(-1).gather(-1, predicted[:, None])[:, 0]
    accepted = masked & (confidence > threshold)
    if not bool(accepted.any()):
        best = confidence.masked_fill(~masked, -1.0).argsort(descending=True, stable=True)[0]
        accepted = torch.zeros_like(masked).index_fill(0, best, True)
    return DenoisingPass(len(before), block.clone(), logits, accepted, torch.where(accepted, predicted, block))
