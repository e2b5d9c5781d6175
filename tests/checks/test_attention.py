"""Attention geometry: the masks against a slow reading, influence told from noise, and what is said of a probe."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specrunner.checks.attention import (
    compare_attention,
    expected_geometry,
    find_influence,
    name_geometry,
    reach,
)
from specrunner.checks.sources import MemorySource
from specrunner.spec.model import Attention

FLOAT32 = float(torch.finfo(torch.float32).eps)


def sees(attention: Attention, query: int, key: int) -> bool:
    match attention.geometry:
        case "causal":
            return key <= query
        case "bidirectional":
            return True
        case "block_causal":
            assert attention.block_length
            return key // attention.block_length <= query // attention.block_length
        case _:
            assert attention.window
            return 0 <= query - key < attention.window


GEOMETRIES = st.one_of(
    st.sampled_from([Attention("causal"), Attention("bidirectional")]),
    st.integers(1, 9).map(lambda length: Attention("block_causal", block_length=length)),
    st.integers(1, 9).map(lambda window: Attention("sliding_window", window=window)),
)


@given(GEOMETRIES, st.integers(1, 9))
def test_the_mask_is_what_its_definition_says(attention: Attention, tokens: int) -> None:
    mask = expected_geometry(attention, tokens)
    for query, key in itertools.product(range(tokens), repeat=2):
        assert bool(mask[query, key]) is sees(attention, query, key)


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=5, max_size=5), st.integers(1, 4))
def test_the_reach_is_every_path_of_so_many_steps(rows: list[list[bool]], layers: int) -> None:
    def can_reach(query: int, key: int, steps: int) -> bool:
        if steps == 0:
            return query == key
        return any((rows[query][via] or via == query) and can_reach(via, key, steps - 1) for via in range(5))

    found = reach(torch.tensor(rows), layers)
    for query, key in itertools.product(range(5), repeat=2):
        assert bool(found[query, key]) is can_reach(query, key, layers)


def test_noise_under_a_clear_gap_is_no_influence() -> None:
    changes = torch.tensor([[1.0, 3e-7], [2e-4, 1.0]])
    influence = find_influence(changes, torch.zeros(2), FLOAT32)
    assert influence.found.tolist() == [[True, False], [True, True]]
    assert (influence.weakest, influence.noise) == (pytest.approx(2e-4), pytest.approx(3e-7))


def test_a_small_influence_without_a_gap_counts() -> None:
    changes = torch.tensor([[1e-6, 2e-6], [4e-6, 1e-5]])
    assert find_influence(changes, torch.zeros(2), FLOAT32).found.all()


def test_run_to_run_noise_raises_the_floor() -> None:
    changes = torch.tensor([[1.0, 1e-3], [0.1, 1.0]])
    assert not find_influence(changes, torch.tensor([0.0, 2e-4]), FLOAT32).found[0, 1]
    assert find_influence(changes, torch.tensor([0.0, 1e-5]), FLOAT32).found[0, 1]


def test_nan_counts_as_influence() -> None:
    assert find_influence(torch.tensor([[1.0, torch.nan], [0.1, 1.0]]), torch.zeros(2), FLOAT32).found[0, 1]


def probe(mask: torch.Tensor, layers: int, *, hidden: bool = True) -> dict[str, Any]:
    """What a model with this mask in every layer would show, with a little noise elsewhere."""
    names = [f"layers.{layer}.output" for layer in range(layers)] if hidden else []
    depths = [*range(1, layers + 1)][: len(names)]
    tensors = {}
    for name, depth in [*zip(names, depths, strict=True), ("logits", layers)]:
        changes = torch.where(reach(mask, depth), 0.01, 1e-7).float()
        tensors[f"probe.{name}"] = MemorySource(f"probe.{name}", changes)
        tensors[f"probe.noise.{name}"] = MemorySource("noise", torch.zeros(len(mask)))
    return tensors


def shows_its_size(attention: Attention, tokens: int) -> bool:
    """Whether blocks or a window are shorter than the prompt; blocks of one token are causal under any."""
    return attention.block_length == 1 or (attention.block_length or attention.window or 0) < tokens


@given(GEOMETRIES, st.integers(2, 9), st.integers(1, 3))
def test_a_model_with_the_stated_geometry_passes(attention: Attention, tokens: int, layers: int) -> None:
    result = compare_attention(attention, probe(expected_geometry(attention, tokens), layers), dtype="float32")
    assert (result.against, result.measurements["mismatches"]) == ("", 0)
    assert (result.passed, result.rule) == (
        (True, "attention") if shows_its_size(attention, tokens) else (False, "evidence")
    )


@pytest.mark.parametrize(("attention", "message"), [
    (Attention("block_causal", block_length=32), "8 tokens cannot tell block_causal(32) from bidirectional"),
    (Attention("block_causal", block_length=8), "8 tokens cannot tell block_causal(8) from bidirectional"),
    (Attention("sliding_window", window=8), "8 tokens cannot tell sliding_window(8) from causal"),
    (Attention("block_causal", block_length=7), ""),
    (Attention("block_causal", block_length=1), ""),
    (Attention("sliding_window", window=7), ""),
    (Attention("causal"), ""),
    (Attention("bidirectional"), ""),
    (Attention("matrix", matrix=("1" * 8,) * 8), ""),
])  # fmt: skip
def test_a_prompt_too_short_to_show_the_geometry_is_no_evidence(attention: Attention, message: str) -> None:
    result = compare_attention(attention, probe(expected_geometry(attention, 8), 2), dtype="float32")
    assert (result.passed, result.message) == (not message, message)
    assert result.rule == ("evidence" if message else "attention")


@pytest.mark.parametrize("attention", [
    Attention("sliding_window", window=3),
    Attention("matrix", matrix=("100000", "110000", "011000", "001100", "000110", "000011")),
])  # fmt: skip
def test_logits_alone_show_no_window(attention: Attention) -> None:
    causal = probe(expected_geometry(Attention("causal"), 6), 3, hidden=False)
    result = compare_attention(attention, causal, dtype="float32")
    assert (result.passed, result.rule) == (False, "evidence")
    assert result.message.startswith(f"6 tokens cannot tell {attention.geometry}")
    assert result.message.endswith(" from causal by their logits alone")
    own_token = Attention("sliding_window", window=1)
    assert compare_attention(own_token, probe(torch.eye(6).bool(), 3, hidden=False), dtype="float32").passed


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", ["probe.logits", "probe.noise.logits"])
@pytest.mark.parametrize("attention", [Attention("bidirectional"), Attention("block_causal", block_length=3)])
def test_changes_that_are_not_finite_show_no_influence(attention: Attention, place: str, value: float) -> None:
    tensors = probe(expected_geometry(attention, 4), 1)
    broken = tensors[place].rows(0, 4).clone().view(tensors[place].shape)
    broken[..., 0] = value
    result = compare_attention(attention, tensors | {place: MemorySource(place, broken)}, dtype="float32")
    assert (result.passed, result.message) == (False, "the changes of logits are not finite: they show no influence")


@given(GEOMETRIES, GEOMETRIES, st.integers(2, 9), st.integers(1, 3))
def test_another_geometry_fails_unless_the_masks_are_equal(
    stated: Attention, real: Attention, tokens: int, layers: int
) -> None:
    equal = torch.equal(expected_geometry(stated, tokens), expected_geometry(real, tokens))
    result = compare_attention(stated, probe(expected_geometry(real, tokens), layers), dtype="float32")
    assert result.passed is (equal and shows_its_size(stated, tokens))
    assert (result.measurements["mismatches"] == 0) is equal


def test_a_failure_names_the_pair_and_the_geometry_found() -> None:
    real = expected_geometry(Attention("causal"), 8)
    result = compare_attention(
        Attention("block_causal", block_length=4), probe(real, 2), dtype="float32", location="x:3"
    )
    assert result.message == (
        "not block_causal(4) at layers.0.output: position 0 does not see position 1, "
        "12 of 64 pairs differ; found causal"
    )
    assert result.measurements["first"] == [0, 1]
    assert result.measurements["expected"][0] == "11110000"
    assert result.measurements["found"][0] == "10000000"
    assert (result.limits, result.location) == ({"geometry": "block_causal", "block_length": 4}, "x:3")


def test_logits_alone_are_enough() -> None:
    attention = Attention("block_causal", block_length=2)
    assert compare_attention(attention, probe(expected_geometry(attention, 6), 3, hidden=False), dtype="float32").passed
    causal = probe(expected_geometry(Attention("causal"), 6), 3, hidden=False)
    assert not compare_attention(attention, causal, dtype="float32").passed


def test_a_stated_matrix() -> None:
    attention = Attention("matrix", matrix=("10", "11"))
    assert compare_attention(attention, probe(torch.tensor([[1, 0], [1, 1]]).bool(), 1), dtype="float32").passed
    result = compare_attention(attention, probe(torch.ones(3, 3).bool(), 1), dtype="float32")
    assert (result.rule, result.message) == ("evidence", "the matrix has 2 rows, and the prompt has 3 tokens")


@pytest.mark.parametrize(("tensors", "message"), [
    ({}, "the probe gave no tensor to read"),
    (probe(torch.ones(1, 1).bool(), 1), "a prompt of 1 token shows no geometry"),
])  # fmt: skip
def test_a_probe_that_shows_nothing_is_no_evidence(tensors: dict[str, Any], message: str) -> None:
    result = compare_attention(Attention("causal"), tensors, dtype="float32")
    assert (result.passed, result.rule, result.message) == (False, "evidence", message)


def test_known_geometries_are_named() -> None:
    assert name_geometry(expected_geometry(Attention("block_causal", block_length=3), 8), 1) == "block_causal(3)"
    assert (
        name_geometry(reach(expected_geometry(Attention("sliding_window", window=3), 9), 2), 2) == "sliding_window(3)"
    )
    assert name_geometry(torch.eye(4).bool() | torch.tensor([[0, 0, 0, 1]] * 4).bool(), 1) == ""
    assert name_geometry(torch.eye(4).bool(), 1) == "sliding_window(1)"
    assert name_geometry(expected_geometry(Attention("block_causal", block_length=2), 4), 1) == "block_causal(2)"


@pytest.mark.parametrize(("dtype", "factor"), [(torch.float64, 64.0), (torch.float32, 64.0), (torch.bfloat16, 0.25)])
def test_rounding_lies_in_its_band_and_influence_above_it(dtype: torch.dtype, factor: float) -> None:
    epsilon = float(torch.finfo(dtype).eps)
    for size, influence in ((0.99, False), (1.01, True)):
        changes = torch.tensor([[1.0, size * factor * epsilon], [0.5, 1.0]], dtype=torch.float64)
        assert bool(find_influence(changes, torch.zeros(2), epsilon).found[0, 1]) is influence
    # A change in the band that no gap parts from the rest is influence.
    changes = torch.tensor([[1.0, 0.9 * factor * epsilon], [7.0 * factor * epsilon, 1.0]], dtype=torch.float64)
    assert bool(find_influence(changes, torch.zeros(2), epsilon).found.all())


def test_the_weakest_influence_and_the_largest_noise_are_told() -> None:
    found = find_influence(torch.tensor([[1.0, 1e-7], [0.25, 0.5]]), torch.zeros(2), FLOAT32)
    assert (found.weakest, found.noise) == (0.25, pytest.approx(1e-7))
    assert find_influence(torch.zeros(2, 2), torch.zeros(2), FLOAT32).weakest == float("inf")
    assert find_influence(torch.ones(2, 2), torch.zeros(0), FLOAT32).noise == 0.0
