"""`specrunner run` as a user starts it: verdicts, exit codes and whole reports, whatever the engines do."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import press, wait_for
from tests.workplace import Workplace, count_junit, find_processes, hanging_workers, make_workplace


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Workplace]:
    """A workplace; no process of it outlives the test."""
    place = make_workplace(tmp_path)
    yield place
    assert find_processes(str(tmp_path)) == [], "a process was left behind"


def test_all_passed_exits_0(workplace: Workplace) -> None:
    workplace.write_spec({"one": "a", "two": "b"})
    outcome = workplace.run("spec.yaml")
    assert outcome.code == 0, outcome.stderr
    assert outcome.verdicts() == {"one": "passed", "two": "passed"}
    assert count_junit(outcome.junit) == (2, 0, 0, 0)


def test_a_failure_exits_1_and_closes_with_a_command_to_paste(workplace: Workplace) -> None:
    workplace.write_spec({"good": "a", "bad": "wrong"})
    outcome = workplace.run("spec.yaml")
    assert outcome.code == 1
    assert outcome.verdicts() == {"good": "passed", "bad": "failed"}
    assert "specrunner run 'spec.yaml::bad[engine=misbehaving]'" in outcome.stdout
    assert count_junit(outcome.junit) == (2, 1, 0, 0)


@pytest.mark.parametrize("accident", ["kill", "exit"])
def test_a_worker_that_dies_costs_its_open_case_alone(workplace: Workplace, accident: str) -> None:
    workplace.write_spec({"first": "a", "fatal": accident, "last": "b"})
    outcome = workplace.run("spec.yaml")
    assert outcome.code == 10
    assert outcome.verdicts() == {"first": "passed", "fatal": "error", "last": "passed"}
    assert count_junit(outcome.junit) == (3, 0, 1, 0)


def test_kill_9_from_outside_in_the_middle(workplace: Workplace) -> None:
    workplace.write_spec({"first": "a", "stuck": "hang", "last": "b"})
    workplace.write_spec({"other": "c"}, options="{other: 1}", name="other.yaml")
    process = workplace.start("spec.yaml", "other.yaml", "-j", "2")
    wait_for(lambda: len(hanging_workers(workplace)) >= 2, "both engines are stuck")
    for pid in (first := hanging_workers(workplace)):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: len(set(hanging_workers(workplace)) - set(first)) >= 2, "both are asked once more")
    for pid in hanging_workers(workplace):
        os.kill(pid, signal.SIGKILL)
    outcome = workplace.finish(process)
    assert outcome.code == 10
    verdicts = outcome.verdicts()
    assert verdicts == {"first": "passed", "stuck": "error", "last": "passed", "other": "passed"}
    assert "killed by SIGKILL" in outcome.stdout
    assert count_junit(outcome.junit) == (4, 0, 1, 0)


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_leaves_whole_reports_and_no_process(workplace: Workplace, presses: int) -> None:
    workplace.write_spec({"first": "a", "stuck": "child hang", "last": "b"})
    process = workplace.start("spec.yaml")
    wait_for(lambda: len(hanging_workers(workplace)) >= 2, "both engines are stuck")
    for _ in range(presses):
        press(process.pid)
    if presses == 1:
        assert len(hanging_workers(workplace)) == 2, "what has begun is not cut short"
        outcome = workplace.finish_without_hanging(process)
    else:
        outcome = workplace.finish(process)
    assert outcome.code == 2
    verdicts = outcome.verdicts()
    assert verdicts["first"] == "passed"
    assert verdicts["stuck"] == verdicts["last"] == "error"
    assert count_junit(outcome.junit) == (3, 0, 2, 0)


@pytest.mark.slow
def test_a_timeout_ends_the_request_and_the_rest_goes_on(workplace: Workplace) -> None:
    workplace.write_spec({"stuck": "child hang", "last": "b"})
    outcome = workplace.run("spec.yaml", "--timeout", "2")
    assert outcome.code == 10
    assert outcome.verdicts() == {"stuck": "error", "last": "passed"}
    assert "longer than 2 s" in outcome.stdout


def test_a_load_that_fails_is_one_error_a_case_with_the_engine_s_last_words(workplace: Workplace) -> None:
    workplace.write_spec({"one": "a", "two": "b"}, options="{on_load: unavailable}")
    outcome = workplace.run("spec.yaml")
    assert outcome.code == 10
    assert outcome.verdicts() == {"one": "error", "two": "error"}
    assert "no model here" in outcome.stdout and "bring one" in outcome.stdout


def test_rubbish_on_stdout_and_hostile_text_break_nothing(workplace: Workplace) -> None:
    workplace.write_spec({"noise": "rubbish", "bad": "wrong]]>\x1b[31m\u0085</testcase>"})
    outcome = workplace.run("spec.yaml")
    assert outcome.code == 1
    assert outcome.verdicts() == {"noise": "passed", "bad": "failed"}
    assert "\x1b" not in outcome.stdout
    assert count_junit(outcome.junit) == (2, 1, 0, 0)


def test_a_missing_tensor_is_no_evidence(workplace: Workplace) -> None:
    workplace.write_spec({"empty": "nothing"})
    outcome = workplace.run("spec.yaml")
    assert outcome.code == 10
    assert outcome.verdicts() == {"empty": "error"}


def test_a_selection_of_nothing_exits_5(workplace: Workplace) -> None:
    workplace.write_spec({"one": "a"})
    process = workplace.start("spec.yaml", "-k", "no_such_case")
    process.communicate(timeout=240)
    assert process.returncode == 5


def test_a_part_without_a_case_leaves_whole_reports(workplace: Workplace) -> None:
    """A CI that collects the reports of all parts must find them."""
    workplace.write_spec({"one": "a"})
    told = {}
    for part in ("1/2", "2/2"):
        outcome = workplace.run("spec.yaml", "--shard", part)
        assert (outcome.code, outcome.report["run"]["exit_code"]) == (0, 0)
        told[len(outcome.report["cases"])] = count_junit(outcome.junit)
    assert told == {0: (0, 0, 0, 0), 1: (1, 0, 0, 0)}


def test_a_run_without_a_case_leaves_the_last_run_s_evidence(workplace: Workplace) -> None:
    workplace.write_spec({"one": "a"})
    workplace.run("spec.yaml")
    outcome = workplace.run("spec.yaml", "--failed")
    assert (outcome.code, outcome.report["cases"]) == (5, [])
    assert "one[engine=misbehaving]" in workplace.command("show").stdout


def test_an_invalid_spec_exits_4_with_file_and_line(workplace: Workplace) -> None:
    (workplace.folder / "spec.yaml").write_text("version: 1\ncaes: []\n")
    process = workplace.start("spec.yaml")
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 4
    assert "spec.yaml:2:1" in stderr


def test_max_fail_stops_and_accounts_for_every_case(workplace: Workplace) -> None:
    workplace.write_spec({"bad": "wrong", **{f"later-{index}": f"hang {index}" for index in range(3)}})
    outcome = workplace.finish_without_hanging(workplace.start("spec.yaml", "-x"))
    assert outcome.code == 1
    assert outcome.verdicts()["bad"] == "failed"
    assert set(list(outcome.verdicts().values())[1:]) == {"error"}


def test_a_known_difference_that_is_gone_counts_as_a_failure(workplace: Workplace) -> None:
    cases = {"mended": "a", **{f"later-{index}": f"slow 1 {index}" for index in range(4)}}
    workplace.write_spec(cases, fields={"mended": "xfail: {reason: it rounds twice}"})
    outcome = workplace.run("spec.yaml", "-x")
    assert (outcome.code, outcome.verdicts()["mended"], outcome.verdicts()["later-3"]) == (1, "xpassed", "error")
    assert outcome.report["cases"][-1]["failure"]["kind"] == "not-run"


def test_skips_that_are_errors_stop_before_an_engine_starts(workplace: Workplace) -> None:
    workplace.write_spec({"lacks": "a", "stuck": "b"}, fields={"lacks": "requires: {packages: [no_such_package]}"})
    outcome = workplace.run("spec.yaml", "--strict", "-x")
    assert (outcome.code, outcome.verdicts()) == (10, {"lacks": "error", "stuck": "error"})
    assert outcome.report["sessions"] == []


BREAKING = """
import specrunner.judging as judging
check = judging.check_captures
def break_one(case, *others):
    assert case.name != "broken", "no way"
    return check(case, *others)
