"""The rules of block-diffusion decoding, on a model that says what the test wants."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specrunner.models.llada2_decoding import Sampler, decode_blocks, denoise

EOS, MASK, VOCABULARY = 8, 9, 10
RULES = Sampler(block_length=4, threshold=0.9, steps=4, mask_id=MASK, eos_id=EOS)


def make_logits(*wishes: tuple[int, float]) -> np.ndarray:
    """Return logits that give each position's token its probability, and the others the rest in equal parts."""
    logits = np.empty((len(wishes), VOCABULARY))
    for row, (token, probability) in zip(logits, wishes, strict=True):
        row[:] = np.log((1 - probability) / (VOCABULARY - 1))
        row[token] = np.log(probability)
    return logits


MASKS = np.full(4, MASK)


def test_every_position_above_the_threshold_is_filled():
    accepted, after = denoise(MASKS, make_logits((1, 0.95), (2, 0.5), (3, 0.91), (4, 0.2)), RULES, step=0)
    assert accepted.tolist() == [True, False, True, False]
    assert after.tolist() == [1, MASK, 3, MASK]


def test_below_the_threshold_only_the_best_is_filled():
    accepted, after = denoise(MASKS, make_logits((1, 0.3), (2, 0.5), (3, 0.4), (4, 0.2)), RULES, step=0)
    assert after.tolist() == [MASK, 2, MASK, MASK]
    assert accepted.sum() == 1


def test_the_schedule_asks_for_more_with_fewer_steps():
    logits = make_logits((1, 0.3), (2, 0.5), (3, 0.4), (4, 0.2))
    assert denoise(MASKS, logits, replace(RULES, steps=3), step=0)[1].tolist() == [MASK, 2, 3, MASK]
    assert denoise(MASKS, logits, replace(RULES, steps=3), step=1)[1].tolist() == [MASK, 2, MASK, MASK]
    assert denoise(MASKS, logits, replace(RULES, steps=1), step=0)[1].tolist() == [1, 2, 3, 4]


def test_the_earlier_position_wins_a_tie():
    assert denoise(MASKS, make_logits(*[(1, 0.5)] * 4), RULES, step=0)[0].tolist() == [True, False, False, False]


def test_the_threshold_is_strict_unless_the_rules_say_otherwise():
    logits = np.zeros((4, VOCABULARY))  # every probability is exactly 0.1
    assert denoise(MASKS, logits, replace(RULES, threshold=0.1), step=0)[0].sum() == 1
    assert denoise(MASKS, logits, replace(RULES, threshold=0.1, accept="ge"), step=0)[0].sum() == 4


def test_filled_positions_are_never_touched():
    accepted, after = denoise(np.array([5, MASK, 6, 7]), make_logits(*[(1, 0.99)] * 4), RULES, step=0)
    assert after.tolist() == [5, 1, 6, 7]
    assert accepted.tolist() == [False, True, False, False]


def test_the_mask_may_be_predicted_and_then_stays():
    logits = make_logits((MASK, 0.95), (1, 0.5), (1, 0.5), (1, 0.5))
    assert denoise(MASKS, logits, RULES, step=0)[1].tolist() == [MASK] * 4
    assert MASK not in denoise(MASKS, logits, replace(RULES, may_predict_mask=False, steps=1), step=0)[1]


def play(wishes: dict[int, tuple[int, float]], rest: tuple[int, float] = (0, 0.99)):
    """Return a predictor by absolute position, and the list of sequences it was asked about."""
    asked: list[list[int]] = []

    def predict(ids: list[int]) -> np.ndarray:
        asked.append(ids)
        return make_logits(*(wishes.get(position, rest) for position in range(len(ids) - 4, len(ids))))

    return predict, asked


def test_an_unaligned_prompt_shares_its_last_block():
    predict, asked = play({6: (1, 0.99), 7: (2, 0.99), 8: (EOS, 0.99)})
    assert decode_blocks(predict, [3] * 6, 10, RULES) == [1, 2, EOS]
    assert asked == [[3] * 6 + [MASK] * 2, [3] * 6 + [1, 2] + [MASK] * 4]


def test_decoding_stops_after_the_block_that_holds_the_end():
    predict, asked = play({4: (EOS, 0.99)})
    assert decode_blocks(predict, [3] * 4, 100, RULES) == [EOS]
    assert len(asked) == 1


def test_an_end_of_sequence_in_the_prompt_does_not_stop():
    predict, _ = play({8: (EOS, 0.99)})
    assert decode_blocks(predict, [3, EOS, 3], 100, RULES) == [0] * 5 + [EOS]


def test_no_more_tokens_than_asked_for():
    predict, asked = play({})
    assert decode_blocks(predict, [3] * 3, 7, RULES) == [0] * 7
    assert len(asked[-1]) == 12
    assert decode_blocks(predict, [3], 0, RULES) == []


def test_a_position_that_insists_on_the_mask_ends_with_the_steps():
    predict, asked = play({1: (MASK, 0.99)})
    assert decode_blocks(predict, [3], 3, RULES)[0] == MASK
    assert len(asked) == 4


@given(
    st.lists(st.integers(0, 7), min_size=1, max_size=9),
    st.integers(0, 12),
    st.integers(1, 4),
    st.floats(0, 1),
    st.integers(0, 2**32 - 1),
)
def test_passes_are_consistent(prompt, wanted, steps, threshold, seed):
    rules = replace(RULES, steps=steps, threshold=threshold, may_predict_mask=False)
    random = np.random.default_rng(seed)
    passes = []
    new = decode_blocks(lambda ids: random.normal(size=(4, VOCABULARY)), prompt, wanted, rules, passes.append)
    assert len(new) <= wanted
    assert MASK not in new
    assert EOS not in new[:-1]
    for step in passes:
        assert (step.tokens_before[step.accepted] == MASK).all()
        assert (step.tokens_after[~step.accepted] == step.tokens_before[~step.accepted]).all()
        assert step.accepted.any()
        assert step.block_start % 4 == 0


@pytest.mark.parametrize("change", [{"block_length": 0}, {"steps": 0}, {"accept": "gte"}])
def test_impossible_rules_are_refused(change):
    with pytest.raises(ValueError, match="must be"):
        replace(RULES, **change)


@given(st.integers(1, 64), st.integers(1, 64))
def test_the_schedule_fills_a_block(length, steps):
    rules = replace(RULES, block_length=length, steps=steps)
    quotas = [rules.quota(step) for step in range(steps)]
    assert sum(quotas) == length
    assert quotas == sorted(quotas, reverse=True)
