"""What an engine's methods must return, so that a plugin that forgets it is named instead of failing somewhere else."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from specrunner.engines.base import Capture, Engine
from specrunner.errors import EngineError

_METHODS: dict[str, tuple[type[Any], str]] = {
    "load": (dict, "a dict, the session's facts"),
    "capture": (Capture, "a specrunner.Capture"),
    "capture_led": (Capture, "a specrunner.Capture"),
}


def hold_to_contract(engine: Engine) -> Engine:
    """Return the engine, with an EngineError wherever `load`, `capture` or `capture_led` returns something else."""
    for method, (kind, words) in _METHODS.items():
        setattr(engine, method, _check_returns(engine, method, kind, words))
    return engine


def _check_returns(engine: Engine, method: str, kind: type[Any], words: str) -> Callable[..., Any]:
    call = getattr(engine, method)

    @functools.wraps(call)
    def checked(*args: Any, **kwargs: Any) -> Any:
        found = call(*args, **kwargs)
        if isinstance(found, kind):
            return found
        place = f"{type(engine).__module__}:{type(engine).__qualname__}"
        what = "None" if found is None else f"a value of the type {type(found).__name__}"
        raise EngineError(
            f"engine `{engine.session.engine}` ({place}) returned {what} from `{method}`",
            help=f"`{method}` must return {words}: see specrunner.Engine.{method}, and docs/plugin-engine.md",
        )

    return checked
