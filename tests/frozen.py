"""What every package promises of its values."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Iterator
from functools import cached_property
from types import ModuleType


def list_classes(place: ModuleType) -> Iterator[type]:
    """Yield the classes that a module, or the modules of a package, define."""
    below = [f"{place.__name__}.{found.name}" for found in pkgutil.iter_modules(getattr(place, "__path__", ()))]
    for name in below or [place.__name__]:
        for value in vars(importlib.import_module(name)).values():
            if isinstance(value, type) and value.__module__ == name:
                yield value


def check_frozen(place: ModuleType, mutable: set[str], caching: frozenset[str] = frozenset()) -> None:
    """Assert that classes with fields are dataclasses, frozen but for `mutable`, and slotted but for `caching`.

    What `caching` names has a `cached_property`, which slots leave no room for.
    """
    classes = list(list_classes(place))
    found = [kind for kind in classes if dataclasses.is_dataclass(kind)]
    assert found
    assert [kind.__name__ for kind in classes if "__annotations__" in vars(kind) and kind not in found] == []
    assert {kind.__name__ for kind in found if "__slots__" not in vars(kind)} == caching
    without = [kind for kind in found if kind.__name__ in caching]
    assert all(any(isinstance(value, cached_property) for value in vars(kind).values()) for kind in without)
    thawed = {kind.__name__ for kind in found if not kind.__dataclass_params__.frozen}  # type: ignore[attr-defined]
    assert thawed == mutable
