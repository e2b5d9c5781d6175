"""A clock that jumps: no verdict and no timeout depends on what time it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.workplace import Workplace

JUMP = """\
import time
real, real_ns, begun = time.time, time.time_ns, time.monotonic()
def shift():
    return (0, 1, -1)[int((time.monotonic() - begun) * 2) % 3] * 400 * 24 * 3600
time.time = lambda: real() + shift()
time.time_ns = lambda: real_ns() + shift() * 10**9
"""
"""A `sitecustomize` under which the clock is now, 400 days ahead and 400 days behind, for half a second each."""


@pytest.mark.slow
def test_the_clock_jumps_by_400_days_twice_a_second(workplace: Workplace, tmp_path: Path) -> None:
    custom = tmp_path / "custom"
    custom.mkdir()
    (custom / "sitecustomize.py").write_text(JUMP)
    workplace.environment["PYTHONPATH"] += os.pathsep + str(custom)
    workplace.write_spec({"good": "slow 1 a", "bad": "wrong", "stuck": "hang"})
    outcome = workplace.run("spec.yaml", "--timeout", "5", "-j", "2")
    assert outcome.code == 1
    assert outcome.verdicts() == {"good": "passed", "bad": "failed", "stuck": "error"}
    assert "longer than 5 s" in outcome.stdout
    assert 0 < outcome.report["cases"][0]["seconds"] < 200
    workplace.write_spec({"good": "slow 1 a", "bad": "wrong"})
    again = workplace.run("spec.yaml", "--timeout", "5", "-j", "2")
    assert [case["kept"] for case in again.report["cases"]] == ["verdict", "captures"], again.report["sessions"]
    assert again.verdicts() == {"good": "passed", "bad": "failed"}
