"""From an engine's name to its class."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from specrunner.catalogue.engines import engine_names, engine_targets
from specrunner.engines.base import Engine
from specrunner.errors import ConfigurationError
from specrunner.words import did_you_mean


@cache
def find_engine(name: str) -> type[Engine]:
    """Return the class of an engine.

    Raises:
        ConfigurationError: there is no such engine, or its plugin is broken; the message names it.
    """
    target = engine_targets().get(name)
    if target is None:
        advice = did_you_mean(name, engine_names()) or f"engines: {', '.join(engine_names())}"
        raise ConfigurationError(f"unknown engine `{name}`", help=advice)
    module, _, attribute = target.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:  # a plugin may fail in any way; its name must reach the user
        cause = f"{type(error).__name__}: {error}"
        advice = "reinstall or remove the package that provides it"
        raise ConfigurationError(f"engine `{name}` ({target}) cannot be loaded: {cause}", help=advice) from error
    if not (isinstance(found, type) and issubclass(found, Engine)):
        raise ConfigurationError(f"engine `{name}` ({target}) is not a subclass of specrunner.engines.base.Engine")
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    if missing:
        methods = ", ".join(f"`{name}`" for name in missing)
        raise ConfigurationError(
            f"engine `{name}` ({target}) lacks {methods}",
            help="the docstrings of specrunner.engines.base.Engine say what each method does",
        )
    return found
