"""Specs under pytest: what is collected, what each verdict becomes, and how often an engine is loaded."""

from __future__ import annotations

import json
import re
import time
import tomllib
import xml.etree.ElementTree as ElementTree
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from specrunner import pytest_plugin
from tests.workplace import NO_CLUSTER

ROOT = Path(__file__).parents[2]
WITNESS = """
import sys
def pytest_sessionfinish(session):
    heavy = {"torch", "transformers"} & set(sys.modules)
    print("\\nHEAVY", sorted(heavy))
    if not session.config.getoption("collectonly") and not session.items:
        print("OURS", sorted(name for name in sys.modules if name.startswith("specrunner.")))
"""


def read_outcomes(path: Path) -> dict[str, tuple[str, str]]:
    """Outcome and message by case name, from pytest's own JUnit report."""
    found = {}
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        child = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        told = ("passed", "") if child is None else (child.get("type", child.tag), child.get("message", ""))
        found[case.attrib["name"].split("[")[0]] = told
    return found


@pytest.mark.slow
def test_every_verdict_has_its_outcome(place: Any) -> None:
    (place.folder / "specs").mkdir()
    place.write(
        "specs/a.yaml",
        "name: good, prompt: a",
        "name: bad, prompt: wrong",
        "name: known, prompt: wrong, xfail: {reason: it lies}",
        "name: surprise, prompt: a, xfail: {reason: it lies}",
        "name: gpu, prompt: a, requires: {packages: [no_such_package]}",
        "name: broken, prompt: raise",
        "name: flaky, prompt: alternating, repeat: 2",
    )
    (place.folder / "conftest.py").write_text(WITNESS)
    done = place.pytest("specs", "-rA", "--junit-xml", "r.xml")
    assert done.returncode == 1, done.stdout + done.stderr
    outcomes = read_outcomes(place.folder / "r.xml")
    assert outcomes["good"] == ("passed", "")
    assert outcomes["bad"][0] == "failure"
    assert outcomes["known"] == ("pytest.xfail", "it lies")
    assert outcomes["surprise"][0] == "failure"
    assert outcomes["gpu"] == (
        "pytest.skip",
        "requires the package no_such_package (pip install no_such_package)",
    )
    assert outcomes["broken"][0] == "error"
    node_id = "specs/a.yaml::bad[engine=misbehaving]"
    assert f"FAILED {node_id} - logits: " in done.stdout
    assert f"FAIL  {node_id}\n      at specs/a.yaml:9\n" in done.stdout
    assert f"again  specrunner run '{node_id}'" in done.stdout
    assert "the case passed, but the spec expects it to fail" in done.stdout
    assert "      engine-error  candidate: ValueError" in done.stdout
    assert "pytest_plugin.py" not in done.stdout.split("ERRORS")[1], "our own source is no news"
    assert "HEAVY []" in done.stdout
    assert len(place.loads.read_text().splitlines()) == 2  # candidate and reference
    report = json.loads((place.folder / ".specrunner" / "last-run.json").read_text())
    known = json.loads((place.folder / ".specrunner" / "verdicts.json").read_text())["verdicts"]
    assert known == {case["node_id"]: case["verdict"] for case in report["cases"]}
    assert report["counts"]["total"] == 7
    assert outcomes["flaky"][0] == "failure"
    assert "flaky: 1 of 2 repeats failed (repeat 2)" in outcomes["flaky"][1]


@pytest.mark.slow
def test_workers_of_xdist_share_one_load(place: Any) -> None:
    for name in "abcd":
        place.write(f"{name}.yaml", *(f"name: case-{index}, prompt: a" for index in range(4)))
    done = place.pytest(".", "-n", "2", "-v")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "16 passed" in done.stdout
    assert len(set(re.findall(r"\[gw\d\]", done.stdout))) > 1
    assert len(place.loads.read_text().splitlines()) == 2


@pytest.mark.slow
def test_the_first_failure_ends_the_engines(place: Any) -> None:
    place.write("a.yaml", "name: bad, prompt: wrong", "name: stuck, prompt: hang")
    started = time.monotonic()
    done = place.pytest("a.yaml", "-x")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed in" in done.stdout
    assert time.monotonic() - started < 300


@pytest.mark.slow
def test_strict_makes_a_skip_an_error(place: Any) -> None:
    place.write("a.yaml", "name: gpu, prompt: a, requires: {packages: [no_such_package]}")
    assert place.pytest("a.yaml").returncode == 0
    done = place.pytest("a.yaml", "--spec-strict")
    assert done.returncode == 1
    assert "ERROR a.yaml::gpu[engine=misbehaving] - requires the package no_such_package" in done.stdout


