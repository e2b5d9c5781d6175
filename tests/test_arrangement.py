"""What a run settles before it starts: how the threads of its own process wait."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from specrunner.events import Event, RunStarted
from specrunner.plan.model import Plan
from specrunner.runner import Run, RunOptions


class Watcher:
    """A reporter that notes how threads are to wait when the run starts."""

    def __init__(self) -> None:
        self.noted: list[str | None] = []

    def handle(self, event: Event) -> None:
        """Note it."""
        if isinstance(event, RunStarted):
            self.noted.append(os.environ.get("OMP_WAIT_POLICY"))


@pytest.mark.parametrize(("stated", "expected"), [(None, "passive"), ("active", "active")])
def test_a_run_lets_its_own_threads_sleep_unless_the_caller_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, stated: str | None, expected: str
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if stated:
        monkeypatch.setenv("OMP_WAIT_POLICY", stated)
    watcher = Watcher()
    Run(Plan(cases=(), sessions=()), {}, [watcher], RunOptions()).execute()
    assert watcher.noted == [expected]


def test_openmp_heeds_it_in_a_process_that_loads_it_afterwards() -> None:
    torch = find_spec("torch")
    assert torch is not None and torch.origin is not None
    libraries = sorted(Path(torch.origin).parents[1].glob("torch*/**/libgomp*.so*"))
    if not libraries:
        pytest.skip("this torch brings no libgomp")
    code = (
        "import ctypes, sys\n"
        "from specrunner.arrangement import let_threads_sleep\n"
        "let_threads_sleep()\n"
        "ctypes.CDLL(sys.argv[1])"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", code, str(libraries[0])],
        env=environment | {"OMP_DISPLAY_ENV": "true"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in done.stderr
