"""A run that is killed: its workers and their children go with it, and the next run finds its captures."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from specrunner.sessions.serving import LONGEST_FOLDER
from tests.faults.keeping import check_cache, wait_until_alone
from tests.waiting import wait_for
from tests.workplace import Workplace, hanging_workers


@pytest.mark.slow
@pytest.mark.parametrize("stuck", ["child stubborn hang"])
def test_no_process_outlives_the_run(workplace: Workplace, stuck: str) -> None:
    # A capture is written while the next is made, unless that one holds the interpreter: so there are two before it.
    workplace.write_spec({"first": "slow 0 a", "second": "slow 0 b", "stuck": stuck})
    process = workplace.start("spec.yaml", "-j", "2")
    cache = Path(workplace.environment["SPECRUNNER_CACHE"])
    wait_for(lambda: len(hanging_workers(workplace)) >= 1, "an engine is stuck")
    wait_for(lambda: check_cache(cache) >= 1, "what was answered before is kept")
    process.kill()
    process.communicate()
    wait_until_alone(workplace)
    temporary = Path(workplace.environment["TMPDIR"])
    left = list(temporary.glob("specrunner-*/owner.lock"))
    assert len(left) == 1, "the killed run could not clean up"
    assert check_cache(cache) >= 1
    workplace.write_spec({"first": "slow 0 a"})
    outcome = workplace.run("spec.yaml", "-j", "2")
    assert outcome.code == 0, outcome.stdout
    assert sum(session["kept"] for session in outcome.report["sessions"]) >= 1, "what the killed run had is used"
    assert list(temporary.iterdir()) == []


@pytest.mark.slow
def test_workspaces_of_a_killed_run_with_a_long_folder_are_removed(workplace: Workplace, tmp_path: Path) -> None:
    """Sockets of engines need short paths, so that their workspaces lie elsewhere than the run's directory."""
    long = tmp_path / ("t" * LONGEST_FOLDER)
    long.mkdir()
    workplace.environment["TMPDIR"] = str(long)
    workplace.write_spec({"stuck": "hang"})
    process = workplace.start("spec.yaml", "-j", "1")
    wait_for(lambda: len(hanging_workers(workplace)) >= 1, "an engine is stuck")
    [worker] = hanging_workers(workplace)
    workspace = Path(f"/proc/{worker}/cwd").resolve()
    assert not workspace.is_relative_to(long) and len(str(workspace)) <= LONGEST_FOLDER
    process.kill()
    process.communicate()
    wait_until_alone(workplace)
    assert workspace.is_dir(), "the killed run could not clean up"
    workplace.write_spec({"other": "a"})
    assert workplace.run("spec.yaml", "-j", "1").code == 0
    assert not workspace.parent.exists() and list(long.iterdir()) == []


def test_worker_and_run_killed_at_once(workplace: Workplace) -> None:
    workplace.write_spec({"stuck": "child hang"})
    process = workplace.start("spec.yaml", "-j", "2")
    wait_for(lambda: len(hanging_workers(workplace)) >= 2, "both engines are stuck")
    victims = hanging_workers(workplace)
    os.kill(process.pid, signal.SIGKILL)
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    wait_until_alone(workplace)
