"""The JSON Schemas of the files that people write, compiled to plain Python predicates.

`schema/spec.schema.json` stays the one source of truth for specs, and `schema/name-map.schema.json` for name maps: what
is compiled here is such a file, keyword by keyword, and a keyword that this module does not know ends the program. The
predicates only say whether a value is valid; why it is not, is explained by `explain.py` with the jsonschema library,
which is imported for invalid files alone.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from specrunner.errors import ConfigurationError

SCHEMA_NAME = "spec.schema.json"
END = r"\Z"
"""The end of the text in a regular expression of Python."""
Check = Callable[[Any], bool]
Schema = Mapping[str, Any]

_ANNOTATIONS = frozenset(
    ("$schema", "$id", "$defs", "$comment", "title", "description", "default", "examples", "x-unit", "then")
)
_OBJECT_KEYWORDS = ("properties", "additionalProperties", "propertyNames", "required", "minProperties", "maxProperties")
_ARRAY_KEYWORDS = ("items", "minItems", "maxItems", "uniqueItems")
_STRING_KEYWORDS = ("minLength", "maxLength", "pattern")
_NUMBER_KEYWORDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_KNOWN = _ANNOTATIONS.union(
    _OBJECT_KEYWORDS,
    _ARRAY_KEYWORDS,
    _STRING_KEYWORDS,
    _NUMBER_KEYWORDS,
    ("$ref", "type", "enum", "const", "allOf", "if", "not"),
)


def find_schema(name: str = SCHEMA_NAME) -> Path:
    """Return the path of a schema file: inside the package when installed from a wheel, else in the checkout.

    Raises:
        ConfigurationError: the file is in neither place.
    """
    package = Path(__file__).resolve().parent.parent
    for directory in (package / "schema", package.parent / "schema"):
        if (directory / name).is_file():
            return directory / name
    raise ConfigurationError(f"{name} is missing from the installation", help="reinstall specrunner")


@cache
def load_schema(name: str = SCHEMA_NAME) -> dict[str, Any]:
    """Return a schema as JSON values."""
    schema: dict[str, Any] = json.loads(find_schema(name).read_text(encoding="utf-8"), object_hook=_end_patterns)
    return schema


def _end_patterns(part: dict[str, Any]) -> dict[str, Any]:
    """Let a pattern's `$` mean the end of the text, as in JSON Schema; Python's lets a line break follow."""
    pattern = part.get("pattern")
    if isinstance(pattern, str) and pattern.endswith("$"):
        part["pattern"] = pattern[:-1] + END
    return part


def resolve_reference(reference: str, root: Schema | None = None) -> Schema:
    """Return what a `$ref` such as `#/$defs/case` points at."""
    node: Any = load_schema() if root is None else root
    for part in reference.removeprefix("#").strip("/").split("/"):
        node = node[part] if part else node
    return node  # type: ignore[no-any-return]


def field_schema(name: str) -> Schema:
    """Return the definition `name` of the schema, e.g. `case`."""
    schema: Schema = load_schema()["$defs"][name]
    return schema


@cache
def compile_definition(name: str) -> Check:
    """Return the predicate for one definition of the schema, or for the whole spec without its cases (`spec`)."""
    schema = load_schema()
    if name == "spec":
        properties = {**schema["properties"], "cases": {"type": "array", "minItems": 1}}
        return Compiler(schema).compile({**schema, "properties": properties})
    return Compiler(schema).compile(schema["$defs"][name])


def default_of(definition: str, *path: str) -> Any:
    """Return the documented default of a field, e.g. `default_of("decode", "algorithm")`."""
    node: Any = field_schema(definition)
    for name in path:
        node = node["properties"][name]
    return node["default"]


class Compiler:
    """Turns the keywords that our schema uses into predicates, with the meaning that draft 2020-12 gives them.

    Args:
        root: the schema that `$ref`s point into.
    """

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._done: dict[str, Check] = {}

    def compile(self, schema: Schema | bool) -> Check:
        """Return the predicate of a schema.

        Raises:
            ValueError: it uses a keyword that is not compiled here.
        """
        if isinstance(schema, bool):
            return (lambda value: True) if schema else (lambda value: False)
        unknown = sorted(set(schema) - _KNOWN)
        if unknown:
            raise ValueError(f"schema keyword `{unknown[0]}` is not supported")
        anywhere = self._compile_general(schema)
        by_type: dict[str, list[Check]] = {}
        for keywords, compile_group, types in (
            (_OBJECT_KEYWORDS, self._compile_object, ("object",)),
            (_ARRAY_KEYWORDS, self._compile_array, ("array",)),
            (_STRING_KEYWORDS, _compile_string, ("string",)),
            (_NUMBER_KEYWORDS, _compile_number, ("integer", "number")),
        ):
            if any(keyword in schema for keyword in keywords):
                check = compile_group(schema)
                for kind in types:
                    by_type.setdefault(kind, []).append(check)
        return _join(schema.get("type"), anywhere, by_type)

    def _compile_general(self, schema: Schema) -> list[Check]:
        checks: list[Check] = []
        if "$ref" in schema:
            checks.append(self._refer(schema["$ref"]))
        if "const" in schema:
            checks.append(_one_of([schema["const"]]))
        if "enum" in schema:
            checks.append(_one_of(schema["enum"]))
        checks.extend(self.compile(part) for part in schema.get("allOf", ()))
        if "not" in schema:
            forbidden = self.compile(schema["not"])
            checks.append(lambda value: not forbidden(value))
        if "if" in schema:
            condition, consequence = self.compile(schema["if"]), self.compile(schema.get("then", True))
            checks.append(lambda value: not condition(value) or consequence(value))
        return checks

    def _refer(self, reference: str) -> Check:
        if reference not in self._done:
            self._done[reference] = lambda value: self._done[reference](value)
            self._done[reference] = self.compile(resolve_reference(reference, self._root))
        return self._done[reference]

    def _compile_object(self, schema: Schema) -> Check:
        properties = {name: self.compile(part) for name, part in schema.get("properties", {}).items()}
        additional = self.compile(schema.get("additionalProperties", True))
        names = self.compile(schema["propertyNames"]) if "propertyNames" in schema else None
        required = tuple(schema.get("required", ()))
        least, most = schema.get("minProperties", 0), schema.get("maxProperties", math.inf)

        def check(value: Mapping[str, Any]) -> bool:
            if not least <= len(value) <= most:
                return False
            for name in required:
                if name not in value:
                    return False
            if names is not None and not all(map(names, value)):
                return False
            return all(properties.get(name, additional)(item) for name, item in value.items())

        return check

    def _compile_array(self, schema: Schema) -> Check:
        items = self.compile(schema.get("items", True))
        least, most = schema.get("minItems", 0), schema.get("maxItems", math.inf)
        unique = schema.get("uniqueItems", False)

        def check(value: list[Any]) -> bool:
            if not least <= len(value) <= most or (unique and has_repeats(value)):
                return False
            return all(map(items, value))

        return check


def kind_of(value: Any) -> str:
    """Return the JSON type of a value, `integer` also for 2.0."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, str):
        return "string"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "integer" if value.is_integer() else "number"
    if isinstance(value, dict):
        return "object"
    return "array" if isinstance(value, list) else "null"


