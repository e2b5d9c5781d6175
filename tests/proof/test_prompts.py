"""Held-out prompts."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from specrunner.proof.prompts import draw_prompts
from specrunner.spec.model import Prompt


@given(st.lists(st.integers(0, 99), min_size=1, max_size=50), st.integers(0, 5))
def test_draws_are_made_of_the_prompts_own_tokens(ids: list[int], seed: int) -> None:
    drawn = draw_prompts(Prompt(token_ids=tuple(ids)), 4, seed)
    assert drawn == draw_prompts(Prompt(token_ids=tuple(ids)), 4, seed)
    for prompt in drawn:
        assert prompt.token_ids
        assert not Counter(prompt.token_ids) - Counter(ids)


@given(st.text(min_size=1), st.integers(1, 30))
def test_a_stated_length_is_never_exceeded_and_no_character_is_lost(text: str, length: int) -> None:
    for prompt in draw_prompts(Prompt(text=text, length=length), 3, 0):
        assert prompt.length is not None and 1 <= prompt.length <= length
        assert Counter(prompt.text or "") == Counter(text)


def test_messages_keep_their_roles() -> None:
    prompt = Prompt(messages=({"role": "user", "content": "one two three four"},))
    drawn = draw_prompts(prompt, 8, 1)
    assert {message["role"] for each in drawn for message in each.messages or ()} == {"user"}
    assert len(set(map(str, drawn))) > 1
