"""What CI is told of a run that did not begin."""

from __future__ import annotations

from pathlib import Path

import junitparser
import pytest
from lxml import etree

from specrunner.cli import main
from specrunner.reporters.github import annotate_problem
from specrunner.reporters.junit import render_problems
from specrunner.reporters.problems import Problem
from tests.reporters.test_junit import RULES

GOOD = """\
version: 1
model: {path: .}
engines: [hf]
cases:
  - {name: fine, prompt: hi, reference: {engine: hf, dtype: bfloat16}, tolerance: {logits: exact}}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a spec that has two mistakes, one that has one, and a good one."""
    for name in ("CI", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    specs = tmp_path / "specs"
    (specs / "many").mkdir(parents=True)
    (specs / "many" / "a.yaml").write_text(GOOD.replace("prompt:", "promt:").replace("version: 1", "version: 7"))
    (specs / "many" / "b,c.yaml").write_text(GOOD.replace("engines:", "engine:"))
    (specs / "good.yaml").write_text(GOOD)
    return tmp_path


def read_errors(path: Path) -> list[tuple[str, str, str, str]]:
    """Return `(suite, classname, name, type)` of each testcase; the file is valid, and each is one `<error>`."""
    RULES.assertValid(etree.parse(str(path)))
    found = []
    for suite in junitparser.JUnitXml.fromfile(str(path)):
        assert (suite.errors, suite.failures, suite.skipped) == (suite.tests, 0, 0)
        for case in suite:
            (result,) = case.result
            assert isinstance(result, junitparser.Error)
            assert result.text
            found.append((suite.name, case.classname, case.name, result.type))
    return found


def test_each_problem_of_a_spec_is_an_error_and_an_annotation(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = place / "out" / "x.xml"
    assert main(["run", "specs/many", "--output-format", "github", "--junit-xml", str(report)]) == 4
    out, err = capsys.readouterr()
    errors = read_errors(report)
    assert {suite for suite, *_ in errors} == {"specs/many/a.yaml", "specs/many/b,c.yaml"}
    assert ("specs/many/a.yaml", "specs/many/a.yaml", "unknown-key at 5:18", "unknown-key") in errors
    assert "error[unknown-key]: " in report.read_text()
    annotated = out.splitlines()
    assert len(annotated) == len(errors) >= 3
    assert all(line.startswith("::error file=specs/many/") for line in annotated)
    assert any(
        line.startswith("::error file=specs/many/a.yaml,line=5,col=18,title=unknown-key::") for line in annotated
    )
    assert any("file=specs/many/b%2Cc.yaml,line=3,col=1," in line for line in annotated)
    assert err.endswith("in 2 files\n")


def test_nothing_is_annotated_or_written_that_nobody_asked_for(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "specs/many"]) == 4
    assert main(["run", "specs/many", "--plan", "--output-format", "github", "--junit-xml", "x.xml"]) == 4
    assert capsys.readouterr().out == ""
    assert sorted(path.name for path in place.iterdir()) == ["specs"]


def test_an_empty_selection_is_red(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["run", "specs/good.yaml", "-k", "absent", "--junit-xml", "x.xml", "--output-format", "github"]
    assert main(asked) == 5
    out, err = capsys.readouterr()
    assert read_errors(place / "x.xml") == [("specrunner", "specrunner", "nothing-verified", "nothing-verified")]
    (line,) = out.splitlines()
    assert line.startswith("::error title=nothing-verified::")
    assert line.partition("::error title=nothing-verified::")[2].partition("%0A")[0] in err


def test_a_report_that_cannot_be_written_leaves_the_status(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "specs/many", "--junit-xml", "specs"]) == 4
    assert "error: cannot write the JUnit report to specs: " in capsys.readouterr().err


def test_foreign_text_breaks_neither_xml_nor_the_command() -> None:
    text = "a\x1b]]>\ud800\r\n::warning::b%"
    problem = Problem(text, 1, 2, text, text, text, text)
    RULES.assertValid(etree.fromstring(render_problems([problem], [text])))
    assert len(annotate_problem(problem).splitlines()) == 1
