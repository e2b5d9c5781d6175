"""The process that builds a recipe, when the run is interrupted or killed: it ends with it, and nothing half counts."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import Command
from tests.faults.keeping import wait_until_alone
from tests.waiting import press, wait_for
from tests.workplace import Workplace, find_processes

pytestmark = pytest.mark.slow

CUSTOM = """\
import sys
if any("specrunner" in word for word in sys.orig_argv):
    from specrunner.catalogue import recipes
    recipes.RECIPES = {"slow": recipes.Recipe("slow", None, "never done", builder="slow_builder:build")}
"""
"""A `sitecustomize` that adds a recipe, in the run and in what builds it."""

BUILDER = """\
import ctypes, os, pathlib
def build(folder):
    (folder / "config.json").write_text("{}")
    pathlib.Path(os.environ["BUILDING"]).touch()
    ctypes.PyDLL(None).sleep(600)
"""
"""Never done, and no thread of the builder can run."""


@pytest.fixture
def building(workplace: Workplace, tmp_path: Path) -> Iterator[Command]:
    """A run whose recipe is being built."""
    custom = tmp_path / "custom"
    custom.mkdir()
    (custom / "sitecustomize.py").write_text(CUSTOM)
    (custom / "slow_builder.py").write_text(BUILDER)
    workplace.environment["PYTHONPATH"] += f"{os.pathsep}{custom}"
    workplace.environment["BUILDING"] = str(tmp_path / "building")
    workplace.write_spec({"one": "a"})
    spec = workplace.folder / "spec.yaml"
    spec.write_text(spec.read_text().replace("{path: model}", "{recipe: slow}"))
    process = workplace.start("spec.yaml")
    wait_for(lambda: (tmp_path / "building").exists() or process.poll() is not None, "the recipe is being built")
    assert process.poll() is None, process.communicate()
    commands = [Path(f"/proc/{pid}/cmdline").read_text() for pid in find_processes(str(tmp_path))]
    assert any("sessions.builder" in command for command in commands)
    yield process
    models = Path(workplace.environment["SPECRUNNER_CACHE"]) / "models"
    assert list(models.glob("slow-*/config.json")) == [], "a half-built recipe counts"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_build(workplace: Workplace, building: Command, number: int) -> None:
    if number == signal.SIGINT:
        press(building.pid)
    else:
        os.kill(building.pid, number)
    outcome = workplace.finish(building)
    assert outcome.code == 2
    assert outcome.verdicts() == {"one": "error"}
    assert find_processes(workplace.environment["SPECRUNNER_TEST"]) == []


def test_a_build_ends_with_its_run(workplace: Workplace, building: Command) -> None:
    building.kill()
    building.communicate()
    wait_until_alone(workplace)
