"""The reports as packages from npm read them: those behind CI reporters, and a validator of JSON Schema."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specrunner.reporters.json import JsonReporter
from specrunner.reporters.junit import JunitReporter
from tests.npm_packages import install_packages
from tests.reporters.builders import make_all_verdicts, make_events, play

pytestmark = [pytest.mark.npm, pytest.mark.slow]
VERSIONS = {"test-results-parser": "0.4.6", "junit2json": "4.0.0", "junit-to-ctrf": "0.0.14", "ajv": "8.20.0"}
SCHEMA = Path(__file__).parents[2] / "schema" / "report.schema.json"

READ_WITH_TEST_RESULTS_PARSER = """
import parser from "test-results-parser";
console.log(JSON.stringify(parser.parse({type: "junit", files: [process.argv[2]]})));
"""
READ_WITH_JUNIT2JSON = """
import { readFileSync } from "node:fs";
import { parse } from "junit2json";
console.log(JSON.stringify(await parse(readFileSync(process.argv[2], "utf8"))));
"""
READ_WITH_JUNIT_TO_CTRF = """
import { convertJUnitToCTRFReport } from "junit-to-ctrf";
console.log(JSON.stringify(await convertJUnitToCTRFReport(process.argv[2])));
"""
VALIDATE_WITH_AJV = """
import { readFileSync } from "node:fs";
import Ajv from "ajv/dist/2020.js";
const read = (path) => JSON.parse(readFileSync(path, "utf8"));
const validate = new Ajv.default({strict: true, allowUnionTypes: true}).compile(read(process.argv[3]));
validate(read(process.argv[2]));
console.log(JSON.stringify(validate.errors ?? []));
"""
WRONG = {
    "fails": "logits: 3 of 64 elements differ by more than the tolerance",
    "breaks": "candidate: the worker was ended by signal 9",
    "mended": "the case passed, but the spec expects it to fail: remove its xfail",
}
SKIPPED = {"lacks": "vllm is not installed", "known": "expected to fail: the kernel rounds twice"}


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Run a script of node on files, and return what it prints."""
    folder = tmp_path_factory.mktemp("npm")
    node = install_packages(folder, VERSIONS)

    def run(script: str, *files: Path) -> Any:
        (folder / "read.mjs").write_text(script)
        done = subprocess.run([node, "read.mjs", *files], cwd=folder, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture
def junit(tmp_path: Path) -> Path:
    path = tmp_path / "report.xml"
    play(make_events(make_all_verdicts(), exit_code=1), JunitReporter(path))
    return path


def name_of(case: dict[str, Any]) -> str:
    name, bracket, rest = str(case["name"]).partition("[")
    assert bracket + rest == "[engine=hf,dtype=bfloat16]"
    return name


def test_test_results_parser(read: Callable[..., Any], junit: Path) -> None:
    """Behind the chat messages of test-results-reporter; its total leaves out what was skipped."""
    found = read(READ_WITH_TEST_RESULTS_PARSER, junit)
    names = ("total", "passed", "failed", "errors", "skipped")
    assert {name: found[name] for name in names} == {"total": 4, "passed": 1, "failed": 2, "errors": 1, "skipped": 2}
    assert (found["status"], found["duration"]) == ("FAIL", 3250)
    cases = {name_of(case): case for suite in found["suites"] for case in suite["cases"]}
    assert {name: case["failure"] for name, case in cases.items() if case["status"] == "FAIL"} == WRONG
    assert {name for name, case in cases.items() if case["status"] == "SKIP"} == set(SKIPPED)
    assert {name for name, case in cases.items() if case["status"] == "PASS"} == {"passes"}
    assert "again  specrunner run 'specs/smoke/glass.yaml::fails[" in cases["fails"]["stack_trace"]


def test_junit2json(read: Callable[..., Any], junit: Path) -> None:
    suites = read(READ_WITH_JUNIT2JSON, junit)["testsuite"]
    names = ("tests", "failures", "errors", "skipped")
    counts = {suite["name"]: [suite[name] for name in names] for suite in suites}
    assert counts == {"specs/smoke/glass": [3, 1, 1, 0], "specs/llada2/tiny": [3, 1, 0, 2]}
    cases = {name_of(case): case for suite in suites for case in suite["testcase"]}
    found = {
        kind: {name: case[kind][0]["message"] for name, case in cases.items() if kind in case}
        for kind in ("failure", "error", "skipped")
    }
    assert found["failure"] == {name: WRONG[name] for name in ("fails", "mended")}
    assert found["error"] == {"breaks": WRONG["breaks"]}
    assert found["skipped"] == SKIPPED


def test_junit_to_ctrf(read: Callable[..., Any], junit: Path) -> None:
    """Behind the GitHub reporters of CTRF; it reads with xml2js, and takes an error for a failure."""
    found = read(READ_WITH_JUNIT_TO_CTRF, junit)["results"]
    names = ("tests", "passed", "failed", "skipped")
    assert {name: found["summary"][name] for name in names} == {"tests": 6, "passed": 1, "failed": 3, "skipped": 2}
    assert {name_of(case): case["message"] for case in found["tests"] if case["status"] == "failed"} == WRONG
    assert {name_of(case) for case in found["tests"] if case["status"] == "skipped"} == set(SKIPPED)


def test_ajv_finds_the_json_report_valid_and_a_spoilt_one_not(read: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    play(make_events(make_all_verdicts(), exit_code=1), JsonReporter(path))
    assert read(VALIDATE_WITH_AJV, path, SCHEMA) == []
    report = json.loads(path.read_text())
    report["cases"][1]["verdict"] = "fine"
    path.write_text(json.dumps(report))
    (error, *_) = read(VALIDATE_WITH_AJV, path, SCHEMA)
    assert error["instancePath"] == "/cases/1/verdict"