@pytest.mark.parametrize(
    "arguments, names",
    [
        (["a.yaml"], ["one[engine=misbehaving,n=1]", "one[engine=misbehaving,n=2]", "two[engine=misbehaving]"]),
        (["a.yaml::one"], ["one[engine=misbehaving,n=1]", "one[engine=misbehaving,n=2]"]),
        (["a.yaml::one[engine=misbehaving,n=2]"], ["one[engine=misbehaving,n=2]"]),
        ([".", "-k", "two or not misbehaving"], ["two[engine=misbehaving]"]),
        ([".", "-m", "extra-tag"], ["two[engine=misbehaving]"]),
        ([".", "-m", "by-tag and not extra-tag", "--spec-param", "n=1"], ["one[engine=misbehaving,n=1]"]),
        ([".", "--spec-param", "n=2"], ["one[engine=misbehaving,n=2]"]),
        ([".", "--spec-param", "engine=hf"], []),
    ],
)
def test_selection(place: Any, arguments: list[str], names: list[str]) -> None:
    prompts = "matrix: {n: {1: {prompt: a}, 2: {prompt: b}}}"
    place.write("a.yaml", f"name: one, {prompts}", "name: two, prompt: a, tags: [extra-tag]")
    (place.folder / "pipeline.yml").write_text("version: 1\njobs: {cases: 2}\n")
    done = place.pytest("--collect-only", "-q", *arguments)
    assert [line.removeprefix("a.yaml::") for line in done.stdout.splitlines() if "::" in line] == names
    assert not place.loads.exists()


def test_a_parameter_that_no_case_has_is_refused(place: Any) -> None:
    place.write("a.yaml", "name: one, prompt: a")
    done = place.pytest(".", "--spec-param", "dtyp=float32")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--spec-param dtyp: no case has such a parameter" in done.stderr


def test_an_invalid_spec_is_an_error_with_its_line(place: Any) -> None:
    place.write("a.yaml", "nam: one, prompt: a")
    done = place.pytest(".")
    assert done.returncode == pytest.ExitCode.INTERRUPTED
    assert "error[unknown-key]: unknown key `nam`\n --> a.yaml:8:6" in done.stdout
    assert "did you mean `name`?" in done.stdout


def test_settings_that_are_wrong_are_told(place: Any) -> None:
    place.write("a.yaml", "name: one, prompt: a")
    done = place.pytest(".", "--spec-jobs", "many")
    assert done.returncode == 1
    assert "the cases could not be run: jobs from the command line is 'many'" in done.stdout
    assert "Fatal Python error" not in done.stdout


@pytest.mark.slow
def test_a_stated_timeout_stands_above_cases(place: Any) -> None:
    place.write("a.yaml", "name: stuck, prompt: hang, timeout: 60")
    done = place.pytest("a.yaml", SPECRUNNER_TIMEOUT="2")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "longer than 2 s" in done.stdout


@pytest.mark.slow
def test_max_fail_ends_the_run(place: Any) -> None:
    place.write("a.yaml", "name: bad, prompt: wrong", *(f"name: slow-{i}, prompt: slow 0.5 {i}" for i in range(60)))
    stated = {"SPECRUNNER_MAX_FAIL": "1", "SPECRUNNER_NO_CACHE": "1", "SPECRUNNER_JOBS": "2"}
    done = place.pytest("a.yaml", "--junit-xml", "r.xml", **stated)
    assert done.returncode == 1, done.stdout + done.stderr
    outcomes = read_outcomes(place.folder / "r.xml")
    assert [outcomes[name][0] for name in ("bad", "slow-59")] == ["failure", "error"]
    assert "not run: stopped after the failures that --max-fail allows" in done.stdout


@pytest.mark.slow
def test_the_executor_that_is_stated_serves(place: Any) -> None:
    place.write("a.yaml", "name: one, prompt: a")
    done = place.pytest("a.yaml", SPECRUNNER_EXECUTOR="ray", SPECRUNNER_RAY_ADDRESS="127.0.0.1:1")
    assert done.returncode == 1, done.stdout + done.stderr
    assert NO_CLUSTER in done.stdout
    assert not place.loads.exists()


def test_it_is_inert_without_a_spec(place: Any) -> None:
    (place.folder / "conftest.py").write_text(WITNESS)
    (place.folder / "pipeline.yml").write_text("version: 1\njobs: {}\n")
    done = place.pytest(".")
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED, done.stdout + done.stderr
    assert "HEAVY []" in done.stdout
    assert "OURS ['specrunner.pytest_plugin']" in done.stdout


def test_the_entry_point_leads_to_the_plugin() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [(name, value)] = project["entry-points"]["pytest11"].items()
    assert EntryPoint(name, value, "pytest11").load() is pytest_plugin


@pytest.mark.parametrize(
    "text, expected",
    [
        ("version: 1\ncases: []\n", True),
        ("---\n# a comment\nversion: 1\ntags: [a]\ncases:\n  - {}\n", True),
        ('{"version": 1, "cases": []}', True),
        ("'version': 1\n\"cases\": []\n", True),
        ("version: 1\njobs:\n  cases: []\n", False),
        ("cases: []\n", False),
        ("services: {}\nversion: '3'\n", False),
        ("# version: 1\n# cases:\n", False),
        ("", False),
    ],
)
def test_what_looks_like_a_spec(tmp_path: Path, text: str, expected: bool) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    assert pytest_plugin.is_spec(file) is expected


def test_our_own_specs_all_look_like_specs() -> None:
    assert [file for file in (ROOT / "specs").rglob("*.yaml") if not pytest_plugin.is_spec(file)] == []
