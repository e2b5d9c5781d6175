"""Cases that are asked several times, with real workers: who wavers is told, however often it happens to be right."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.workplace import Outcome, Workplace, count_junit, find_processes, make_workplace

SCHEMA = json.loads((Path(__file__).parents[1] / "schema" / "report.schema.json").read_text())
LOOSE = "tolerance: {logits: {allclose: {rtol: 0, atol: 1.0e-3}}}"


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Workplace]:
    """A workplace; no process of it outlives the test."""
    place = make_workplace(tmp_path)
    yield place
    assert find_processes(str(tmp_path)) == [], "a process was left behind"


def case_of(outcome: Outcome, name: str) -> dict[str, Any]:
    (case,) = (case for case in outcome.report["cases"] if case["name"] == name)
    return dict(case)


def bitwise_of(case: dict[str, Any]) -> dict[str, Any]:
    (check,) = (check for check in case["checks"] if check["rule"] == "bitwise")
    assert (check["gates"], check["repeat"]) == (False, 0)
    return dict(check["measurements"])


def test_steady_unsteady_wavering_and_wrong(workplace: Workplace) -> None:
    cases = {
        "steady": "a",
        "unsteady": "unsteady",
        "flaky": "alternating",
        "wrong": "wrong",
        "once": "alternating once",
    }
    fields = dict.fromkeys(cases, f"repeat: 3, {LOOSE}") | {"once": LOOSE}
    workplace.write_spec(cases, fields=fields)
    outcome = workplace.run("spec.yaml", "--html", "r.html")
    told = {"steady": "passed", "unsteady": "passed", "flaky": "failed", "wrong": "failed"}
    assert (outcome.code, outcome.verdicts()) == (1, told | {"once": "passed"})

    found = {name: bitwise_of(case_of(outcome, name)) for name in told}
    assert {name: (numbers["failed"], numbers["bitwise_equal"]) for name, numbers in found.items()} == {
        "steady": ([], True),
        "unsteady": ([], False),
        "flaky": ([2], False),
        "wrong": ([1, 2, 3], True),
    }
    assert found["flaky"]["unequal"] == [{"repeat": 2, "first": "logits", "differences": 1}]
    assert case_of(outcome, "once")["checks"][-1]["rule"] != "bitwise", "there is nothing to compare one answer with"

    flaky = case_of(outcome, "flaky")
    assert flaky["message"].startswith("flaky: 1 of 3 repeats failed (repeat 2): logits: ")
    judged = [(check["repeat"], check["passed"]) for check in flaky["checks"] if check["subject"] == "logits"]
    assert judged == [(1, True), (2, False), (3, True)], "every answer goes through every check"
    assert case_of(outcome, "wrong")["message"].startswith("all 3 repeats failed: logits: ")
    assert flaky["diagnosis"]["tensor"] == "logits"

    assert count_junit(outcome.junit) == (5, 2, 0, 0)
    root = ElementTree.parse(outcome.junit).getroot()
    (failure,) = root.findall(".//testcase[@name='flaky[engine=misbehaving]']/failure")
    assert "flaky: 1 of 3 repeats failed (repeat 2)" in failure.get("message", "")
    assert "repeat 2 of 3" in (failure.text or "")
    assert "flaky: 1 of 3 repeats failed (repeat 2)" in outcome.stdout
    assert "logits is the first that went wrong  (allclose, spec.yaml:11, repeat 2 of 3)" in outcome.stdout
    shown = workplace.command("show", "unsteady").stdout
    assert "repeats 1, 3" in shown and "repeat 2 differs from repeat 1, first at logits" in shown


def test_a_known_wavering_is_mended_when_every_repeat_passes(workplace: Workplace) -> None:
    expected = "repeat: 2, xfail: {reason: it alternates}"
    workplace.write_spec({"flaky": "alternating", "steady": "a"}, fields={"flaky": expected, "steady": expected})
    outcome = workplace.run("spec.yaml")
    assert (outcome.code, outcome.verdicts()) == (1, {"flaky": "xfailed", "steady": "xpassed"})


def test_a_repeat_that_dies_is_no_evidence_and_the_others_are_recorded(workplace: Workplace) -> None:
    workplace.write_spec({"fatal": "fatal once", "last": "b"}, fields={"fatal": "repeat: 3"})
    outcome = workplace.run("spec.yaml")
    assert (outcome.code, outcome.verdicts()) == (10, {"fatal": "error", "last": "passed"})
    fatal = case_of(outcome, "fatal")
    assert fatal["failure"]["role"] == "candidate#2"
    assert fatal["message"].startswith("candidate#2: ")
    assert {check["repeat"] for check in fatal["checks"]} == {1, 3, 0}
    assert bitwise_of(fatal)["repeats"] == [1, 3]
    jsonschema.Draft202012Validator(SCHEMA).validate(outcome.report)
    assert count_junit(outcome.junit) == (2, 0, 1, 0)


def test_the_plan_counts_every_repeat(workplace: Workplace) -> None:
    workplace.write_spec({"one": "a", "two": "a"}, fields={"two": "repeat: 4"})
    assert (
        "2 cases on 2 sessions, 5 distinct requests of 7 asked for"
        in workplace.command("run", "--plan", "spec.yaml").stdout
    )
