"""The pipelines of docs/ci: what their systems accept, and commands that our command line accepts."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from specrunner.cli import make_parser

FOLDER = Path(__file__).parents[1] / "docs" / "ci"
FILES = ("github-actions.yml", "gitlab-ci.yml", "Jenkinsfile", "buildkite.yml")


def commands(name: str) -> list[list[str]]:
    """Every specrunner command of a pipeline, as words."""
    text = (FOLDER / name).read_text(encoding="utf-8")
    found = re.findall(r"(?:^|[ '-])specrunner ((?:run|engines) [^'\n|]*)", text, re.MULTILINE)
    return [shlex.split(command) for command in found]


@pytest.mark.slow
@pytest.mark.parametrize(
    "schema, name",
    [
        ("vendor.github-workflows", "github-actions.yml"),
        ("vendor.gitlab-ci", "gitlab-ci.yml"),
        ("vendor.buildkite", "buildkite.yml"),
    ],
)
def test_the_schema_accepts_it_and_refuses_a_misspelling(schema: str, name: str, tmp_path: Path) -> None:
    pytest.importorskip("check_jsonschema", reason="the schemas come from check-jsonschema (pip install -e '.[dev]')")
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema]
    done = subprocess.run([*check, FOLDER / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    broken = tmp_path / name
    text = (FOLDER / name).read_text(encoding="utf-8")
    broken.write_text(re.sub(r"runs-on:|\bscript:|timeout_in_minutes:", "no-such-key:", text, count=1))
    assert broken.read_text() != text
    assert subprocess.run([*check, broken], capture_output=True, text=True).returncode == 1


def parse_groovy(text: str) -> bool:
    """Tell whether a text is Groovy without an error."""
    import tree_sitter
    import tree_sitter_groovy

    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_groovy.language()))
    return not parser.parse(text.encode()).root_node.has_error


def test_the_jenkinsfile_is_groovy() -> None:
    pytest.importorskip("tree_sitter_groovy", reason="the grammar is in the extra dev (pip install -e '.[dev]')")
    text = (FOLDER / "Jenkinsfile").read_text(encoding="utf-8")
    assert parse_groovy(text)
    assert not parse_groovy(text.replace("script {", "script (", 1))


@pytest.mark.skipif(shutil.which("actionlint") is None, reason="actionlint is not installed")
def test_actionlint_accepts_the_workflow() -> None:
    done = subprocess.run(["actionlint", FOLDER / "github-actions.yml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", FILES)
def test_every_command_is_one_of_ours(name: str) -> None:
    found = commands(name)
    runs = [words for words in found if words[0] == "run"]
    assert runs, "it runs the cases"
    for words in found:
        make_parser(words[0]).parse_args(words)
    for words in runs:
        options = make_parser("run").parse_args(words)
        assert options.paths == ["specs/"]
        assert options.tags == ["correctness"]
        assert options.junit_xml


@pytest.mark.parametrize("name", FILES)
def test_caches_and_the_report_are_kept(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    [folder] = re.findall(r"SPECRUNNER_CACHE ?[=:] (.+)$", text, re.MULTILINE)
    assert re.fullmatch(r'(|"?\$.*/)\.cache/specrunner"?', folder)
    if name != "Jenkinsfile":  # whose agent keeps its home
        assert re.search(r"^\s+(- |path: )\.cache/specrunner$", text, re.MULTILINE)
    published = {
        "github-actions.yml": "report*.xml",
        "gitlab-ci.yml": "junit: report.xml",
        "Jenkinsfile": "junit 'report*.xml'",
        "buildkite.yml": "artifacts: report.xml",
    }
    assert published[name] in text


@pytest.mark.parametrize("name", ["github-actions.yml", "Jenkinsfile"])
def test_a_second_try_keeps_the_first_report(name: str) -> None:
    reports = [make_parser("run").parse_args(words).junit_xml for words in commands(name) if words[0] == "run"]
    assert reports == ["report.xml", "report-again.xml"]


@pytest.mark.parametrize(
    ("first", "second", "expected"), [(0, 0, 0), (1, 0, 1), (10, 0, 0), (10, 1, 1), (10, 10, 10), (4, 0, 4)]
)
def test_the_workflow_fails_when_a_case_does(first: int, second: int, expected: int, tmp_path: Path) -> None:
    """The workflow's own script, with a specrunner that ends as told, and with the shell's flags that GitHub uses."""
    workflow = yaml.safe_load((FOLDER / "github-actions.yml").read_text(encoding="utf-8"))
    [script] = [
        step["run"] for step in workflow["jobs"]["correctness"]["steps"] if "-t correctness" in step.get("run", "")
    ]
    program = tmp_path / "specrunner"
    program.write_text(f'#!/bin/sh\ncase "$*" in *--failed*) exit {second};; *) exit {first};; esac\n')
    program.chmod(0o755)
    path = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-eo", "pipefail", "-c", script], env=path, capture_output=True)
    assert done.returncode == expected
