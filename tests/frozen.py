"""What every package promises of its values."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType


def list_dataclasses(package: ModuleType) -> Iterator[type]:
    """Yield the dataclasses that the modules of a package define."""
    for found in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{found.name}")
        for value in vars(module).values():
            if isinstance(value, type) and dataclasses.is_dataclass(value) and value.__module__ == module.__name__:
                yield value


def check_frozen(package: ModuleType, mutable: set[str]) -> None:
    """Assert that the dataclasses of a package are slotted, and frozen but for those that are named."""
    found = list(list_dataclasses(package))
    assert found
    assert [kind.__name__ for kind in found if "__slots__" not in vars(kind)] == []
    thawed = {kind.__name__ for kind in found if not kind.__dataclass_params__.frozen}  # type: ignore[attr-defined]
    assert thawed == mutable
