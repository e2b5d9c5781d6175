"""A plugin that is installed as a user installs one: found by its entry point, run in a worker, named when broken."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import specrunner
from specrunner.environments.interpreters import site_folders

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
PLUGIN = HERE / "specrunner-echo"
PAGE = HERE.parents[1] / "docs" / "plugin-engine.md"
ROOT = Path(specrunner.__file__).parents[1]


def blocks(language: str) -> list[str]:
    """The page's code blocks in a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory) -> Path:
    """An environment that has what ours has, and the plugin."""
    folder = tmp_path_factory.mktemp("echo") / "environment"
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    [site] = site_folders(python)
    (site / "ours.pth").write_text(f"{sysconfig.get_path('purelib')}\n{ROOT}\n")
    copy = folder / "source"
    subprocess.run(["cp", "-r", PLUGIN, copy], check=True)
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*command, "--target", site, copy], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return python


@pytest.fixture
def project(tmp_path) -> Path:
    """A folder with the page's spec and a model that needs no files of note."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"architectures": ["Echo"]}')
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs" / "echo.yaml").write_text(blocks("yaml")[0].replace("{path: model}", "{path: ../model}"))
    return tmp_path


def run(python: Path, project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    variables = {key: value for key, value in os.environ.items() if not key.startswith("SPECRUNNER_")}
    variables["SPECRUNNER_CACHE"] = str(project / "cache")
    return subprocess.run(
        [python, "-m", "specrunner", *arguments], cwd=project, env=variables, capture_output=True, text=True
    )


def test_runs(interpreter, project):
    done = run(interpreter, project, "run", "specs", "--json", "report.json")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((project / "report.json").read_text())
    assert "specrunner_echo.EchoEngine" in json.dumps(report)


def test_can_fail(interpreter, project):
    spec = project / "specs" / "echo.yaml"
    louder = "reference: {engine: echo, dtype: float64, options: {gain: 1.5}}"
    spec.write_text(re.sub("^reference: .*$", louder, spec.read_text(), flags=re.MULTILINE))
    done = run(interpreter, project, "run", "specs")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "logits" in done.stdout


def test_its_own_errors_reach_the_user(interpreter, project):
    spec = project / "specs" / "echo.yaml"
    spec.write_text(spec.read_text() + "    options: {echo: {volume: 11}}\n")
    done = run(interpreter, project, "run", "specs")
    assert done.returncode == 10, done.stdout + done.stderr
    assert "echo has no option volume" in done.stdout


def test_is_listed(interpreter, project):
    rows = json.loads(run(interpreter, project, "engines", "list", "--json").stdout)
    [row] = [row for row in rows if row["engine"] == "echo"]
    assert (row["environment"], row["state"]) == ("own", "ready")


def test_without_it_the_engine_is_unknown(project):
    done = run(Path(sys.executable), project, "validate", "specs")
    assert done.returncode == 4
    assert "unknown engine `echo`" in done.stdout + done.stderr


def test_a_broken_one_is_named(interpreter, project):
    [site] = site_folders(interpreter)
    source = site / "specrunner_echo" / "__init__.py"
    text = source.read_text()
    try:
        source.write_text("import nowhere\n")
        done = run(interpreter, project, "run", "specs")
        assert done.returncode == 4
        assert "`echo` (specrunner_echo:EchoEngine) cannot be loaded" in done.stderr
        assert "No module named 'nowhere'" in done.stderr
        rows = json.loads(run(interpreter, project, "engines", "list", "--json").stdout)
        assert [row["state"] for row in rows if row["engine"] == "echo"] == ["broken"]
    finally:
        source.write_text(text)


def test_the_page_shows_the_plugin_as_it_is():
    assert blocks("python") == [(PLUGIN / "specrunner_echo" / "__init__.py").read_text()]
    assert blocks("toml")[0] in (PLUGIN / "pyproject.toml").read_text()
