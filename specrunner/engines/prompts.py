"""Prompts as token ids: the part of tokenisation that every adapter does the same way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from specrunner.errors import ModelUnavailable, ModelUnsupported
from specrunner.spec.model import Prompt


def encode_prompt(prompt: Prompt, tokenizer: Any, vocab_size: int) -> list[int]:
    """Turn a prompt into the ids a model is fed with.

    Args:
        prompt: text, chat messages or ids.
        tokenizer: a tokenizer of Transformers; None when the checkpoint has none (then only ids can be encoded).
        vocab_size: rows of the model's embedding.

    Returns:
        At least one id, each in [0, vocab_size), exactly `prompt.length` of them where that is set.

    Raises:
        ModelUnavailable: text or messages, and the checkpoint has no tokenizer.
        ModelUnsupported: no chat template, an id out of range, no ids at all, or fewer than `prompt.length`.
    """
    if prompt.token_ids is not None:
        return fit_ids(prompt.token_ids, prompt.length, vocab_size)
    if tokenizer is None:
        raise ModelUnavailable(
            "the checkpoint has no tokenizer, and the prompt is not token ids",
            help="give the prompt as `token_ids`",
        )
    if prompt.messages is None:
        ids = tokenizer(prompt.text, add_special_tokens=prompt.add_special_tokens)["input_ids"]
        return fit_ids(ids, prompt.length, vocab_size)
    if not tokenizer.chat_template:
        raise ModelUnsupported(
            "the prompt is chat messages, and the checkpoint has no chat template", help="give the prompt as `text`"
        )
    messages = [dict(message) for message in prompt.messages]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return fit_ids(tokenizer(text, add_special_tokens=False)["input_ids"], prompt.length, vocab_size)


def fit_ids(ids: Sequence[int], length: int | None, vocab_size: int) -> list[int]:
    """Keep the first `length` ids (all, when None) and check them against the vocabulary.

    Raises:
        ModelUnsupported: as `encode_prompt`.
    """
    if length is not None and len(ids) < length:
        raise ModelUnsupported(f"the prompt has {len(ids)} tokens, and `prompt.length` asks for {length}")
    kept = [int(token) for token in ids[:length]]
    if not kept:
        raise ModelUnsupported("the prompt has no tokens")
    for position, token in enumerate(kept):
        if not 0 <= token < vocab_size:
            raise ModelUnsupported(f"token id {token} at position {position} is outside the vocabulary of {vocab_size}")
    return kept
