"""A folder with specs for an engine that is a plugin, does what it is told, and counts how often it is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import specrunner

MISBEHAVING = Path(__file__).parents[1] / "sessions" / "misbehaving.py"
COUNTING = """

def count_load(self, load=MisbehavingEngine.load):
    with open(os.environ["SPECRUNNER_TEST_LOADS"], "a") as stream:
        stream.write(self.session.key + chr(10))
    return load(self)

MisbehavingEngine.load = count_load
"""
HEAD = """\
version: 1
tags: [by-tag]
model: {path: .}
engines: [misbehaving]
reference: {engine: misbehaving, dtype: float32, options: {role: reference}}
defaults: {tolerance: {logits: exact}}
cases:
"""


@dataclass(frozen=True)
class Place:
    """Where a test runs pytest."""

    folder: Path
    environment: dict[str, str]
    loads: Path

    def write(self, name: str, *cases: str) -> None:
        """Write a spec from the cases' flow mappings."""
        (self.folder / name).write_text(HEAD + "".join(f"  - {{{case}}}\n" for case in cases), encoding="utf-8")

    def pytest(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run pytest with our plugin and xdist, and no other."""
        plugins = ["-p", "specrunner.pytest_plugin", "-p", "xdist"]
        return subprocess.run(
            [sys.executable, "-m", "pytest", *plugins, "-W", "error", "--strict-markers", "--color=no", *arguments],
            cwd=self.folder,
            env={**self.environment, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **variables},
            capture_output=True,
            text=True,
            timeout=240,
        )


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A folder of its own; no process may be left when the test is over."""
    plugin = tmp_path / "plugin"
    information = plugin / "misbehaving-1.0.dist-info"
    information.mkdir(parents=True)
    (plugin / "misbehaving.py").write_text(MISBEHAVING.read_text() + COUNTING)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: misbehaving\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[specrunner.engines]\nmisbehaving = misbehaving:MisbehavingEngine\n")
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "pytest.ini").write_text("[pytest]\n")
    loads = tmp_path / "loads"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(plugin), str(Path(specrunner.__file__).parents[1]))),
        "SPECRUNNER_TEST": str(tmp_path),
        "SPECRUNNER_TEST_LOADS": str(loads),
    }
    yield Place(folder, environment, loads)
    marker = f"SPECRUNNER_TEST={tmp_path}".encode()
    left = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            left += [entry.parent.name] if marker in entry.read_bytes().split(b"\0") else []
        except OSError:
            continue
    assert left == [], "a process was left behind"