def has_repeats(items: list[Any]) -> bool:
    """Tell whether two items are equal in JSON's sense (1 and 1.0 are, 1 and true are not)."""
    return next(find_repeats(items), None) is not None


def find_repeats(items: list[Any]) -> Iterator[int]:
    """Yield the index of every item that is equal to an earlier one in JSON's sense."""
    numbers, seen = _Numbers(), set()
    for index, item in enumerate(items):
        number = numbers.of(item)
        if number in seen:
            yield index
        seen.add(number)


def _mark(scalar: Any) -> tuple[bool, Any]:
    """Return what just equal scalars have in common: 1 and 1.0 do, 1 and true do not."""
    return isinstance(scalar, bool), scalar


class _Numbers:
    """Numbers JSON values so that just equal ones have one number.

    A container is looked at once, in however many places aliases put it.
    """

    def __init__(self) -> None:
        self._known: dict[Any, int] = {}
        self._containers: dict[int, int] = {}

    def of(self, value: Any) -> int:
        """Return the number of a value, which must live as long as this does."""
        if not isinstance(value, dict | list):
            return self._number(_mark(value))
        found = self._containers.get(id(value))
        if found is None:
            if isinstance(value, dict):
                key: Any = frozenset((name, self.of(item)) for name, item in value.items())
            else:
                key = tuple(map(self.of, value))
            found = self._containers[id(value)] = self._number((type(key), key))
        return found

    def _number(self, key: Any) -> int:
        return self._known.setdefault(key, len(self._known))


def _join(types: str | list[str] | None, anywhere: list[Check], by_type: dict[str, list[Check]]) -> Check:
    """Combine the type keyword with the checks that hold for any value and those for values of one type."""
    allowed = None if types is None else {types} if isinstance(types, str) else set(types)
    if allowed is not None and "number" in allowed:
        allowed.add("integer")
    table: dict[str, Check | bool] = {}
    for kind in ("object", "array", "string", "integer", "number", "boolean", "null"):
        checks = [*by_type.get(kind, ()), *anywhere]
        table[kind] = _all_of(checks) if allowed is None or kind in allowed else False
    whole, broken = _decide(table["integer"]), _decide(table["number"])
    by_class: dict[type, Check] = {
        str: _decide(table["string"]),
        bool: _decide(table["boolean"]),
        int: whole,
        float: lambda value: (whole if value.is_integer() else broken)(value),
        type(None): _decide(table["null"]),
    }

    def check(value: Any) -> bool:
        found = by_class.get(value.__class__)
        if found is None:
            found = by_class[value.__class__] = _decide(table[kind_of(value)])
        return found(value)

    return check


def _decide(check: Check | bool) -> Check:
    """Return a predicate for what may be a foregone conclusion."""
    return (lambda value: check) if isinstance(check, bool) else check


def _all_of(checks: list[Check]) -> Check | bool:
    if not checks:
        return True
    if len(checks) == 1:
        return checks[0]
    return lambda value: all(check(value) for check in checks)


def _one_of(values: list[Any]) -> Check:
    containers = [value for value in values if isinstance(value, dict | list)]
    scalars = {_mark(value) for value in values if not isinstance(value, dict | list)}

    def check(value: Any) -> bool:
        if isinstance(value, dict | list):
            return any(has_repeats([accepted, value]) for accepted in containers)
        return _mark(value) in scalars

    return check


def _compile_string(schema: Schema) -> Check:
    least, most = schema.get("minLength", 0), schema.get("maxLength", math.inf)
    search = re.compile(schema.get("pattern", "")).search
    return lambda value: least <= len(value) <= most and search(value) is not None


def _compile_number(schema: Schema) -> Check:
    least, most = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")

    def check(value: float) -> bool:
        return not (
            (least is not None and value < least)
            or (most is not None and value > most)
            or (above is not None and value <= above)
            or (below is not None and value >= below)
        )

    return check
