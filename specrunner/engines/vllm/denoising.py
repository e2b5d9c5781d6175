"""Block-diffusion decoding on vLLM: our sampler over the engine's own forwards.

Each pass is one request: the whole sequence so far, masks included, prefilled block by block. The keys and values of
finished blocks are computed anew at every pass (or come from the prefix cache, where the spec turns it on), so a pass
sees exactly the state that a forced prompt would show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from specrunner.engines.denoising import DEFAULT_THRESHOLD, OWN_LOOP, PassLog, rule_options
from specrunner.errors import CaptureIncomplete, ModelUnsupported
from specrunner.models.llada2_decoding import Sampler, decode_together

if TYPE_CHECKING:
    import numpy as np

    from specrunner.engines.base import Capture
    from specrunner.engines.vllm import VllmEngine
    from specrunner.spec.model import Decode


def denoise_blocks(
    engine: VllmEngine,
    capture: Capture,
    decode: Decode,
    patterns: Sequence[str],
    companions: Sequence[Sequence[int]] = (),
) -> None:
    """Decode by low confidence at temperature 0; put tokens, wanted passes and the trajectory into `capture`.

    Args:
        engine: a loaded engine with block-causal attention.
        capture: holds the prompt.
        decode: `block_length` None is the session's, `threshold` None is 0.95.
        patterns: tensor patterns of the request.
        companions: prompts that are decoded in step, one batch a pass.

    Raises:
        ModelUnsupported: a block length other than the session's, no mask id, or several ends of sequence.
        CaptureIncomplete: the engine's last forward was not the block, or a pattern selects no pass.
    """
    length = engine.block_length
    if decode.block_length not in (None, length):
        raise ModelUnsupported(
            f"the session runs blocks of {length} tokens, the decode asks for {decode.block_length}",
            help=f"set specrunner_block_length: {decode.block_length} in the engine's options",
        )
    ends = set() if decode.ignore_eos else engine.eos_ids()
    if len(ends) > 1:
        raise ModelUnsupported(f"low_confidence decoding knows one end of sequence, the model has {sorted(ends)}")
    sampler = Sampler(
        block_length=length,
        threshold=DEFAULT_THRESHOLD if decode.threshold is None else decode.threshold,
        mask_id=engine.mask_id(),
        eos_id=next(iter(ends), -1),
        **rule_options(replace(decode, block_length=length)),
    )

    def predict(states: list[list[int]]) -> list[np.ndarray]:
        rows, tensors = engine.reader.run_prompt(states[0], ["logits"], last_rows=length, companions=states[1:])
        chunks = next(iter(rows.values()), [])
        if not chunks or chunks[-1] != length or len(tensors["logits"]) != length:
            raise CaptureIncomplete(f"the engine ran forwards of {chunks} tokens, the last is not a block of {length}")
        names = ["logits", *(f"companions.{number}.logits" for number in range(len(states) - 1))]
        return [tensors[name].float().numpy() for name in names]

    log = PassLog(patterns)
    prompts = [capture.prompt_token_ids, *map(list, companions)]
    capture.output_token_ids = decode_together(predict, prompts, decode.max_new_tokens, sampler, on_pass=log.add)
    capture.tensors |= log.finish()
    capture.facts |= log.facts() | {"decode_loop": OWN_LOOP, "mask_token_id": engine.mask_id()}
    capture.facts["eos_token_ids"] = sorted(engine.eos_ids())
    capture.facts["finished_blocks"] = "prefix cache" if engine.prefix_caching else "recomputed"
