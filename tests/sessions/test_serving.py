"""What a session's process is started with."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from specrunner.environments.interpreters import Environment
from specrunner.sessions.serving import join_variables

STANDINS = {"PYTHONPATH": "/standins", "ONE": "engine", "TWO": "engine"}


def environment(source: Any, **env: str) -> Environment:
    return Environment("sglang-cpu", Path("python"), MappingProxyType(env), "d1", MappingProxyType({}), source)


@pytest.mark.parametrize("source", ["configured", "own"])
def test_an_engine_keeps_what_it_needs_behind_the_path_that_is_stated(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/callers")
    joined = join_variables(STANDINS, environment(source, PYTHONPATH="/sources", TWO="stated"))
    assert joined == {"PYTHONPATH": "/sources:/standins", "ONE": "engine", "TWO": "stated"}


def test_the_callers_path_is_for_its_own_interpreter_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/callers")
    assert join_variables(STANDINS, environment("own"))["PYTHONPATH"] == "/callers:/standins"
    assert join_variables(STANDINS, environment("installed"))["PYTHONPATH"] == "/standins"
    monkeypatch.delenv("PYTHONPATH")
    assert join_variables(STANDINS, environment("own"))["PYTHONPATH"] == "/standins"
