"""Block-diffusion decoding at temperature 0, over any function from token ids to a block's logits."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

NEAR_BEST = 1e-5
"""How far below the highest confidence the fallback `near_best` lowers the threshold (dInfer, the vLLM dLLM plugin)."""


@dataclass(frozen=True, slots=True)
class Sampler:
    """The rules of low-confidence decoding, which differ between implementations.

    Attributes:
        block_length: tokens per block, L.
        threshold: a masked position is filled when its probability exceeds this.
        steps: forward passes per block at most.
        mask_id: the mask's token id.
        eos_id: the end of sequence; decoding stops after the block that holds it.
        accept: `gt` compares the probability with `>` (Hugging Face, SGLang), `ge` with `>=`.
        may_predict_mask: whether the mask id itself may be predicted; the position then stays masked.
        fallback: what a pass fills when too few positions reach the threshold: `schedule`, as many of the surest as
            `quota` says (Hugging Face); `best`, the surest (SGLang); `near_best`, what is above a threshold lowered to
            `NEAR_BEST` below the highest confidence (dInfer).
        eos_early_stop: stop as soon as an end of sequence stands behind filled positions alone, not behind the block.
    """

    block_length: int
    threshold: float
    steps: int
    mask_id: int
    eos_id: int
    accept: Literal["gt", "ge"] = "gt"
    may_predict_mask: bool = True
    fallback: Literal["schedule", "best", "near_best"] = "schedule"
    eos_early_stop: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.block_length < 1 or self.steps < 1:
            raise ValueError("block_length and steps must be 1 or more")
        if self.accept not in ("gt", "ge"):
            raise ValueError(f"accept must be gt or ge, not {self.accept!r}")
        if self.fallback not in ("schedule", "best", "near_best"):
            raise ValueError(f"fallback must be schedule, best or near_best, not {self.fallback!r}")

    def quota(self, step: int) -> int:
        """Return how many positions pass number `step` has to fill: L over the steps, the remainder to the first."""
        if self.fallback != "schedule":
            return 1
        share, remainder = divmod(self.block_length, self.steps)
        return share + (1 if step < remainder else 0)


@dataclass(frozen=True, slots=True)
class DenoisingPass:
    """What one forward pass of a block saw and did.

    Attributes:
        block_start: absolute position of the block's first token.
        tokens_before: int64 [L], the block before the pass, masks included.
        logits: float64 [L, V].
        accepted: bool [L], the positions this pass filled.
        tokens_after: int64 [L], the block after the pass.
    """

    block_start: int
    tokens_before: np.ndarray
    logits: np.ndarray
    accepted: np.ndarray
    tokens_after: np.ndarray


def decode_blocks(
    predict: Callable[[list[int]], np.ndarray],
    prompt: list[int],
    max_new_tokens: int,
    sampler: Sampler,
    on_pass: Callable[[DenoisingPass], None] | None = None,
) -> list[int]:
    """Decode block after block.

    Blocks are cut at absolute positions, so the tail of a prompt that ends inside a block shares the first one. A block
    starts with masks wherever the prompt does not reach; passes fill them until none is left or the steps are used up.

    Args:
        predict: from the ids of all tokens up to a block's end to that block's logits [L, V].
        prompt: token ids, at least one.
        max_new_tokens: upper bound on what is returned; 0 decodes nothing.
        sampler: the rules.
        on_pass: called after each pass.

    Returns:
        The new tokens up to and including the first end of sequence, at most `max_new_tokens`.
    """
    return decode_together(lambda states: [predict(states[0])], [prompt], max_new_tokens, sampler, on_pass)


def decode_together(
    predict: Callable[[list[list[int]]], Sequence[np.ndarray]],
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    sampler: Sampler,
    on_pass: Callable[[DenoisingPass], None] | None = None,
) -> list[int]:
    """Decode several prompts in step, until the first is done.

    Args:
        predict: from the ids of all tokens up to the end of a block, of each prompt that still decodes, to those
            blocks' logits, [L, V] each.
        prompts: token ids; what comes of all but the first is thrown away.
        max_new_tokens: upper bound on what is returned.
        sampler: the rules.
        on_pass: called after each pass of the first.

    Returns:
        The new tokens of the first, as `decode_blocks`.
    """
    runs = [denoise_blocks(prompts[0], max_new_tokens, sampler, on_pass)]
    runs += [denoise_blocks(prompt, max_new_tokens, sampler) for prompt in prompts[1:]]
    alive: list[tuple[Generator[list[int], np.ndarray, list[int]], list[int]]] = []
    for run in runs:
        try:
            alive.append((run, next(run)))
        except StopIteration as end:
            if run is runs[0]:
                return list(end.value)
    while True:
        logits = predict([state for _, state in alive])
        going, alive = alive, []
        for (run, _), block in zip(going, logits, strict=True):
            try:
                alive.append((run, run.send(block)))
            except StopIteration as end:
                if run is runs[0]:
                    return list(end.value)


def denoise_blocks(
    prompt: list[int],
    max_new_tokens: int,
    sampler: Sampler,
    on_pass: Callable[[DenoisingPass], None] | None = None,
) -> Generator[list[int], np.ndarray, list[int]]:
    """Yield each state of a decode, all tokens up to the block's end; take the block's logits [L, V] in return."""
    length = sampler.block_length
    tokens = list(prompt)
    wanted = len(prompt) + max_new_tokens
    while len(tokens) < wanted:
        start = len(tokens) - len(tokens) % length
        given = tokens[start:]
        block = np.array(given + [sampler.mask_id] * (length - len(given)), dtype=np.int64)
        for step in range(sampler.steps):
            if not (block == sampler.mask_id).any() or (sampler.eos_early_stop and _has_ended(block, given, sampler)):
                break
            logits = yield [*tokens[:start], *block.tolist()]
            accepted, after = denoise(block, logits, sampler, step)
            if on_pass is not None:
                on_pass(DenoisingPass(start, block, logits, accepted, after))
            block = after
        tokens[start:] = block.tolist()
        if sampler.eos_id in tokens[start + len(given) :]:
            break
    new = tokens[len(prompt) : wanted]
    return new[: new.index(sampler.eos_id) + 1] if sampler.eos_id in new else new


def _has_ended(block: np.ndarray, given: list[int], sampler: Sampler) -> bool:
    """Tell whether an end of sequence stands behind filled positions alone."""
    new = block[len(given) :].tolist()
    return sampler.eos_id in new and sampler.mask_id not in new[: new.index(sampler.eos_id)]


def denoise(block: np.ndarray, logits: np.ndarray, sampler: Sampler, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Fill some masks of a block from its logits.

    Args:
        block: int64 [L], masks included.
        logits: [L, V].
        sampler: the rules.
        step: number of this pass within the block, from 0.

    Returns:
        bool [L] the positions filled, and int64 [L] the block after. Equal logits: the lower token id; equal
        probabilities: the earlier position.
    """
    if not sampler.may_predict_mask:
        logits = logits.copy()
        logits[:, sampler.mask_id] = -np.inf
    candidates = logits.argmax(axis=1)
    best = logits.max(axis=1)
    confidence = 1.0 / np.exp(logits - best[:, None]).sum(axis=1)
    masked = np.flatnonzero(block == sampler.mask_id)
    threshold = sampler.threshold
    if sampler.fallback == "near_best":
        threshold = min(threshold, float(confidence[masked].max()) - NEAR_BEST)
    sure = confidence >= threshold if sampler.accept == "ge" else confidence > threshold
    chosen = [position for position in masked if sure[position]]
    if len(chosen) < sampler.quota(step):
        chosen = sorted(masked, key=lambda position: -confidence[position])[: sampler.quota(step)]
    after = block.copy()
    after[chosen] = candidates[chosen]
    accepted = np.zeros(len(block), dtype=bool)
    accepted[chosen] = True
    return accepted, after
