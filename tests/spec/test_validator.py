"""The validator that skips what is sound finds just the mistakes that jsonschema's own finds."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from specrunner.spec.merge import plain
from specrunner.spec.schema import load_schema
from specrunner.spec.source import parse_bytes
from specrunner.spec.validator import make_validator
from tests.hostile.documents import maker


def list_errors(validator: Any, value: Any) -> list[tuple[Any, ...]]:
    return sorted(
        (str(list(error.absolute_path)), str(error.validator), str(list(error.absolute_schema_path)))
        for error in validator.iter_errors(value)
    )


@given(st.integers(min_value=0))
@settings(max_examples=150)
@example(0)
def test_the_same_mistakes_are_found(seed: int) -> None:
    root = parse_bytes(maker().make(random.Random(seed))[1], "x").root
    value = plain(root)
    if len(json.dumps(value, default=str)) < 50_000:
        assert list_errors(make_validator(None, "spec.schema.json"), value) == list_errors(
            Draft202012Validator(load_schema()), value
        )


@pytest.mark.parametrize("definition", ["case", "tolerance", "matrix"])
@pytest.mark.parametrize("value", [{}, [], 1, {"a": 1}, {"name": 1, "prompt": [], "tags": ["a", "a", 1, 1.0]}])
def test_definitions(definition: str, value: Any) -> None:
    root = load_schema()
    whole = {"$ref": f"#/$defs/{definition}", "$defs": root["$defs"]}
    assert list_errors(make_validator(definition, "spec.schema.json"), value) == list_errors(
        Draft202012Validator(whole), value
    )


def test_one_mistake_beside_a_hundred_thousand_sound_values_is_found_at_once() -> None:
    value = {"version": 1, "engines": ["mine"] * 1000, "cases": [{"prompt": {"token_ids": [1] * 100_000}, "wrong": 1}]}
    validator = make_validator(None, "spec.schema.json")
    list(validator.iter_errors({}))
    started = time.process_time()
    found = list_errors(validator, value)
    took = time.process_time() - started
    assert "additionalProperties" in {keyword for path, keyword, _ in found if path == "['cases', 0]"}
    assert took < 1
