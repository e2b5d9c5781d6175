"""What SGLang's key-value cache and context hold: what is longer is refused, and not cut short without a word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from specrunner.errors import CaptureIncomplete, ModelUnsupported

RESERVE = 2
"""Tokens of context and cache that SGLang's scheduler keeps free of a request."""


def check_room(described: Mapping[str, Any], prompt: int, new: int, context: int, cache: int) -> None:
    """Refuse a request with more tokens than there is room for.

    Args:
        described: what was loaded, see `plugin.describe_model`.
        prompt: prompt tokens, for the message.
        new: tokens to come, for the message.
        context: tokens of context that the request takes.
        cache: tokens of the key-value cache that it takes.

    Raises:
        ModelUnsupported: more tokens than the key-value cache or the model's context holds.
    """
    length, held = described["context_length"], described["max_total_tokens"]
    if context > length or cache > held:
        raise ModelUnsupported(
            f"{prompt} prompt tokens and {new} new ones are more than sglang's room for {min(length, held)} "
            f"(context of {length}, cache of {held})"
        )


def check_served(described: Mapping[str, Any], prompt: int, new: int, block_length: int | None) -> None:
    """Refuse what SGLang's scheduler would cut short (`init_req_max_new_tokens`) or never begin (`PrefillAdder`).

    Args:
        described: what was loaded, see `plugin.describe_model`.
        prompt: tokens of the prompt.
        new: tokens to generate.
        block_length: tokens in a block, where whole blocks are generated; one more is charged with the prompt.

    Raises:
        ModelUnsupported: see `check_room`.
    """
    block, page = block_length or 0, described["page_size"]
    context = prompt + new + RESERVE
    if block:
        context = max(context, -(-(prompt + new) // block) * block)
    cache = -(-(prompt + block) // page) * page + page + new + RESERVE
    check_room(described, prompt, new, context, cache)


def check_whole(output: Sequence[int], reason: str | None, max_new_tokens: int) -> None:
    """Make sure that SGLang did not shorten a generation by a limit of its own.

    Raises:
        CaptureIncomplete: it ended for its length, with fewer tokens than were asked for.
    """
    if reason == "length" and len(output) < max_new_tokens:
        raise CaptureIncomplete(f"sglang ended at {len(output)} tokens of {max_new_tokens} by a limit of its own")
