"""Comparison rules: from how a spec writes them to complete parameters. The schema says what each rule takes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from specrunner.spec.model import Rule
from specrunner.spec.schema import field_schema


def rule_names() -> tuple[str, ...]:
    """Return the names of all rules."""
    return tuple(field_schema("rules")["properties"])


def read_rules(written: str | Mapping[str, Any]) -> tuple[Rule, ...]:
    """Return the rules of one tensor pattern, in the order of writing.

    Args:
        written: valid under the schema's `rules`, e.g. `exact` or `{sqnr: 40, kl: {mean: 1e-3}}`.
    """
    if isinstance(written, str):
        return (complete_rule(written, True),)
    return tuple(complete_rule(name, value) for name, value in written.items())


def read_token_rule(written: str | Mapping[str, Any]) -> Rule:
    """Return the rule for generated tokens: `exact`, or `near_tie` with its limits filled in."""
    if written == "exact":
        return Rule("exact")
    return _read_own_rule("tokens", "near_tie", written)


def read_trajectory_rule(written: str | Mapping[str, Any]) -> Rule:
    """Return the rule for a trajectory: `exact`, or `sampler` with its limit filled in."""
    if written == "exact":
        return Rule("exact")
    return _read_own_rule("trajectory", "sampler", written)


def _read_own_rule(field: str, name: str, written: str | Mapping[str, Any]) -> Rule:
    schema = field_schema(field)["properties"][name]
    given = written[name] if isinstance(written, Mapping) else {}
    parts = schema["properties"].items()
    return Rule(name, {key: float(given.get(key, part["default"])) for key, part in parts})


def complete_rule(name: str, value: Any) -> Rule:
    """Return a rule with every parameter filled in.

    A short form (`ulp: 2`, `cosine: 0.999`) gives the rule's one required parameter. A parameter that is neither
    written nor has a default is None: that bound is not set (`kl` without `p99`).
    """
    return _complete(name, tuple(value.items()) if isinstance(value, dict) else value)


@lru_cache(maxsize=1024)
def _complete(name: str, written: Any) -> Rule:
    schema = field_schema("rules")["properties"][name]
    parameters = schema.get("properties", {})
    if not parameters:
        return Rule(name)
    given = dict(written) if isinstance(written, tuple) else {schema["required"][0]: written}
    return Rule(name, {key: _number(given.get(key, part.get("default")), part) for key, part in parameters.items()})


def _number(value: Any, schema: Mapping[str, Any]) -> Any:
    """Return a number in the type that the schema states: 0 is 0.0 for a tolerance, 2.0 is 2 for a count."""
    if value is None:
        return None
    return int(value) if schema["type"] == "integer" else float(value)
