"""Which engines there are: entry points of the group `specrunner.engines`, and the ones of this package."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points

from specrunner.engines.base import Engine
from specrunner.errors import ConfigurationError

GROUP = "specrunner.engines"

BUILT_IN: Mapping[str, str] = {
    "hf": "specrunner.engines.hf:HfEngine",
    "oracle": "specrunner.engines.oracle:OracleEngine",
    "vllm": "specrunner.engines.vllm:VllmEngine",
    "sglang": "specrunner.engines.sglang:SglangEngine",
}
"""Our own engines, so that a checkout works that was not installed again since one was added."""


@cache
def engine_targets() -> Mapping[str, str]:
    """Return `module:Class` of every engine, by name; nothing is imported. A plugin may replace one of ours."""
    return {**BUILT_IN, **{point.name: f"{point.module}:{point.attr}" for point in entry_points(group=GROUP)}}


def engine_names() -> tuple[str, ...]:
    """Return the names of all engines."""
    return tuple(engine_targets())


@cache
def find_engine(name: str) -> type[Engine]:
    """Return the class of an engine.

    Raises:
        ConfigurationError: there is no such engine, or its plugin is broken; the message names it.
    """
    target = engine_targets().get(name)
    if target is None:
        raise ConfigurationError(f"unknown engine `{name}`", help=f"engines: {', '.join(engine_names())}")
    module, _, attribute = target.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:  # a plugin may fail in any way; its name must reach the user
        cause = f"{type(error).__name__}: {error}"
        advice = "reinstall or remove the package that provides it"
        raise ConfigurationError(f"engine `{name}` ({target}) cannot be loaded: {cause}", help=advice) from error
    if not (isinstance(found, type) and issubclass(found, Engine)):
        raise ConfigurationError(f"engine `{name}` ({target}) is not a subclass of specrunner.engines.base.Engine")
    return found
