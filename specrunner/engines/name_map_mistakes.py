"""What is wrong in a name map, and where it stands: people write these files by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from specrunner.spec.diagnostics import Diagnostic, accepted_values
from specrunner.spec.source import Source
from specrunner.spec.syntax import Span
from specrunner.spec.tree import Map

_TOP: Mapping[str, Any] = {"architectures": list, "layers": str, "algorithms": list, "router": dict, "tensors": dict}
_ROUTER: Mapping[str, Any] = {
    "score": ("sigmoid", "softmax"),
    "bias": bool,
    "experts_per_token": str,
    "n_group": str,
    "topk_group": str,
}
_ENTRY: Mapping[str, Any] = {
    "module": str,
    "parameter": str,
    "method": str,
    "of": ("output", "input"),
    "index": int,
    "sum": list,
    "part": ("query", "key", "value"),
    "heads_first": bool,
    "gather": ("columns", "sum"),
    "shift": int,
    "last": dict,
    "optional": bool,
}
_WORDS = {str: "text", int: "a whole number", bool: "true or false", list: "a list", dict: "a mapping"}


def find_mistakes(source: Source, templates: Sequence[str]) -> tuple[Diagnostic, ...]:
    """Return what is wrong in a map, in the order of its lines.

    Args:
        source: the map's file.
        templates: the tensor names that a map may have.
    """
    if source.diagnostics:
        return source.diagnostics
    whole = (0, 1)
    if not isinstance(source.root, Map):
        example = "a map begins with `architectures: [NameForCausalLM]` and lists its `tensors`"
        return (source.diagnose("wrong-type", "a name map must be a mapping", whole, example),)
    found = _check_fields(source, source.root, whole, _TOP, ("architectures", "tensors"))
    router = source.root.get("router")
    if isinstance(router, Map):
        found += _check_fields(source, router, source.root.values_at["router"], _ROUTER, ("score",))
    tensors = source.root.get("tensors")
    tensors = tensors if isinstance(tensors, Map) else Map(whole)
    for name, entry in tensors.items():
        if name not in templates:
            advice = accepted_values(name, templates, "names")
            found.append(source.diagnose("unknown-tensor", f"unknown tensor `{name}`", tensors.keys_at[name], advice))
        elif not isinstance(entry, Map):
            example = 'write e.g. `{module: "model.layers.{i}.mlp"}`'
            at = tensors.values_at[name]
            found.append(source.diagnose("wrong-type", f"the entry of `{name}` must be a mapping", at, example))
        else:
            found += _check_entry(source, entry, tensors.keys_at[name])
    return tuple(sorted(found, key=lambda one: (one.location.line, one.location.column)))


def _check_entry(source: Source, entry: Map, at: Span) -> list[Diagnostic]:
    found = _check_fields(source, entry, at, _ENTRY, ("module",))
    last = entry.get("last")
    return [*found, *_check_entry(source, last, entry.keys_at["last"])] if isinstance(last, Map) else found


def _check_fields(
    source: Source, mapping: Map, at: Span, fields: Mapping[str, Any], required: Sequence[str]
) -> list[Diagnostic]:
    """Check a mapping's keys and the kinds of their values; `at` is where a key that is missing is told."""
    found = [
        source.diagnose(
            "missing-key", f"key `{key}` is missing", at, f"keys: {', '.join(f'`{one}`' for one in fields)}"
        )
        for key in required
        if key not in mapping
    ]
    for key, value in mapping.items():
        kind = fields.get(key)
        if kind is None:
            advice = accepted_values(key, tuple(fields), "keys")
            found.append(source.diagnose("unknown-key", f"unknown key `{key}`", mapping.keys_at[key], advice))
        elif isinstance(kind, tuple):
            if value not in kind:
                advice = accepted_values(str(value), kind)
                message = f"`{key}` cannot be `{value}`"
                found.append(source.diagnose("bad-value", message, mapping.values_at[key], advice))
        elif not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            message = f"`{key}` must be {_WORDS[kind]}"
            found.append(source.diagnose("wrong-type", message, mapping.values_at[key]))
    return found
