"""Held-out prompts: other inputs made of a prompt's own tokens, drawn with a seed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import TypeVar

from specrunner.spec.model import Prompt

Item = TypeVar("Item")

SHORTEST = 0.25
"""The least part of a prompt that a draw keeps."""


def draw_prompts(prompt: Prompt, count: int, seed: int) -> tuple[Prompt, ...]:
    """Draw prompts of the same kind: the parts of the given one in another order, cut to another length.

    A text is cut into words and the spaces between them, so that any tokenizer may follow; token ids are taken as they
    are; of messages the contents are shuffled, in their roles. Equal arguments draw equal prompts.

    Args:
        prompt: what to draw from.
        count: how many.
        seed: another seed, other prompts.
    """
    random = Random(f"{seed}:{prompt}")
    return tuple(_draw(prompt, random) for _ in range(count))


def _draw(prompt: Prompt, random: Random) -> Prompt:
    if prompt.length is not None:  # all tokens stay, in another order, and fewer of them are used
        least = max(1, int(SHORTEST * prompt.length))
        return replace(_rearrange(prompt, random, whole=True), length=random.randint(least, prompt.length))
    return _rearrange(prompt, random, whole=False)


def _rearrange(prompt: Prompt, random: Random, *, whole: bool) -> Prompt:
    if prompt.token_ids is not None:
        return replace(prompt, token_ids=tuple(_shuffle(prompt.token_ids, random, whole=whole)))
    if prompt.messages is not None:
        messages = tuple({**message, "content": _retell(message["content"], random)} for message in prompt.messages)
        return replace(prompt, messages=messages)
    return replace(prompt, text=_retell(prompt.text or "", random, whole=whole))


def _retell(text: str, random: Random, *, whole: bool = True) -> str:
    words = re.findall(r"\s+|\w+|[^\w\s]", text)
    return "".join(_shuffle(words, random, whole=whole)) if words else text


def _shuffle(items: Sequence[Item], random: Random, *, whole: bool) -> list[Item]:
    shuffled = random.sample(items, len(items))
    return shuffled if whole else shuffled[: random.randint(max(1, int(SHORTEST * len(items))), len(items))]