judging.check_captures = break_one
"""


def test_a_bug_of_our_own_costs_its_case_and_no_other(workplace: Workplace) -> None:
    plugin = Path(workplace.environment["PYTHONPATH"]) / "misbehaving.py"
    plugin.write_text(plugin.read_text() + BREAKING)
    workplace.write_spec({"first": "a", "broken": "b", "bad": "wrong", "last": "c"})
    outcome = workplace.run("spec.yaml")
    assert outcome.code == 3
    assert outcome.verdicts() == {"first": "passed", "broken": "error", "bad": "failed", "last": "passed"}
    failure = next(case["failure"] for case in outcome.report["cases"] if case["name"] == "broken")
    assert failure["kind"] == "bug"
    assert failure["message"] == "the case could not be judged: AssertionError: no way"
    assert "in break_one" in failure["log_tail"]


@pytest.mark.slow
def test_failed_runs_again_what_did_not_pass(workplace: Workplace) -> None:
    workplace.write_spec({"good": "a", "bad": "wrong"})
    workplace.run("spec.yaml")
    for _ in range(2):
        outcome = workplace.run("spec.yaml", "--failed")
        assert outcome.verdicts() == {"bad": "failed"}, "a run of some cases forgets nothing of the others"
    workplace.write_spec({"good": "a", "new": "b"})
    assert workplace.run("spec.yaml", "--failed").verdicts() == {"new": "passed"}
    nothing = workplace.run("spec.yaml", "--failed")
    assert (nothing.verdicts(), nothing.code, nothing.report["run"]["exit_code"]) == ({}, 5, 5)
    assert workplace.run("spec.yaml", "--failed", "--no-cases", "pass").code == 0
    assert "new[engine=misbehaving]" in workplace.command("show").stdout


def test_plan_runs_nothing(workplace: Workplace) -> None:
    workplace.write_spec({"one": "a", "two": "a"})
    process = workplace.start("spec.yaml", "--plan")
    stdout, _ = process.communicate(timeout=240)
    assert process.returncode == 0
    assert "2 cases on 2 sessions, 2 distinct requests of 4 asked for" in stdout
    assert not (workplace.folder / "r.json").exists()


def test_a_report_that_cannot_be_written_is_said_before_anything_runs(workplace: Workplace) -> None:
    workplace.write_spec({"one": "a"})
    process = workplace.start("spec.yaml", "--junit-xml", "/proc/no/such/r.xml")
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 4
    assert "JUnit report" in stderr and "Traceback" not in stderr
