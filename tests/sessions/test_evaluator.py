"""The evaluating process is started and ended without a trace; scripts stand for the interpreter."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from specrunner.errors import WorkerDied
from specrunner.sessions.evaluator import _Evaluator
from specrunner.sessions.process import find_marked
from tests.waiting import wait_for


def put_interpreter(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    file = folder / "python"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(file))


def list_descriptors() -> list[str]:
    return sorted(entry.name for entry in Path("/proc/self/fd").iterdir())


def test_a_second_end_leaves_descriptors_alone_that_others_opened_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_interpreter(monkeypatch, tmp_path, "exit 3")
    evaluator = _Evaluator(tmp_path)
    with pytest.raises(WorkerDied):
        evaluator.receive(time.monotonic() + 60, lambda: False)
    pipes = [os.pipe() for _ in range(3)]  # the lowest free numbers: those that the evaluator had are among them
    evaluator.end()
    for reader, writer in pipes:
        assert os.write(writer, b"whole") == 5 and os.read(reader, 5) == b"whole"
        os.close(reader)
        os.close(writer)


def test_an_end_reaches_what_left_the_process_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_interpreter(monkeypatch, tmp_path, "setsid sleep 600 & wait")
    evaluator = _Evaluator(tmp_path)
    mark = f"{os.getpid()}-{tmp_path.name}-evaluation"

    def is_running() -> bool:
        return any(Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep") for pid in find_marked(mark))

    wait_for(is_running, "the child has a session of its own")
    evaluator.end()
    assert find_marked(mark) == []


@pytest.mark.parametrize("missing", ["interpreter", "log"])
def test_an_evaluator_that_cannot_be_started_leaves_nothing_open(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing == "interpreter":
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    before = list_descriptors()
    with pytest.raises(FileNotFoundError):
        _Evaluator(tmp_path if missing == "interpreter" else tmp_path / "workspace")
    assert list_descriptors() == before
