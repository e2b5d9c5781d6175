"""Why a value breaks a schema: jsonschema's errors as short sentences of our own.

Nothing here decides validity; `schema.py` does. Findings carry a path into the value, not a position, since a value
may be made up by the matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from specrunner.spec.diagnostics import ENOUGH, accepted_values
from specrunner.spec.inline import LONGEST_SCALAR, inline, unquote
from specrunner.spec.schema import (
    END,
    SCHEMA_NAME,
    Schema,
    find_repeats,
    kind_of,
    load_schema,
    resolve_reference,
)
from specrunner.spec.validator import make_validator
from specrunner.words import suggest

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

Path = tuple[str | int, ...]

_KINDS = {
    "object": "a mapping",
    "array": "a list",
    "string": "text",
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "null": "empty",
}
_PATTERNS = {
    "^[A-Za-z0-9][A-Za-z0-9._-]*$": "letters, digits, `.`, `_` and `-`, beginning with a letter or digit",
    "^[A-Za-z0-9_][A-Za-z0-9_.-]*$": "letters, digits, `.`, `_` and `-`",
    "^[A-Za-z0-9_][A-Za-z0-9_.+-]*$": "letters, digits, `.`, `_`, `+` and `-`",
    "^[A-Za-z0-9_][A-Za-z0-9_.:-]*$": "letters, digits, `.`, `_`, `:` and `-`",
    r"^[A-Za-z0-9_.]*(\*{1,2}[A-Za-z0-9_.]*){0,4}$": "letters, digits, `_`, `.` and at most four wildcards (`*`, `**`)",
    "^[A-Za-z_][A-Za-z0-9_.]*$": "letters, digits, `_` and `.`",
    "^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$": "`name` or `owner/name`",
}


_MOST_ITEMS = 1000
"""Items of a value that are looked at for one kind of mistake."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One way in which a value breaks the schema.

    Attributes:
        code: the diagnostic's code.
        message: a lower-case sentence.
        path: the keys and indices that lead to the culprit.
        at_key: whether the culprit is the last key of `path` rather than its value.
        help: what to do about it.
    """

    code: str
    message: str
    path: Path
    at_key: bool = False
    help: str | None = None


def explain(definition: str | None, value: Any, schema: str = SCHEMA_NAME) -> list[Finding]:
    """Return the ways in which a value breaks a schema: all of them, unless they are more than anybody reads.

    Args:
        definition: the definition of the schema that the value should follow; None is the whole file.
        value: what was written, or made up.
        schema: the schema's file name.
    """
    validator = make_validator(definition, schema)
    context = _Context(_any(validator.schema), value)
    errors = islice(validator.iter_errors(value), ENOUGH)  # aliases make many of a few lines
    found = (one for error in errors for one in islice(_translate(error, context), ENOUGH))
    return list(dict.fromkeys(islice(found, 4 * ENOUGH)))  # one mistake must not hide all others


@dataclass(frozen=True, slots=True)
class _Context:
    """What an error is a part of: the whole schema, and the whole value."""

    root: Schema
    value: Any


def _translate(error: ValidationError, context: _Context) -> Iterator[Finding]:
    path: Path = tuple(error.absolute_path)
    if "propertyNames" in error.absolute_schema_path:
        name = str(error.instance)
        if error.validator == "maxLength":
            yield from _too_many(error, (*path, name), context)
            return
        message = f"key {_show(name)} is not a valid name"
        yield Finding("bad-value", message, (*path, name), True, _pattern_help(error))
    elif _is_entry(error, "tolerance") and path[-1] in _rules(context.root):
        message = f"`{path[-1]}` is a rule, and `tolerance` wants tensors first"
        advice = f"write `tolerance: {{logits: {{{path[-1]}: {inline(error.instance)}}}}}`"
        yield Finding("wrong-type", message, path, True, advice)
    else:
        yield from _TRANSLATORS[str(error.validator)](error, path, context)


def _rules(root: Schema) -> list[str]:
    return _properties(root.get("$defs", {}).get("rules"))


def _is_entry(error: ValidationError, field: str) -> bool:
    """Tell whether the culprit is what stands beside a key of one's own in the field, e.g. beside `logits`."""
    steps = [step for step in list(error.absolute_schema_path)[:-1] if step not in ("if", "then")]
    return steps[-2:] == [field, "additionalProperties"]


