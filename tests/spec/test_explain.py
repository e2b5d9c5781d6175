"""Why a value breaks the schema, in sentences of our own: one example of every kind of mistake."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from specrunner.spec.diagnostics import accepted_values
from specrunner.spec.explain import Finding, explain
from specrunner.spec.schema import field_schema, load_schema

DTYPES = "accepted: `float64`, `float32`, `bfloat16`, `float16`"
RULES = "accepted: `allclose`, `cosine`, `exact`, `kl`, `noise_floor`, `routing`, `sqnr`, `top_k`, `ulp`"  # sorted


def explain_case(fields: dict[str, Any]) -> list[Finding]:
    """Return what is wrong with a case of these fields."""
    return explain(None, {"version": 1, "cases": [{"name": "one", **fields}]})


@pytest.mark.parametrize(
    ("fields", "code", "message", "at_key", "help"),
    [
        # keys
        ({"descripton": "x"}, "unknown-key", "unknown key `descripton`", True, "did you mean `description`?"),
        (
            {"reference": {"engin": "hf"}},
            "unknown-key",
            "unknown key `engin` in `reference`",
            True,
            "did you mean `engine`? accepted: `engine`, `dtype`, `device`, `options`, `peer`",
        ),
        (
            {"tolerance": {"logits": {"rtol": 1}}},
            "unknown-key",
            "unknown key `rtol` in `logits`",
            True,
            f"`rtol` is a parameter of the rule `allclose`; {RULES}",
        ),
        (
            {"xfail": {}},
            "missing-key",
            "key `reason` is missing in `xfail`",
            True,
            "`reason`: why it fails, one line, preferably with a link",
        ),
        (
            {"model": {"path": "p", "recipe": "r"}},
            "conflicting-keys",
            "`recipe` cannot stand beside `path`",
            True,
            "keep one of the two",
        ),
        (
            {"matrix": {"a b": [1]}},
            "bad-value",
            "key `a b` is not a valid name",
            True,
            "allowed: letters, digits, `.`, `_` and `-`",
        ),
        # kinds
        ({"tags": "a"}, "wrong-type", "`tags` must be a list, not text", False, "write a list: [a]"),
        ({"tags": 5}, "wrong-type", "`tags` must be a list, not an integer", False, "write a list: [5]"),
        ({"tags": {}}, "wrong-type", "`tags` must be a list, not a mapping", False, None),
        ({"description": 5}, "wrong-type", "`description` must be text, not an integer", False, "quote it"),
        ({"description": 0.5}, "wrong-type", "`description` must be text, not a number", False, "quote it"),
        ({"description": True}, "wrong-type", "`description` must be text, not true or false", False, "quote it"),
        ({"description": ["a"]}, "wrong-type", "`description` must be text, not a list", False, None),
        (
            {"description": None},
            "wrong-type",
            "`description` must be text, not nothing",
            False,
            "give it a value, or remove it",
        ),
        ({"name": None}, "wrong-type", "`name` must be text, not nothing", False, "give it a value"),
        ({"xfail": {"reason": None}}, "wrong-type", "`reason` must be text, not nothing", False, "give it a value"),
        (
            {"tolerance": {"logits": 0.999}},
            "wrong-type",
            "`logits` must be text or a mapping, not a number",
            False,
            "write a rule, e.g. `{cosine: 0.999}`",
        ),
        (
            {"timeout": "5"},
            "wrong-type",
            "`timeout` must be a number, not text",
            False,
            "write a number without quotes",
        ),
        (
            {"decode": {"max_new_tokens": "5"}},
            "wrong-type",
            "`max_new_tokens` must be an integer, not text",
            False,
            "write a number without quotes",
        ),
        (
            {"timeout": "9" * 401},
            "wrong-type",
            "`timeout` must be a number, not text",
            False,
            "write a number in seconds",
        ),
        ({"tags": {"a": 1}}, "wrong-type", "`tags` must be a list, not a mapping", False, None),
        (
            {"prompt": {"messages": {"role": "user", "content": "x" * 61}}},
            "wrong-type",
            "`messages` must be a list, not a mapping",
            False,
            "write a list: `[{role: user, content: …}]`",
        ),
        ({"options": {"sglang": 5}}, "wrong-type", "`sglang` must be a mapping, not an integer", False, None),
        (
            {"options": {"dtype": None}},
            "wrong-type",
            "`dtype` must be a mapping, not nothing",
            False,
            "give it a value, or remove it",
        ),
        ({"at": {"block": 1.5}}, "wrong-type", "`block` must be an integer, not a number", False, None),
        ({"golden": {"top_k": True}}, "wrong-type", "`top_k` must be an integer, not true or false", False, None),
        (
            {"decode": {"ignore_eos": "Off"}},
            "wrong-type",
            "`ignore_eos` must be true or false, not text",
            False,
            "write `false`: in YAML 1.2 only `true` and `false` are switches",
        ),
        (
            {"decode": {"ignore_eos": "maybe"}},
            "wrong-type",
            "`ignore_eos` must be true or false, not text",
            False,
            None,
        ),
        ({"dtype": 16}, "wrong-type", "`dtype` must be text, not an integer", False, DTYPES),
        (
            {"model": []},
            "wrong-type",
            "`model` must be a mapping, not a list",
            False,
            "e.g. `model: {recipe: glass-0.8m}`",
        ),
        (
            {"prompt": ["a"]},
            "wrong-type",
            "`prompt` must be text or a mapping, not a list",
            False,
            "e.g. `prompt: {token_ids: [1, 2, 3], length: 2}`",
        ),
        # values
        ({"dtype": "float31"}, "bad-value", "`dtype` cannot be `float31`", False, f"did you mean `float32`? {DTYPES}"),
        ({"model": {"id": "a b"}}, "bad-value", "`id` cannot be `a b`", False, "allowed: `name` or `owner/name`"),
        (
            {"tags": ["-" * 61]},
            "bad-value",
            f"an item of `tags` cannot be `{'-' * 60}…`",
            False,
            "allowed: letters, digits, `.`, `_`, `:` and `-`",
        ),
        (
            {"tolerance": {"logits": "sqnr"}},
            "bad-value",
            "rule `sqnr` needs its parameters",
            False,
            "e.g. `{sqnr: 40}`",
        ),
        ({"tolerance": {"logits": "exakt"}}, "unknown-rule", "unknown rule `exakt`", False, "did you mean `exact`?"),
        ({"timeout": 0}, "out-of-range", "`timeout` must be greater than 0, not `0`", False, "the unit is seconds"),
        (
            {"timeout": 604_801},
            "out-of-range",
            "`timeout` must be at most 604800, not `604801`",
            False,
            "the unit is seconds",
        ),
        (
            {"decode": {"max_new_tokens": 0}},
            "out-of-range",
            "`max_new_tokens` must be at least 1, not `0`",
            False,
            "the unit is tokens",
        ),
        (
            {"tolerance": {"logits": {"cosine": 1.5}}},
            "out-of-range",
            "`cosine` must be at most 1, not `1.5`",
            False,
            "1 is identical; e.g. 0.999",
        ),
        (
            {"tolerance": {"logits": {"cosine": {"min": 1.5}}}},
            "out-of-range",
            "`min` must be at most 1, not `1.5`",
            False,
            "1 is identical; e.g. 0.999",
        ),
        # sizes
        (
            {"prompt": {}},
            "empty",
            "`prompt` is empty",
            True,
            "keys: `text`, `messages`, `token_ids`, `length`, `add_special_tokens`",
        ),
        ({"model": {"path": ""}}, "empty", "`path` is empty", True, None),
        ({"matrix": {"exclude": [{}]}}, "empty", "an item of `exclude` is empty", True, None),
        (
            {"tags": [f"t{number}" for number in range(1257)]},
            "too-large",
            "`tags` has 1,257 items, more than 256",
            True,
            None,
        ),
        ({"name": "a" * 201}, "too-large", "`name` has 201 characters, more than 200", True, None),
        (
            {"options": {"h" * 201: {}}},
            "too-large",
            f"key `{'h' * 60}…` has 201 characters, more than 200",
            True,
            None,
        ),
        ({"tags": ["a", "b", "a"]}, "repeated-item", "`a` is listed twice in `tags`", False, None),
    ],
)
def test_a_mistake(fields: dict[str, Any], code: str, message: str, at_key: bool, help: str | None) -> None:
    (found,) = explain_case(fields)
    assert (found.code, found.message, found.at_key, found.help) == (code, message, at_key, help)
    assert found.path[:2] == ("cases", 0)


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"tags": ["a", "b", "a"]}, ("tags", 2)),
        ({"tags": ["a", "-"]}, ("tags", 1)),
        ({"model": {"path": "p", "recipe": "r"}}, ("model", "recipe")),
        ({"options": {"h h": {}}}, ("options", "h h")),
        ({"options": {"h" * 201: {}}}, ("options", "h" * 201)),
        ({"reference": {"engin": "hf"}}, ("reference", "engin")),
        ({"xfail": {}}, ("xfail",)),
    ],
)
def test_the_path_leads_to_the_culprit(fields: dict[str, Any], path: tuple[str | int, ...]) -> None:
    (found,) = explain_case(fields)
    assert found.path == ("cases", 0, *path)


def test_keys_that_rule_each_other_out_are_told_once_a_pair() -> None:
    found = explain_case({"model": {"id": "i", "path": "p", "recipe": "r"}})
    assert [one.message for one in found] == [
        "`path` cannot stand beside `id`",
        "`recipe` cannot stand beside `id`",
        "`recipe` cannot stand beside `path`",
    ]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "…"),
        ({}, "{}"),
        ([True, -0.5, "a b", {"k": []}], "[true, -0.5, a b, {k: []}]"),
        (["1", "true", "", "a ", "- a", "a: b", "a #b", '"', "*a", "a\nb"], None),
        (["a" * 60] * 3, f"[{', '.join(['a' * 60] * 3)}]"),
        (["a" * 60] * 4, "…"),
        ("a" * 61, "…"),
    ],
)
def test_an_advice_holds_what_was_written(value: Any, shown: str | None) -> None:
    shown = json.dumps(value) if shown is None else shown
    (found,) = explain_case({"tolerance": {"kl": [value]}})
    expected = "…" if shown == "…" and isinstance(value, list) else f"[{shown}]"
    assert found.help == f"write `tolerance: {{logits: {{kl: {expected}}}}}`"
    assert (found.path, found.at_key) == (("cases", 0, "tolerance", "kl"), True)


def test_the_engine_of_an_option_is_the_one_listed_next_to_it() -> None:
    spec: dict[str, Any] = {"version": 1, "defaults": {"engines": ["hf"], "options": {"a": 1}}}
    spec |= {"engines": ["vllm", "mine"], "options": {"a": 1, "mine": 2}}
    spec |= {"cases": [{"name": "x", "engines": ["sglang"], "options": {"a": 1}}, {"name": "y", "options": {"a": 1}}]}
    found = {one.path: one.help for one in explain(None, spec)}
    assert found == {
        ("defaults", "options", "a"): "options go by engine: `options: {hf: {a: 1}}`",
        ("options", "a"): "options go by engine: `options: {vllm: {a: 1}}`",
        ("options", "mine"): None,
        ("cases", 0, "options", "a"): "options go by engine: `options: {sglang: {a: 1}}`",
        ("cases", 1, "options", "a"): "options go by engine: `options: {vllm: {a: 1}}`",
    }
    (one,) = explain("variant", {"options": {"a": 1}})
    assert one.help == "options go by engine: `options: {hf: {a: 1}}`"


@pytest.mark.parametrize("field", ["options", "tolerance"])
def test_an_axis_of_a_field_s_name_is_not_the_field(field: str) -> None:
    (found,) = explain_case({"matrix": {field: {"cosine": 5}}})
    assert (found.message, found.help) == (
        "`cosine` must be a mapping, not an integer",
        accepted_values("", list(field_schema("variant")["properties"]), "keys"),
    )


@pytest.mark.parametrize(
    ("cases", "help"),
    [
        ({"alice": {"prompt": "hi"}}, "write a list: `- name: alice`"),
        ({"prompt": "hi"}, "write a list: `- name: …`"),
        ({"name": "alice", "prompt": "hi"}, "write a list: `[{name: alice, prompt: hi}]`"),
        ({}, None),
    ],
)
def test_a_mapping_of_cases_is_shown_as_a_list(cases: dict[str, Any], help: str | None) -> None:
    (found,) = explain(None, {"version": 1, "cases": cases})
    assert (found.message, found.help) == ("`cases` must be a list, not a mapping", help)


def test_values_without_end_are_explained_at_once() -> None:
    options = {f"k{index}": index for index in range(400)}
    items = [[1] * 1000] * 900
    started = time.process_time()
    found = explain(None, {"version": 1, "engines": ["mine"] * 20_000, "options": options, "cases": {"name": items}})
    assert found[-1].help == "write a list: `[…]`"
    assert time.process_time() - started < 2


def test_the_whole_file_has_no_name() -> None:
    missing = [
        Finding("missing-key", "key `version` is missing", (), True, "write `version: 1`"),
        Finding("missing-key", "key `cases` is missing", (), True, "`cases`: the cases, each with a name of its own"),
    ]
    assert explain(None, {}) == missing
    (found,) = explain(None, 3)
    assert (found.message, found.path) == ("the spec must be a mapping, not an integer", ())
    (found,) = explain(None, {"version": True, "cases": [{"name": "one"}]})
    assert (found.message, found.help) == ("`version` must be `1`, not `true`", "write `1`")
    (found,) = explain(None, {"version": "2", "cases": [{"name": "one"}]})
    assert (found.message, found.help) == ("`version` must be `1`, not `2`", "write `1`")
    (found,) = explain(None, {"version": 1, "cases": [{}]})
    assert (found.message, found.path) == ("key `name` is missing in this case", ("cases", 0))


def test_a_misspelt_key_is_not_missing_too() -> None:
    (found,) = explain(None, {"version": 1, "cases": [{"nam": "one"}]})
    assert (found.code, found.help) == ("unknown-key", "did you mean `name`?")
    (found,) = explain("case", {"nam": "one"})
    assert found.code == "unknown-key"
    found, other = explain(None, {"version": 1, "cases": [{"zzz": "one"}]})
    assert {found.code, other.code} == {"missing-key", "unknown-key"}


def test_an_empty_value_of_a_definition_is_told() -> None:
    (found,) = explain("case", {"name": "one", "prompt": {"messages": None}})
    assert found.help == "give it a value, or remove it"
    (found,) = explain("case", {"name": None})
    assert found.help == "give it a value"


def test_what_is_valid_needs_no_word() -> None:
    assert explain_case({"prompt": "a", "tolerance": {"logits": {"sqnr": 40}}}) == []


def test_every_restriction_of_the_schemas_has_its_sentence() -> None:
    from specrunner.spec.explain import _TRANSLATORS

    silent = {"$ref", "allOf", "items", "if", "then", "properties", "propertyNames", "$defs"}
    notes = {"description", "title", "default", "examples", "x-unit", "$schema", "$id"}

    def keywords(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            for name, part in node.items():
                yield name
                named = name in ("properties", "$defs")
                for inner in part.values() if named else part if name == "allOf" else [part]:
                    if name not in notes:
                        yield from keywords(inner)

    used = set(keywords(load_schema())) | set(keywords(load_schema("name-map.schema.json")))
    assert used - silent - notes == set(_TRANSLATORS)
