"""What engines do by themselves: hang, ask for too much memory, crash, and print without end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from specrunner.sessions.logs import LOG_LIMIT
from tests.waiting import wait_for
from tests.workplace import Workplace, count_junit, hanging_workers


@pytest.mark.slow
def test_each_accident_costs_its_own_case(workplace: Workplace) -> None:
    accidents = {"first": "a", "memory": "memory", "greedy": "greedy", "segfault": "segfault", "last": "b"}
    workplace.write_spec(accidents)
    outcome = workplace.run("spec.yaml")
    assert outcome.code == 10
    expected = dict.fromkeys(accidents, "error") | {"first": "passed", "last": "passed"}
    assert outcome.verdicts() == expected
    failures = {case["name"]: case["failure"] for case in outcome.report["cases"] if case["failure"]}
    assert failures["memory"]["kind"] == failures["greedy"]["kind"] == "out-of-memory"
    assert "Unable to allocate 4.00 GiB" in failures["greedy"]["message"]
    assert "was killed by SIGSEGV" in failures["segfault"]["message"]
    assert count_junit(outcome.junit) == (5, 0, 3, 0)


@pytest.mark.slow
def test_a_hang_that_holds_the_interpreter_ends_by_its_timeout(workplace: Workplace) -> None:
    workplace.write_spec({"stuck": "child stubborn hang", "last": "b"})
    outcome = workplace.run("spec.yaml", "--timeout", "2")
    assert outcome.code == 10
    assert outcome.verdicts() == {"stuck": "error", "last": "passed"}
    assert "longer than 2 s" in outcome.stdout


@pytest.mark.parametrize(
    "megabytes", [pytest.param(100, marks=pytest.mark.slow), pytest.param(1000, marks=pytest.mark.endurance)]
)
def test_a_flood_on_stdout_is_cut(workplace: Workplace, megabytes: int) -> None:
    workplace.write_spec({"loud": f"flood {megabytes}", "stuck": "hang here, not in the reference"})
    process = workplace.start("spec.yaml", "-j", "1")

    def is_cut() -> bool:
        logs = (Path(f"/proc/{pid}/fd/1").resolve() for pid in hanging_workers(workplace))
        return any(log.stat().st_size < LOG_LIMIT and b"of log were deleted" in log.read_bytes() for log in logs)

    wait_for(is_cut, "the log is cut")
    memory = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert memory < 1 << 30, "the log was read into memory"
    outcome = workplace.finish_without_hanging(process)
    assert outcome.verdicts() == {"loud": "passed", "stuck": "error"}
    assert outcome.code == 10
