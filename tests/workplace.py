"""A place where `specrunner run` is started as a user starts it, with an engine that misbehaves on request."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import textwrap
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from junitparser import JUnitXml

from tests.commands import Command
from tests.waiting import wait_for

MISBEHAVING = Path(__file__).parent / "sessions" / "misbehaving.py"

NO_CLUSTER = (
    "the Ray cluster 127.0.0.1:1 cannot be joined" if find_spec("ray") else "executor ray needs the package ray"
)
"""What is said where sessions were to go to a cluster at that address, with the extra `ray` and without."""


@dataclass(frozen=True)
class Outcome:
    """What a finished run left behind."""

    code: int
    stdout: str
    stderr: str
    report: dict[str, Any]
    junit: Path

    def verdicts(self) -> dict[str, str]:
        """Verdicts by case name."""
        return {case["name"]: case["verdict"] for case in self.report["cases"]}


@dataclass(frozen=True)
class Workplace:
    """A directory with a spec and an installed plugin engine."""

    folder: Path
    environment: dict[str, str]

    def write_spec(
        self,
        cases: dict[str, str],
        *,
        options: str = "{}",
        name: str = "spec.yaml",
        fields: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Write a spec whose cases hold prompts for the misbehaving engine, and more fields by case."""
        more = {case: f", {fields[case]}" for case in fields}
        lines = [f"  - {{name: {case}, prompt: {text!r}{more.get(case, '')}}}" for case, text in cases.items()]
        head = textwrap.dedent(
            f"""\
            version: 1
            model: {{path: model}}
            engines: [misbehaving]
            options: {{misbehaving: {options}}}
            reference: {{engine: misbehaving, dtype: float32, options: {{role: reference}}}}
            defaults:
              tolerance: {{logits: exact}}
            cases:
            """
        )
        (self.folder / name).write_text(head + "\n".join(lines) + "\n", encoding="utf-8")

    def start(self, *arguments: str) -> Command:
        """Start a run."""
        command = ["run", "--json", "r.json", "--junit-xml", "r.xml", *arguments]
        return Command(command, self.folder, self.environment)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another command to its end."""
        process = Command(arguments, self.folder, self.environment)
        stdout, stderr = process.communicate(timeout=240)
        return subprocess.CompletedProcess(arguments, process.returncode or 0, stdout, stderr)

    def finish(self, process: Command) -> Outcome:
        """Wait for a run and read its reports."""
        stdout, stderr = process.communicate(timeout=240)
        report = json.loads((self.folder / "r.json").read_text())
        assert process.returncode is not None
        return Outcome(process.returncode, stdout, stderr, report, self.folder / "r.xml")

    def finish_without_hanging(self, process: Command) -> Outcome:
        """End what hangs with SIGKILL, however often it is asked, until the run is over; then read its reports."""

        def is_over() -> bool:
            for pid in hanging_workers(self):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return process.poll() is not None

        wait_for(is_over, "the run is over")
        return self.finish(process)

    def run(self, *arguments: str) -> Outcome:
        """Run to the end."""
        return self.finish(self.start(*arguments))


def make_workplace(tmp_path: Path) -> Workplace:
    """Make a workplace whose plugin is found by its entry point, as an installed one is."""
    plugin = tmp_path / "plugin"
    info = plugin / "misbehaving-1.0.dist-info"
    info.mkdir(parents=True)
    (plugin / "misbehaving.py").write_text(MISBEHAVING.read_text())
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: misbehaving\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[specrunner.engines]\nmisbehaving = misbehaving:MisbehavingEngine\n")
    folder = tmp_path / "work"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text("{}")
    return Workplace(folder, {**os.environ, "PYTHONPATH": str(plugin), "SPECRUNNER_TEST": str(tmp_path)})


def find_processes(marker: str) -> list[int]:
    """List processes that carry this test's marker in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"SPECRUNNER_TEST={marker}".encode() in entry.read_bytes().split(b"\0"):
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


def count_junit(path: Path) -> tuple[int, int, int, int]:
    """Count (tests, failures, errors, skipped) with a consumer that is not ours, and the elements themselves."""
    suites = JUnitXml.fromfile(str(path))
    counts = (suites.tests, suites.failures, suites.errors, suites.skipped)
    root = ElementTree.parse(path).getroot()
    cases = root.findall(".//testcase")
    told = tuple(sum(case.find(kind) is not None for case in cases) for kind in ("failure", "error", "skipped"))
    assert counts == (len(cases), *told)
    return counts


def hanging_workers(workplace: Workplace) -> list[int]:
    """Workers that said that they hang."""
    marker = workplace.environment["SPECRUNNER_TEST"]
    found = []
    for pid in find_processes(marker):
        try:
            log = Path(f"/proc/{pid}/fd/1").resolve()
            command = Path(f"/proc/{pid}/cmdline").read_text()
            if "sessions.worker" in command and os.getsid(pid) == pid and b"hanging" in read_end(log):
                found.append(pid)
        except OSError:
            continue
    return found


def read_end(log: Path, size: int = 4096) -> bytes:
    """Return the last bytes of a log, which may be of a hundred megabytes."""
    with log.open("rb") as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - size))
        return stream.read()
