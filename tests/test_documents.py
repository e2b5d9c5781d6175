"""What the documents promise: commands, a spec, exit statuses, settings and links that hold."""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import specrunner
from specrunner.config import Settings, _variable, load_settings
from specrunner.errors import ExitCode

ROOT = Path(specrunner.__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def blocks(language: str) -> list[str]:
    """The README's code blocks in a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_two_commands():
    commands = blocks("sh")[0].splitlines()
    assert len(commands) == 2
    words = [shlex.split(part) for part in commands[0].split("&&")]
    assert words[0] == ["python3", "-m", "venv", ".venv"]
    assert words[1] == [".venv/bin/pip", "install", "-c", "constraints.txt", "-e", ".[hf,dev]"]
    assert words[-1] == [".venv/bin/specrunner", "run", "specs/"]
    assert commands[1] == ".venv/bin/pytest -n 2"


def test_ci_runs_the_commands_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text()
    [program] = re.findall(r"awk '(.*?)' README.md", script)
    done = subprocess.run(["awk", program, "README.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == blocks("sh")[0]


def test_the_first_spec_is_valid_and_short(tmp_path):
    [text] = blocks("yaml")
    assert len(text.splitlines()) == 10
    spec = tmp_path / "alice.yaml"
    spec.write_text(text)
    done = subprocess.run([sys.executable, "-m", "specrunner", "validate", spec], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_exit_statuses():
    stated = [int(status) for status in re.findall(r"^\| (\d+) \|", README, flags=re.MULTILINE)]
    assert stated == [int(code) for code in ExitCode]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    broken = [link for link in links if not link.startswith("https://") and not (page.parent / link).exists()]
    assert not broken


def test_the_map_has_every_page():
    text = (ROOT / "docs" / "index.md").read_text()
    missing = [page.name for page in ROOT.glob("docs/*.md") if page.name != "index.md" and page.name not in text]
    assert not missing


def test_every_setting_is_documented():
    page = (ROOT / "docs" / "configuration.md").read_text()
    names = [entry.name for entry in dataclasses.fields(Settings) if entry.name not in ("engines", "origins")]
    assert [name for name in names if f"| `{name}` | `{_variable(name)}` |" not in page] == []


def test_the_example_of_a_profile_loads(tmp_path):
    text = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "configuration.md").read_text(), flags=re.DOTALL)[0]
    (tmp_path / "pyproject.toml").write_text(text)
    settings = load_settings({"profile": "ci"}, {}, tmp_path)
    assert (settings.jobs, settings.strict, settings.json) == (1, True, "report.json")


def test_one_version():
    assert PYPROJECT["tool"]["hatch"]["version"]["path"] == "specrunner/__init__.py"
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", specrunner.__version__)


PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "#" not in line)


class TestPins:
    def test_every_dependency_has_one(self):
        extras = PYPROJECT["project"]["optional-dependencies"]
        stated = [*PYPROJECT["project"]["dependencies"], *extras["hf"], *extras["dev"]]
        names = {re.match(r"[A-Za-z0-9_-]+", line)[0].lower().replace("_", "-") for line in stated}
        assert names - {name.lower().replace("_", "-") for name in PINS} == set()

    def test_nothing_brings_cuda(self):
        assert not [name for name in PINS if name.startswith(("nvidia", "triton", "torchvision", "cuda"))]

    def test_torch_is_one_exact_version(self):
        [stated] = [line for line in PYPROJECT["project"]["optional-dependencies"]["hf"] if line.startswith("torch")]
        assert stated == f"torch=={PINS['torch']}"


def test_what_the_core_imports_is_a_dependency():
    """Outside of functions, and outside of what runs in a worker, only the core's own dependencies are imported."""
    allowed = {"jsonschema", "junit_xml", "yaml", "specrunner", *sys.stdlib_module_names}
    by_pytest = {("pytest", "pytest_plugin.py")}  # which pytest alone imports
    found = set()
    for folder in ("", "cli", "spec", "plan", "reporters", "sessions", "cache", "testing"):
        for file in (ROOT / "specrunner" / folder).glob("*.py"):
            for node in ast.parse(file.read_text()).body:
                if isinstance(node, ast.Import):
                    found |= {(alias.name.split(".")[0], file.name) for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    found.add((node.module.split(".")[0], file.name))
    assert {entry for entry in found if entry[0] not in allowed} == by_pytest


def test_nothing_of_one_machine_is_committed():
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    pattern = re.compile(r"(?<![A-Za-z0-9_./-])/(?:wor[k]|roo[t])/")
    found = []
    for name in listing.stdout.split("\0"):
        file = ROOT / name
        if name and file.is_file() and file.suffix not in (".safetensors", ".gguf", ".png"):
            lines = file.read_text(errors="replace").splitlines()
            found += [f"{name}: {line}" for line in lines if pattern.search(line)]
    assert found == []
