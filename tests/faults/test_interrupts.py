"""Ctrl-C and SIGTERM at every stage: exit status 2, whole reports that name every case, and no process left."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.commands import Command
from tests.waiting import wait_for
from tests.workplace import Workplace, count_junit, find_processes, hanging_workers

PAUSE = """\
import importlib, os, sys, time
module, _, name = os.environ.get("FAULT_PAUSE", ":").partition(":")
if module and any("specrunner" in word for word in sys.orig_argv) and "sessions.worker" not in " ".join(sys.orig_argv):
    import importlib.abc, importlib.machinery
    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, full, path=None, target=None):
            if full != module:
                return None
            found = importlib.machinery.PathFinder.find_spec(full, path)
            load = found.loader.exec_module
            def exec_module(made):
                load(made)
                owner, _, last = name.rpartition(".")
                place = getattr(made, owner) if owner else made
                real = getattr(place, last)
                def slow(*arguments, **named):
                    if not os.path.exists(os.environ["FAULT_HERE"]):
                        os.close(os.open(os.environ["FAULT_HERE"], os.O_CREAT | os.O_WRONLY))
                        until = time.monotonic() + 600
                        while time.monotonic() < until and not os.path.exists(os.environ["FAULT_HERE"] + ".go"):
                            time.sleep(0.05)
                    return real(*arguments, **named)
                setattr(place, last, slow)
            found.loader.exec_module = exec_module
            return found
    sys.meta_path.insert(0, Finder())
"""
"""A `sitecustomize` that holds the command up in one function, so that a signal can come just there."""

STAGES = {
    "planning": "specrunner.plan.build:make_plan",
    "stamping": "specrunner.cache.stamps:stamp_session",
    "judging": "specrunner.judging:settle_verdict",
    "writing": "specrunner.files:write_atomically",
}


def hold_up(place: Workplace, stage: str) -> Path:
    """Let the command wait at a stage; the returned file appears when it does."""
    here = place.folder / "here"
    custom = place.folder / "custom"
    custom.mkdir()
    (custom / "sitecustomize.py").write_text(PAUSE)
    path = f"{custom}{os.pathsep}{place.environment['PYTHONPATH']}"
    place.environment.update(FAULT_PAUSE=STAGES[stage], FAULT_HERE=str(here), PYTHONPATH=path)
    return here


def interrupt(place: Workplace, process: Command, number: int, here: Path, *, goes_on: bool) -> None:
    """Send a signal when the stage is reached; let the command go on, unless the signal alone must end its wait."""
    wait_for(here.exists, "the stage is reached")
    os.kill(process.pid, number)
    if goes_on:
        Path(f"{here}.go").touch()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_there_is_a_plan(workplace: Workplace, number: int) -> None:
    workplace.write_spec({"one": "a"})
    here = hold_up(workplace, "planning")
    process = workplace.start("spec.yaml")
    interrupt(workplace, process, number, here, goes_on=False)
    _, stderr = process.communicate(timeout=240)
    assert (process.returncode, stderr.strip()) == (2, "interrupted")
    assert not (workplace.folder / "r.json").exists(), "there is nothing to report yet"


@pytest.mark.parametrize(
    ("stage", "number", "verdict"),
    [
        ("stamping", signal.SIGINT, "error"),
        ("judging", signal.SIGTERM, "passed"),
        pytest.param("stamping", signal.SIGTERM, "error", marks=pytest.mark.endurance),
        pytest.param("judging", signal.SIGINT, "passed", marks=pytest.mark.endurance),
        ("writing", signal.SIGINT, "passed"),
        pytest.param("writing", signal.SIGTERM, "passed", marks=pytest.mark.endurance),
    ],
)
def test_a_signal_in_the_command_itself(workplace: Workplace, stage: str, number: int, verdict: str) -> None:
    workplace.write_spec({"one": "a"})
    here = hold_up(workplace, stage)
    process = workplace.start("spec.yaml")
    interrupt(workplace, process, number, here, goes_on=stage != "stamping")
    outcome = workplace.finish(process)
    assert outcome.verdicts() == {"one": verdict}
    assert count_junit(outcome.junit) == (1, 0, int(verdict == "error"), 0)
    if stage == "writing":
        assert outcome.code in (0, 2), "the verdicts were there already"
        return
    assert outcome.code == 2
    if verdict == "error":
        assert "not run: interrupted" in str(outcome.report["cases"])


@pytest.mark.parametrize(
    ("stage", "number"), [("loading", signal.SIGINT), ("loading", signal.SIGTERM), ("capturing", signal.SIGTERM)]
)
def test_a_signal_while_engines_work(workplace: Workplace, stage: str, number: int) -> None:
    if stage == "loading":
        workplace.write_spec({"first": "a", "last": "b"}, options="{on_load: child hang}")
    else:
        workplace.write_spec({"first": "child hang", "last": "b"})
    process = workplace.start("spec.yaml")
    wait_for(lambda: len(hanging_workers(workplace)) >= 1, "an engine is stuck")
    os.kill(process.pid, number)
    outcome = workplace.finish(process)
    assert outcome.code == 2
    assert outcome.verdicts() == {"first": "error", "last": "error"}
    assert count_junit(outcome.junit) == (2, 0, 2, 0)
    assert "not run: interrupted" in str(outcome.report["cases"])
    assert "interrupted: 0 of 2 cases have a verdict" in outcome.stdout
    assert find_processes(workplace.environment["SPECRUNNER_TEST"]) == []
