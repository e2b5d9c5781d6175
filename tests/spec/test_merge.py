"""Which of several layers a field comes from."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specrunner.spec.merge import Layers, Marks, is_larger, merge_fields, plain
from specrunner.spec.source import parse_text


@pytest.mark.parametrize(
    ("base", "over", "merged"),
    [
        ({"dtype": "a"}, {"dtype": "b"}, {"dtype": "b"}),
        ({"engines": ["a"]}, {"engines": ["b"]}, {"engines": ["b"]}),
        ({"tags": ["a", "b"]}, {"tags": ["c", "a"]}, {"tags": ["a", "b", "c"]}),
        ({"options": {"hf": {"a": 1}}}, {"options": {"hf": {"b": 2}}}, {"options": {"hf": {"a": 1, "b": 2}}}),
        (
            {"requires": {"device": "cpu"}},
            {"requires": {"memory_gb": 1}},
            {"requires": {"device": "cpu", "memory_gb": 1}},
        ),
        ({"xfail": {"reason": "a", "engines": ["b"]}}, {"xfail": {"reason": "c"}}, {"xfail": {"reason": "c"}}),
        ({"xfail": {"reason": "a"}}, {"xfail": None}, {"xfail": None}),
        ({"model": {"id": "a", "revision": "b"}}, {"model": {"path": "c"}}, {"model": {"path": "c"}}),
        ({"model": {"id": "a"}}, {"model": {"revision": "b"}}, {"model": {"id": "a", "revision": "b"}}),
        ({"prompt": "a"}, {"prompt": {"token_ids": [1]}}, {"prompt": {"token_ids": [1]}}),
        ({"prompt": {"text": "a", "length": 1}}, {"prompt": "b"}, {"prompt": {"text": "b"}}),
        ({"prompt": {"text": "a"}}, {"prompt": {"length": 2}}, {"prompt": {"text": "a", "length": 2}}),
        ({"reference": {"engine": "a", "options": {}}}, {"reference": {"engine": "b"}}, {"reference": {"engine": "b"}}),
        ({"reference": {"engine": "a"}}, {"reference": {"dtype": "b"}}, {"reference": {"engine": "a", "dtype": "b"}}),
        ({"decode": {"a": 1, "b": 2}}, {"decode": {"b": 3}}, {"decode": {"a": 1, "b": 3}}),
        (
            {"matrix": {"a": [1], "b": [2]}},
            {"matrix": {"b": None, "c": [3]}},
            {"matrix": {"a": [1], "b": None, "c": [3]}},
        ),
    ],
)
def test_fields(base: dict[str, Any], over: dict[str, Any], merged: dict[str, Any]) -> None:
    assert merge_fields(merge_fields({}, base), over) == merged


def test_patterns_of_the_case_come_first() -> None:
    base = {"tolerance": {"logits": "exact", "**": {"ulp": 1}}}
    over = {"tolerance": {"embeddings": {"ulp": 2}, "logits": {"ulp": 3}}}
    merged = merge_fields(base, over)["tolerance"]
    assert list(merged.items()) == [("embeddings", {"ulp": 2}), ("logits", {"ulp": 3}), ("**", {"ulp": 1})]


FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "options": st.dictionaries(st.sampled_from("ab"), st.dictionaries(st.sampled_from("ab"), st.integers())),
        "tags": st.lists(st.sampled_from("abc"), unique=True),
        "dtype": st.sampled_from("ab"),
        "tolerance": st.dictionaries(st.sampled_from("abc"), st.integers()),
    },
)


@given(FIELDS, FIELDS)
def test_merging_changes_neither_side(base: dict[str, Any], over: dict[str, Any]) -> None:
    before = plain(base), plain(over)
    merge_fields(base, over)
    assert (base, over) == before


@given(FIELDS, FIELDS)
def test_what_is_written_last_wins_and_nothing_is_lost(base: dict[str, Any], over: dict[str, Any]) -> None:
    merged = merge_fields(base, over)
    assert set(merged) == set(base) | set(over)
    assert merge_fields(merged, over).get("dtype") == over.get("dtype", base.get("dtype"))
    assert set(merged.get("tags", ())) == {*base.get("tags", ()), *over.get("tags", ())}
    for pattern, rule in over.get("tolerance", {}).items():
        assert merged["tolerance"][pattern] == rule


def test_marks_find_the_strongest_writing() -> None:
    source = parse_text(
        "top: {dtype: a, reference: {engine: x}}\ncase:\n  name: n\n  reference:\n    dtype: b\n", "x.yaml"
    )
    root = source.root
    marks = Marks(Layers(source, (root["case"], root["top"]), root["case"]))
    assert str(marks["dtype"]) == "x.yaml:1"
    assert str(marks["reference.engine"]) == "x.yaml:1"
    assert (marks["reference.dtype"].line, marks["reference.dtype"].column) == (5, 12)
    assert str(marks["reference.device"]) == "x.yaml:4"
    assert str(marks["timeout"]) == "x.yaml:3"
    assert set(marks) == {"name", "reference", "dtype"}
    assert "dtype" in marks
    assert "timeout" not in marks


@pytest.mark.parametrize(
    ("value", "size"),
    [(1, 1), ([], 1), ([1, 2], 3), ({"a": 1, "b": [None]}, 4), ("x" * 999, 1), (["x" * 1000], 3), ("x" * 5999, 6)],
)
def test_every_value_counts_and_so_does_long_text(value: Any, size: int) -> None:
    assert not is_larger(value, size)
    assert is_larger(value, size - 1)


def test_what_stands_in_several_places_counts_in_each_and_is_not_looked_through() -> None:
    value: list[Any] = [1]
    for _ in range(3):
        value = [value, value]
    assert not is_larger(value, 23) and is_larger(value, 22)  # 8 numbers in 8 lists, and 4, 2 and 1 lists of those
    for _ in range(200):
        value = [value, value]
    assert is_larger(value, 1000)
