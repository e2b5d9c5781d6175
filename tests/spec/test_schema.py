"""The schema file, and the predicates compiled from it."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from specrunner.engines.base import Capabilities
from specrunner.errors import ConfigurationError
from specrunner.spec import schema as schema_module
from specrunner.spec.model import DEVICES, DTYPES, Case, Decode, GoldenChoice, Model, Prompt
from specrunner.spec.schema import Compiler, compile_definition, default_of, find_schema, kind_of, load_schema
from specrunner.spec.source import parse_text

EXAMPLES = Path(__file__).parent.parent / "specs"
SCHEMA = load_schema()


def subschemas(node: Any, path: str = "#") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every schema inside the schema file, by its path."""
    if not isinstance(node, dict):
        return
    yield path, node
    for keyword in ("properties", "$defs"):
        for name, part in node.get(keyword, {}).items():
            yield from subschemas(part, f"{path}/{keyword}/{name}")
    for keyword in ("items", "additionalProperties", "propertyNames", "then", "if", "not"):
        yield from subschemas(node.get(keyword), f"{path}/{keyword}")
    for index, part in enumerate(node.get("allOf", ())):
        yield from subschemas(part, f"{path}/allOf/{index}")


ALL = list(subschemas(SCHEMA))
FIELDS = [(path, part) for path, part in ALL if "/then/" not in path and "/if/" not in path and "/not" not in path]


def test_the_schema_is_valid() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_there_is_no_alternative_that_would_nest_errors() -> None:
    assert [path for path, part in ALL if {"oneOf", "anyOf"} & set(part)] == []


def test_every_mapping_with_known_keys_is_closed() -> None:
    open_ones = [
        path
        for path, part in FIELDS
        if "properties" in part and not path.endswith("/matrix") and "then" not in path
        if part.get("additionalProperties") is not False
    ]
    assert open_ones == []


def test_every_field_is_described() -> None:
    named = [(path, part) for path, part in FIELDS if path.split("/")[-2:-1] in (["properties"], ["$defs"])]
    assert len(named) > 60
    assert [path for path, part in named if "$ref" not in part and not part.get("description")] == []


def test_examples_and_defaults_are_valid() -> None:
    wrong = [
        (path, value)
        for path, part in ALL
        for value in [*part.get("examples", ()), *([part["default"]] if "default" in part else [])]
        if not Draft202012Validator({**part, "$defs": SCHEMA["$defs"]}).is_valid(value)
    ]
    assert wrong == []


def test_defaults_are_those_of_the_values() -> None:
    defaults = {
        (cls.__name__, field.name): field.default
        for cls in (Case, Decode, GoldenChoice, Model, Prompt)
        for field in dataclasses.fields(cls)
    }
    assert default_of("decode", "algorithm") == defaults["Decode", "algorithm"]
    assert default_of("decode", "ignore_eos") == defaults["Decode", "ignore_eos"]
    assert default_of("model", "trust_remote_code") == defaults["Model", "trust_remote_code"]
    assert default_of("prompt", "add_special_tokens") == defaults["Prompt", "add_special_tokens"]
    for name in ("full_tokens", "top_k", "projections"):
        assert default_of("golden", name) == defaults["GoldenChoice", name]
    assert default_of("timeout") == defaults["Case", "timeout"]
    assert default_of("repeat") == defaults["Case", "repeat"]
    assert default_of("description") == defaults["Case", "description"]


def test_choices_are_those_of_the_values() -> None:
    definitions = SCHEMA["$defs"]
    assert tuple(definitions["dtype"]["enum"]) == DTYPES
    assert tuple(definitions["reference"]["properties"]["dtype"]["enum"]) == DTYPES
    assert tuple(definitions["device"]["enum"]) == DEVICES
    assert set(Capabilities(dtypes={}).algorithms) <= set(definitions["decode"]["properties"]["algorithm"]["enum"])


def test_a_case_may_state_whatever_defaults_and_variants_may() -> None:
    definitions = SCHEMA["$defs"]
    case = definitions["case"]["properties"]
    assert definitions["defaults"]["properties"] == {name: part for name, part in case.items() if name != "name"}
    kept = {name: part for name, part in case.items() if name not in ("name", "description", "engines", "matrix")}
    assert definitions["variant"]["properties"] == kept


def test_the_schema_is_found_in_a_wheel_and_in_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_schema().is_file()
    package = tmp_path / "site" / "specrunner"
    (package / "spec").mkdir(parents=True)
    monkeypatch.setattr(schema_module, "__file__", str(package / "spec" / "schema.py"))
    with pytest.raises(ConfigurationError, match="missing from the installation"):
        find_schema()
    (tmp_path / "site" / "schema").mkdir()
    shutil.copy(Path(__file__).parents[2] / "schema" / "spec.schema.json", tmp_path / "site" / "schema")
    assert find_schema() == tmp_path / "site" / "schema" / "spec.schema.json"
    shutil.copytree(tmp_path / "site" / "schema", package / "schema")
    assert find_schema() == package / "schema" / "spec.schema.json"


@pytest.mark.parametrize(
    ("value", "kind"),
    [(True, "boolean"), (1, "integer"), (2.0, "integer"), (0.5, "number"), (float("nan"), "number"), (None, "null")],
)
def test_kinds(value: Any, kind: str) -> None:
    assert kind_of(value) == kind