def _name(path: Path) -> str:
    keys = [str(part) for part in path if isinstance(part, str)]
    if not keys:
        return "the spec"
    return f"`{keys[-1]}`" if path and isinstance(path[-1], str) else f"an item of `{keys[-1]}`"


def _show(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, dict | list):
        return _KINDS[kind_of(value)]
    text = str(value)
    return f"`{text[:LONGEST_SCALAR]}…`" if len(text) > LONGEST_SCALAR else f"`{text}`"


def _any(value: Any) -> Any:
    """Return `value`; jsonschema's types allow attributes that are unset, which those of reported errors never are."""
    return value


def _properties(schema: Any) -> list[str]:
    return list(schema.get("properties", {})) if isinstance(schema, dict) else []


def _unknown_keys(error: ValidationError, path: Path, context: _Context) -> Iterator[Finding]:
    known = _properties(error.schema)
    of_cases = _properties(context.root.get("$defs", {}).get("defaults")) if "defaults" in known else []
    for key in list(_any(error.instance))[:_MOST_ITEMS]:
        if key not in known:
            advice = accepted_values(key, known)
            if key in _rule_parameters() and path and "tolerance" in path:
                advice = f"`{key}` is a parameter of the rule `{_rule_parameters()[key]}`; {advice}"
            elif key in of_cases:
                advice = f"`{key}` is a field of a case; for all cases put it under `defaults`"
            yield Finding("unknown-key", f"unknown key `{key}`{_where(path)}", (*path, key), True, advice)


@cache
def _rule_parameters() -> Mapping[str, str]:
    rules = load_schema()["$defs"]["rules"]["properties"]
    return {name: rule for rule, schema in rules.items() for name in schema.get("properties", ())}


_SWITCHES = {"yes": "true", "on": "true", "true": "true", "no": "false", "off": "false", "false": "false"}


def _where(path: Path) -> str:
    return f" in {_name(path)}" if path and isinstance(path[-1], str) else ""


def _missing_keys(error: ValidationError, path: Path, context: _Context) -> Iterator[Finding]:
    known = _properties(error.schema)
    unknown = [key for key in list(_any(error.instance))[:_MOST_ITEMS] if key not in known]
    misspelt = {suggest(key, known) for key in unknown}  # which `_unknown_keys` says
    for key in _any(error.validator_value):
        if key not in _any(error.instance) and key not in misspelt:
            where = _where(path) or (" in this case" if path[:1] == ("cases",) and len(path) == 2 else "")
            schema = error.schema.get("properties", {}).get(key, {}) if isinstance(error.schema, dict) else {}
            schema = resolve_reference(schema["$ref"], context.root) if "$ref" in schema else schema
            yield Finding("missing-key", f"key `{key}` is missing{where}", path, True, _example(key, schema))


def _example(key: str, schema: Mapping[str, Any]) -> str | None:
    description = str(schema.get("description", "")).split(". ")[0].rstrip(".")
    if "const" in schema:
        return f"write `{key}: {schema['const']}`"
    return f"`{key}`: {description[:1].lower()}{description[1:]}" if description else None


