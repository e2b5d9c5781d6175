"""What a block-diffusion decode did, pass by pass: the wanted logits and the trajectory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from specrunner.errors import CaptureIncomplete
from specrunner.spec.model import Decode
from specrunner.spec.tensor_names import PASSES, match_name

OWN_LOOP = "specrunner's own loop"
"""The fact `decode_loop` where the adapter decodes, and not the engine."""

DEFAULT_THRESHOLD = 0.95
"""The confidence above which our own loop accepts a position where a decode states none."""


def rule_options(decode: Decode) -> dict[str, Any]:
    """Return a decode's rule as keywords of `Sampler`: how positions are accepted, and when decoding stops."""
    return {
        "accept": decode.accept,
        "fallback": decode.fallback,
        "may_predict_mask": not decode.exclude_mask_id,
        "eos_early_stop": decode.eos_early_stop,
        "steps": decode.steps or decode.block_length,
    }


class PassLog:
    """Collects the passes of one decode.

    Args:
        patterns: tensor patterns of the request; those of `passes.*` choose which logits are kept.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns = [pattern for pattern in patterns if pattern.startswith(PASSES)]
        self._tensors: dict[str, Any] = {}
        self._trajectory: list[dict[str, Any]] = []

    def add(self, done: Any) -> None:
        """Take note of a pass; its logits are copied when they are wanted.

        Args:
            done: what a model reports of a pass, as torch tensors or numpy arrays: `block_start`, absolute position of
                the block's first token; `tokens_before` and `tokens_after`, ids [block_length]; `logits` [block_length,
                vocabulary]; `accepted`, bool [block_length], the positions that the pass filled.
        """
        name = f"passes.{len(self._trajectory)}.logits"
        if any(match_name(pattern, name) for pattern in self._patterns):
            logits = done.logits
            self._tensors[name] = logits.copy() if hasattr(logits, "copy") else logits.detach().cpu().clone()
        positions = [index for index, filled in enumerate(done.accepted.tolist()) if filled]
        after = done.tokens_after.tolist()
        self._trajectory.append(
            {
                "block_start": int(done.block_start),
                "tokens_before": done.tokens_before.tolist(),
                "accepted": [int(done.block_start) + index for index in positions],
                "accepted_token_ids": [after[index] for index in positions],
            }
        )

    def finish(self) -> dict[str, Any]:
        """Return the wanted logits by name, [block_length, vocabulary] each.

        Raises:
            CaptureIncomplete: a pattern selects no pass.
        """
        for pattern in self._patterns:
            if not any(match_name(pattern, name) for name in self._tensors):
                raise CaptureIncomplete(f"the decode made {len(self._trajectory)} passes, none matches {pattern!r}")
        return self._tensors

    def facts(self) -> dict[str, Any]:
        """Return `passes`, how many there were, and `trajectory`, one entry a pass with absolute positions."""
        return {"passes": len(self._trajectory), "trajectory": self._trajectory}
