"""How faults get into live engines: a module an engine, each with `PLANTERS`, context managers by the fault's name."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from specrunner.errors import FaultInapplicable

if TYPE_CHECKING:
    from specrunner.engines.base import Engine


@contextmanager
def plant(engine: Engine, name: str | None) -> Iterator[None]:
    """Plant a fault in a loaded engine, and take it out again.

    Args:
        engine: a loaded engine, in its own process.
        name: a fault of the registry; None plants nothing.

    Raises:
        FaultInapplicable: there is no such fault for this engine, or its model has no such part.
    """
    if name is None:
        yield
        return
    module = f"specrunner.engines.planters.{engine.name}"
    try:
        planters = importlib.import_module(module).PLANTERS
    except ModuleNotFoundError as error:
        if error.name != module:  # it is there, and lacks another
            raise
        raise FaultInapplicable(f"no fault can be planted in {engine.name}") from error
    if name not in planters:
        raise FaultInapplicable(f"the fault {name} cannot be planted in {engine.name}")
    with planters[name](engine):
        yield