def _wrong_type(error: ValidationError, path: Path, context: _Context) -> Iterator[Finding]:
    instance = _any(error.instance)
    wanted = _any(error.validator_value)
    kinds = [wanted] if isinstance(wanted, str) else list(wanted)
    expected = " or ".join(_KINDS[kind] for kind in kinds if kind != "null" or len(kinds) == 1)
    found = kind_of(instance)
    got = "nothing" if found == "null" else _KINDS[found]
    advice = None
    schema = error.schema if isinstance(error.schema, dict) else {}
    if "enum" in schema:
        advice = accepted_values(str(instance), [str(value) for value in schema["enum"]])
    elif found == "object" and "array" in kinds:
        advice = _list_of(instance, schema, context.root)
    elif found == "string" and "boolean" in kinds and instance.lower() in _SWITCHES:
        quotes = " without quotes" if isinstance(unquote(instance), bool) else ""
        switch = f"write `{_SWITCHES[instance.lower()]}`{quotes}"
        advice = f"{switch}: in YAML 1.2 only `true` and `false` are switches"
    elif "string" in kinds and found in ("integer", "number", "boolean"):
        advice = "write a rule, e.g. `{cosine: 0.999}`" if _is_entry(error, "tolerance") else "quote it"
    elif "array" in kinds and found in ("string", "integer", "number"):
        advice = f"write a list: [{instance}]"
    elif found == "string" and kinds[0] in ("integer", "number"):
        unit = f" in {schema['x-unit']}" if "x-unit" in schema else ""
        is_number = kind_of(unquote(instance)) in ("integer", "number")
        advice = "write a number" + (" without quotes" if is_number else unit)
    elif found == "null":
        advice = "give it a value" if _is_required(error, path, context.root) else "give it a value, or remove it"
    if advice is None and _is_entry(error, "options"):
        advice = _by_engine(str(path[-1]), instance, path, context)
    if advice is None and "object" in kinds:
        example = next((one for one in _any(schema.get("examples", ())) if isinstance(one, dict)), None)
        if example is not None and isinstance(path[-1] if path else None, str):
            advice = f"e.g. {_name(path)[:-1]}: {inline(example)}`"
        elif "properties" in schema:
            advice = accepted_values("", _properties(schema), "keys")
    yield Finding("wrong-type", f"{_name(path)} must be {expected}, not {got}", path, help=advice)


def _list_of(value: Mapping[str, Any], schema: Schema, root: Schema) -> str | None:
    """Return how the one mapping, or the mapping by name, that stands for a list of mappings should be written."""
    items = schema.get("items", {})
    items = resolve_reference(items["$ref"], root) if "$ref" in items else items
    if items.get("type") != "object" or not value:
        return None
    if "name" in items.get("required", ()) and "name" not in value:
        name = next((key for key in value if key not in _properties(items)), None)
        return f"write a list: `- name: {inline(name)}`"
    return f"write a list: `[{inline(value)}]`"


def _by_engine(key: str, value: Any, path: Path, context: _Context) -> str | None:
    """Return how a key of `options` that is no engine should be written."""
    engines: list[Any] = []
    node = context.value
    for step in path:  # the innermost list of engines counts
        listed = node.get("engines") if isinstance(node, dict) else None
        engines = listed if isinstance(listed, list) and listed else engines
        node = node[step]
    definitions = context.root["$defs"]
    if key in engines[: definitions["engines"]["maxItems"]] or key in definitions["engine"]["examples"]:
        return None
    engine = engines[0] if engines else "hf"
    return f"options go by engine: `options: {{{inline(engine)}: {{{inline(key)}: {inline(value)}}}}}`"


def _is_required(error: ValidationError, path: Path, root: Schema) -> bool:
    """Tell whether the mapping around a value needs its key."""
    above = list(_steps(error, root))[-3:-2]
    return bool(path and above and isinstance(above[0], dict) and path[-1] in above[0].get("required", ()))


def _not_listed(error: ValidationError, path: Path, context: _Context) -> Iterator[Finding]:
    wanted = error.schema.get("type") if isinstance(error.schema, dict) else None
    if isinstance(wanted, str) and kind_of(error.instance) != wanted:
        return  # said by the type already
    values = [str(value) for value in _any(error.validator_value)]
    word = str(error.instance)
    if values == ["exact"] and "tolerance" in path:
        rules = context.root["$defs"]["rules"]["properties"]
        if word in rules:
            example = rules[word].get("examples", ["…"])[-1]
            message = f"rule `{word}` needs its parameters"
            yield Finding("bad-value", message, path, help=f"e.g. `{{{word}: {inline(example)}}}`")
            return
        yield Finding("unknown-rule", f"unknown rule `{word}`", path, help=accepted_values(word, list(rules), "rules"))
        return
    yield Finding(
        "bad-value", f"{_name(path)} cannot be {_show(error.instance)}", path, help=accepted_values(word, values)
    )


