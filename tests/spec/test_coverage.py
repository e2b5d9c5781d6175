"""Which names patterns can select, before any model is loaded."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specrunner.spec.coverage import (
    count_numbers,
    find_uncovered,
    idle_patterns,
    needs_forward,
    needs_passes,
    sample_names,
    vocabulary,
)
from specrunner.spec.tensor_names import TEMPLATES, is_possible, match_name, model_order


@pytest.mark.parametrize(
    ("pattern", "possible"),
    [
        ("logits", True),
        ("**", True),
        ("*", True),
        ("layers.*.output", True),
        ("layers.12.output", True),
        ("layers.47.output", True),
        ("layers.3141.output", True),
        ("layers.1*.output", True),
        ("layers.**.output", True),
        ("layers.0.output.*", False),
        ("layers.x.output", False),
        ("layer.*.output", False),
        ("*.*.*.*.*", False),
        ("embedding", False),
        ("passes.3.logits", True),
    ],
)
def test_possible_patterns(pattern: str, possible: bool) -> None:
    assert is_possible(pattern) is possible


def test_a_pattern_is_possible_for_some_templates_only() -> None:
    assert is_possible("layers.*.router.logits")
    assert not is_possible("layers.*.router.logits", ("logits", "layers.{i}.output"))


@pytest.mark.parametrize(
    ("tensors", "rules", "uncovered"),
    [
        (("logits",), ("logits",), None),
        (("logits",), ("**",), None),
        (("layers.*.output",), ("layers.0.output",), "layers.1.output"),
        (("layers.*.output",), ("layers.0.output", "layers.*.output"), None),
        (("layers.*.output",), tuple(f"layers.{n}.output" for n in range(10)), "layers.00"),
        (("layers.1*.output",), ("layers.1.output",), "layers.10.output"),
        (("layers.**",), ("layers.*.output", "layers.*.mlp.*", "layers.*.attention.*"), "layers.0.router.logits"),
    ],
)
def test_the_first_tensor_without_a_rule(
    tensors: tuple[str, ...], rules: tuple[str, ...], uncovered: str | None
) -> None:
    found = min(find_uncovered(tensors, rules).values(), key=model_order, default=None)
    if uncovered == "layers.00":  # ten layers have rules; a model may have more
        assert found is not None
        assert len(found.split(".")[1]) > 1
    else:
        assert found == uncovered


def test_rules_that_never_come_to_bear() -> None:
    assert idle_patterns(("logits",), ("logits", "embeddings")) == (("embeddings", None),)
    assert idle_patterns(("**",), ("layers.**", "layers.*.output")) == (("layers.*.output", "layers.**"),)
    assert idle_patterns(("**",), ("layers.*.output", "layers.**", "**")) == ()


def test_what_patterns_ask_of_an_engine() -> None:
    assert (needs_forward(("logits",)), needs_passes(("logits",))) == (True, False)
    assert (needs_forward(("passes.*.logits",)), needs_passes(("passes.*.logits",))) == (False, True)
    assert (needs_forward(("**",)), needs_passes(("**",))) == (True, True)
    assert (needs_forward(("**.logits",)), needs_passes(("**.logits",))) == (True, True)


PATTERNS = st.from_regex(r"[a-z0-9_.]{0,8}(\*{1,2}[a-z0-9_.]{0,8}){0,4}", fullmatch=True).filter(bool)


@given(PATTERNS)
def test_a_possible_pattern_matches_one_of_its_samples(pattern: str) -> None:
    if any(match_name(pattern, name) for name in sample_names((pattern,))):
        assert is_possible(pattern)


def test_no_pattern_of_the_language_takes_long() -> None:
    start = time.process_time()
    for pattern in ("**a**b**c**", "*a*b*c*d", "**.**.**.**", "**********"[:8] + "x"):
        is_possible(pattern)
        find_uncovered((pattern,), ("logits",))
    assert time.process_time() - start < 2


def test_the_vocabulary_is_shown_as_patterns() -> None:
    assert "layers.*.output" in vocabulary()
    assert all(is_possible(pattern) for pattern in vocabulary())
    assert len(vocabulary()) == len(TEMPLATES)


def test_numbers_that_a_pattern_mentions_are_among_its_samples() -> None:
    found = sample_names(("layers.1234567.output", "layers.07.output", "layers.4*.output"))
    layers = {name.split(".")[1] for name in found if name.startswith("layers.")}
    assert {"1234567", "123456", "4", "40", "49", *"0123456789"} <= layers
    assert not {"07", "00"} & layers, "a layer's number has no zero before it"
    assert found == tuple(sorted(found, key=model_order))


def test_rules_of_many_patterns_cover_as_each_alone_does() -> None:
    """Beyond a few, one expression stands for all of them."""
    for count in (8, 9, 30):
        rules = tuple(f"layers.{number}.output" for number in range(count))
        assert find_uncovered(rules, rules) == {}
        assert find_uncovered((*rules, "logits", "layers.1.mlp.output"), rules) == {
            "logits": "logits",
            "layers.1.mlp.output": "layers.1.mlp.output",
        }


def test_the_number_of_layers_that_patterns_mention() -> None:
    assert count_numbers(("layers.1.output", "layers.1.mlp.output", "layers.20.output", "logits")) == 2


def test_tensors_are_told_in_the_order_of_a_forward() -> None:
    ordered = [
        *("embeddings", "layers.0.output", "layers.1.mlp.output", "layers.2.output", "layers.10.output"),
        *("final_norm", "logits", "something.else", "passes.0.logits", "passes.11.logits"),
    ]
    assert sorted(sorted(ordered), key=model_order) == ordered
