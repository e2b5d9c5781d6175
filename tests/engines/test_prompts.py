"""Prompts as ids: what every adapter shares."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specrunner.engines.prompts import encode_prompt, fit_ids
from specrunner.errors import ModelUnavailable, ModelUnsupported
from specrunner.spec.model import Prompt


class Letters:
    """A tokenizer of letters; BOS is 99."""

    chat_template: str | None = "yes"

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [99] * add_special_tokens + [ord(letter) - 97 for letter in text]}

    def apply_chat_template(self, messages: list[dict[str, str]], **options: bool) -> str:
        assert options == {"add_generation_prompt": True, "tokenize": False}
        return "".join(message["role"][0] + message["content"] for message in messages) + "a"


def test_text_gets_special_tokens_and_a_rendered_chat_does_not() -> None:
    assert encode_prompt(Prompt(text="abc"), Letters(), 100) == [99, 0, 1, 2]
    assert encode_prompt(Prompt(text="abc", add_special_tokens=False), Letters(), 100) == [0, 1, 2]
    chat = Prompt(messages=({"role": "user", "content": "bc"},))
    assert encode_prompt(chat, Letters(), 100) == [20, 1, 2, 0]


def test_length_counts_special_tokens() -> None:
    assert encode_prompt(Prompt(text="abc", length=2), Letters(), 100) == [99, 0]


def test_a_chat_needs_a_template_and_a_text_needs_a_tokenizer() -> None:
    plain = Letters()
    plain.chat_template = None
    with pytest.raises(ModelUnsupported, match="no chat template"):
        encode_prompt(Prompt(messages=({"role": "user", "content": "b"},)), plain, 100)
    with pytest.raises(ModelUnavailable, match="no tokenizer"):
        encode_prompt(Prompt(text="abc"), None, 100)
    assert encode_prompt(Prompt(token_ids=(1, 2)), None, 100) == [1, 2]


@given(st.lists(st.integers(-2, 12), max_size=8), st.none() | st.integers(1, 9))
def test_fitting_ids_keeps_a_prefix_or_says_why_not(ids: list[int], length: int | None) -> None:
    kept = ids[:length]
    fits = bool(kept) and (length is None or len(ids) >= length) and all(0 <= token < 10 for token in kept)
    if fits:
        assert fit_ids(ids, length, 10) == kept
    else:
        with pytest.raises(ModelUnsupported):
            fit_ids(ids, length, 10)
