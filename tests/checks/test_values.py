"""Evidence is not changed once it is found: every record of the checks is frozen."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil

import specrunner.checks


def test_every_record_of_the_checks_is_frozen() -> None:
    modules = [
        importlib.import_module(f"specrunner.checks.{one.name}")
        for one in pkgutil.iter_modules(specrunner.checks.__path__)
    ]
    records = {
        value
        for module in modules
        for value in vars(module).values()
        if dataclasses.is_dataclass(value) and value.__module__ == module.__name__
    }
    assert len(records) > 15
    loose = [record.__name__ for record in records if not record.__dataclass_params__.frozen]
    dicts = [record.__name__ for record in records if "__slots__" not in vars(record)]
    assert (loose, dicts) == ([], [])
