"""jsonschema's validator of our schemas, led past what is sound: there is nothing to explain, and it is slow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from specrunner.spec.schema import Check, Compiler, find_repeats, load_schema

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError


@cache
def make_validator(definition: str | None, schema: str) -> Any:
    """Return jsonschema's validator of a definition, or of the whole schema; it imports jsonschema.

    Args:
        definition: the name of one under `$defs`; None is the whole.
        schema: the schema's file name.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    root = load_schema(schema)
    keywords = _skip_what_is_sound(Compiler(root), Draft202012Validator.VALIDATORS)
    kind: Any = extend(Draft202012Validator, keywords)  # type: ignore[no-untyped-call]
    return kind(root if definition is None else {"$ref": f"#/$defs/{definition}", "$defs": root["$defs"]})


def _skip_what_is_sound(compiler: Compiler, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return jsonschema's keywords that lead from a container to what it holds, for what breaks the schema alone.

    jsonschema takes 50 microseconds for a value; a predicate of ours says in one that there is nothing to explain.

    Args:
        compiler: of the schema.
        keywords: jsonschema's own, by name.
    """
    from jsonschema.exceptions import ValidationError as Problem

    checks: dict[int, tuple[Any, Check]] = {}

    def is_broken(value: Any, part: Any) -> bool:
        if id(part) not in checks:
            checks[id(part)] = part, compiler.compile(part)
        return not checks[id(part)][1](value)

    def items(validator: Any, part: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        for index, item in enumerate(instance if isinstance(instance, list) else ()):
            if is_broken(item, part):
                yield from validator.descend(item, part, path=index)

    def properties(validator: Any, parts: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        if isinstance(instance, dict):
            instance = {
                name: instance[name] for name in parts if name in instance and is_broken(instance[name], parts[name])
            }
        yield from keywords["properties"](validator, parts, instance, schema)

    def additional(validator: Any, part: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        if isinstance(instance, dict) and isinstance(part, dict):
            instance = {name: item for name, item in instance.items() if is_broken(item, part)}
        yield from keywords["additionalProperties"](validator, part, instance, schema)

    def unique(validator: Any, wanted: bool, instance: Any, schema: Any) -> Iterator[ValidationError]:
        repeats = find_repeats(instance) if wanted and isinstance(instance, list) else ()
        yield from (Problem("has repeats") for _ in islice(repeats, 1))

    return {"items": items, "properties": properties, "additionalProperties": additional, "uniqueItems": unique}