def test_a_keyword_that_is_not_compiled_is_refused() -> None:
    with pytest.raises(ValueError, match="`oneOf` is not supported"):
        Compiler({}).compile({"items": {"oneOf": []}})


# --- the compiled predicates agree with jsonschema ---

SMALL = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([0.0, 1.0, 0.5, -1.5, float("nan"), float("inf")])
    | st.sampled_from(["", "a", "ab", "b c", "exact"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, max_size=3),
    max_leaves=6,
)
TYPES = ["object", "array", "string", "integer", "number", "boolean", "null"]
KEYWORDS: dict[str, st.SearchStrategy[Any]] = {
    "type": st.sampled_from(TYPES) | st.lists(st.sampled_from(TYPES), min_size=1, unique=True),
    "const": SMALL,
    "enum": st.lists(SMALL, min_size=1, max_size=3),
    "required": st.lists(st.sampled_from(["a", "b"]), unique=True),
    "minProperties": st.integers(0, 2),
    "minItems": st.integers(0, 2),
    "uniqueItems": st.booleans(),
    "minLength": st.integers(0, 2),
    "pattern": st.sampled_from(["^a", "b$", "^[ab]*$"]),
    "minimum": st.integers(-2, 2),
    "maximum": st.integers(-2, 2),
    "exclusiveMinimum": st.integers(-2, 2),
    "exclusiveMaximum": st.integers(-2, 2),
}


def make_schemas(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    nested = {
        "properties": st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2),
        "additionalProperties": inner,
        "propertyNames": inner,
        "items": inner,
        "allOf": st.lists(inner, min_size=1, max_size=2),
        "if": inner,
        "then": inner,
        "not": inner,
    }
    return st.fixed_dictionaries({}, optional={**KEYWORDS, **nested})


SCHEMAS = st.recursive(st.booleans() | st.fixed_dictionaries({}, optional=KEYWORDS), make_schemas, max_leaves=5)


@given(SCHEMAS, SMALL)
@settings(max_examples=200, deadline=None)
def test_predicates_agree_with_jsonschema_on_any_schema(schema: Any, value: Any) -> None:
    assert Compiler({}).compile(schema)(value) == Draft202012Validator(schema).is_valid(value)


@pytest.mark.parametrize("value", [True, False, 1, 0, 1.0, "1", None, [1, True], [1, 1.0], [[1], [True]], {"a": 1}])
@pytest.mark.parametrize(
    "schema",
    [
        {"const": 1},
        {"const": True},
        {"enum": [0, "1"]},
        {"enum": [[1, 1]]},
        {"uniqueItems": True},
        {"const": {"a": True}},
    ],
)
def test_true_is_not_one(schema: Any, value: Any) -> None:
    assert Compiler({}).compile(schema)(value) == Draft202012Validator(schema).is_valid(value)


BOUNDS = [
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    *("minLength", "minItems", "minProperties"),
]


@pytest.mark.parametrize("keyword", BOUNDS)
@pytest.mark.parametrize(
    "value", [0, 1, 2, 0.5, 1.0, 1.5, "", "a", "ab", [], [1], [1, 2], {}, {"a": 1}, {"a": 1, "b": 2}]
)
def test_bounds_hold_to_the_last(keyword: str, value: Any) -> None:
    schema = {keyword: 1}
    assert Compiler({}).compile(schema)(value) == Draft202012Validator(schema).is_valid(value)


def documents() -> list[Any]:
    """Every example spec that can be read, whether it is valid or not."""
    roots = [
        parse_text(file.read_text(encoding="utf-8", errors="replace"), file.name).root
        for file in EXAMPLES.glob("*/*.yaml")
    ]
    return [root for root in roots if isinstance(root, dict)]


DOCUMENTS = documents()


def is_valid(document: Any) -> bool:
    """Tell what the loader's predicates say: the spec without its cases, then every case."""
    if not compile_definition("spec")(document):
        return False
    return all(map(compile_definition("case"), document["cases"]))


def test_predicates_agree_with_jsonschema_on_all_examples() -> None:
    validator = Draft202012Validator(SCHEMA)
    verdicts = [is_valid(document) for document in DOCUMENTS]
    assert verdicts == [validator.is_valid(document) for document in DOCUMENTS]
    assert verdicts.count(True) > 20
    assert verdicts.count(False) > 20


def spots(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every container in a document with each of its keys or indices."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield node, key
        yield from spots(value)


@pytest.mark.slow
@given(st.data())
@settings(max_examples=400, deadline=None)
def test_predicates_agree_with_jsonschema_on_broken_examples(data: st.DataObject) -> None:
    document = json.loads(json.dumps(data.draw(st.sampled_from(DOCUMENTS))))
    for _ in range(data.draw(st.integers(1, 3))):
        container, key = data.draw(st.sampled_from(list(spots(document)) or [({}, "a")]))
        action = data.draw(st.sampled_from(["replace", "remove", "rename", "copy"]))
        if action == "replace":
            container[key] = data.draw(SMALL)
        elif action == "remove" and key in (container if isinstance(container, dict) else range(len(container))):
            del container[key]
        elif action == "rename" and isinstance(container, dict) and key in container:
            container[data.draw(st.sampled_from(["a", "name", "options", "logits"]))] = container.pop(key)
        elif action == "copy":
            source, name = data.draw(st.sampled_from(list(spots(document)) or [({"a": 1}, "a")]))
            container[key] = copy.deepcopy(source[name])
    assert is_valid(document) == Draft202012Validator(SCHEMA).is_valid(document)
