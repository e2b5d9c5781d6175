"""What an engine's libraries see in a process that was forked."""

from __future__ import annotations

import multiprocessing
import sys
from types import ModuleType

import pytest

from specrunner.engines.forking import FORKED_VARIABLE, fork_children, renew_import_state

DYNAMIC = "transformers.dynamic_module_utils"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"HF_MODULES_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HF_HOME": "/b"}, "/b/modules"),
        ({}, "/import"),
    ],
)
def test_code_of_a_checkpoint_is_copied_where_the_session_says(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    module = ModuleType(DYNAMIC)
    monkeypatch.setattr(module, "HF_MODULES_CACHE", "/import", raising=False)
    monkeypatch.setitem(sys.modules, DYNAMIC, module)
    for name in ("HF_MODULES_CACHE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    renew_import_state()
    assert module.__dict__["HF_MODULES_CACHE"] == expected


def test_what_was_not_imported_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, DYNAMIC, raising=False)
    renew_import_state()
    assert DYNAMIC not in sys.modules


@pytest.mark.parametrize("forked", [True, False])
def test_an_engine_that_asks_for_spawned_processes_gets_forked_ones(
    monkeypatch: pytest.MonkeyPatch, forked: bool
) -> None:
    before = multiprocessing.get_start_method(allow_none=True)
    if forked:
        monkeypatch.setenv(FORKED_VARIABLE, "1")
    try:
        with fork_children():
            multiprocessing.set_start_method("spawn", force=True)
            assert multiprocessing.get_start_method() == ("fork" if forked else "spawn")
        if forked:
            assert multiprocessing.get_start_method(allow_none=True) == before
    finally:
        multiprocessing.set_start_method(before, force=True)