def _not_constant(error: ValidationError, path: Path, context: _Context) -> Iterator[Finding]:
    value = _show(error.validator_value)
    if isinstance(error.instance, str) and _show(error.instance) == value:
        kind = kind_of(error.validator_value)
        expected = _KINDS["number" if kind == "integer" else kind]
        message = f"{_name(path)} must be {expected}, not text"
        yield Finding("wrong-type", message, path, help=f"write {value} without quotes")
        return
    yield Finding(
        "bad-value", f"{_name(path)} must be {value}, not {_show(error.instance)}", path, help=f"write {value}"
    )


def _bad_pattern(error: ValidationError, path: Path, context: _Context) -> Iterator[Finding]:
    message = f"{_name(path)} cannot be {_show(error.instance)}"
    yield Finding("bad-value", message, path, help=_pattern_help(error))


def _pattern_help(error: ValidationError) -> str:
    pattern = str(error.validator_value).replace(END, "$")
    return f"allowed: {_PATTERNS.get(pattern, pattern)}"


def _out_of_range(error: ValidationError, path: Path, context: _Context) -> Iterator[Finding]:
    words = {
        "minimum": "at least",
        "maximum": "at most",
        "exclusiveMinimum": "greater than",
        "exclusiveMaximum": "less than",
    }
    unit = error.schema.get("x-unit", "") if isinstance(error.schema, dict) else ""
    bound = f"{words[str(error.validator)]} {error.validator_value}"
    advice = "1 is identical; e.g. 0.999" if "cosine" in path[-2:] else f"the unit is {unit}" if unit else None
    yield Finding("out-of-range", f"{_name(path)} must be {bound}, not {_show(error.instance)}", path, help=advice)


def _too_few(error: ValidationError, path: Path, context: _Context) -> Iterator[Finding]:
    known = _properties(error.schema)
    yield Finding("empty", f"{_name(path)} is empty", path, True, accepted_values("", known, "keys") if known else None)


def _too_many(error: ValidationError, path: Path, context: _Context) -> Iterator[Finding]:
    things = {"maxItems": "items", "maxProperties": "keys", "maxLength": "characters"}[str(error.validator)]
    have, most = len(_any(error.instance)), _any(error.validator_value)
    what = f"key {_show(path[-1])}" if "propertyNames" in error.absolute_schema_path else _name(path)
    yield Finding("too-large", f"{what} has {have:,} {things}, more than {most:,}", path, True)


def _repeated(error: ValidationError, path: Path, context: _Context) -> Iterator[Finding]:
    items: list[Any] = _any(error.instance)
    for index in find_repeats(items):
        yield Finding("repeated-item", f"{_show(items[index])} is listed twice in {_name(path)}", (*path, index))


def _excluded(error: ValidationError, path: Path, context: _Context) -> Iterator[Finding]:
    """A key that another key rules out: `if: {required: [id]}, then: {properties: {path: {not: {}}}}`."""
    others: list[str] = []
    for step in _steps(error, context.root):
        if isinstance(step, dict) and "if" in step:
            others = list(step["if"].get("required", ()))
    reason = " and ".join(f"`{name}`" for name in others)
    yield Finding("conflicting-keys", f"`{path[-1]}` cannot stand beside {reason}", path, True, "keep one of the two")


def _steps(error: ValidationError, root: Schema) -> Iterator[Any]:
    """Yield the parts of the schema on the way to what was broken; jsonschema's path leaves out `$ref` and `if`."""
    node: Any = root
    for step in error.absolute_schema_path:
        while isinstance(node, dict) and step not in node and "$ref" in node:
            node = resolve_reference(node["$ref"], root)
        yield node
        node = node[step]


_TRANSLATORS = {
    "additionalProperties": _unknown_keys,
    "required": _missing_keys,
    "type": _wrong_type,
    "enum": _not_listed,
    "const": _not_constant,
    "pattern": _bad_pattern,
    "minimum": _out_of_range,
    "maximum": _out_of_range,
    "exclusiveMinimum": _out_of_range,
    "exclusiveMaximum": _out_of_range,
    "minItems": _too_few,
    "minProperties": _too_few,
    "minLength": _too_few,
    "maxItems": _too_many,
    "maxProperties": _too_many,
    "maxLength": _too_many,
    "uniqueItems": _repeated,
    "not": _excluded,
}
