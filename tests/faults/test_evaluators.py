"""The process that runs lm-eval, when the run itself is killed."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from specrunner.errors import EngineTimeout
from specrunner.sessions import logs
from specrunner.sessions.evaluator import _Evaluator
from tests.benchmarks.questions import QUESTIONS
from tests.faults.keeping import wait_until_alone
from tests.workplace import Workplace, find_processes, wait_for

SPEC = """\
version: 1
model: {path: model}
engines: [misbehaving]
cases:
  - {name: asked, benchmark: {task: arc_easy, data: {file: questions.jsonl}, threshold: 0.5}}
"""
STUCK = """\
import ctypes, os, pathlib
pathlib.Path(os.environ["STUCK"]).touch()
ctypes.PyDLL(None).sleep(600)
"""
"""A module `transformers` that never lets go of the interpreter's lock: no thread of the evaluator can run."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "program"), [((), "sessions.fork_server"), (("--no-fork",), "benchmarks.evaluate")], ids=["fork", "own"]
)
def test_an_evaluator_that_is_stuck_ends_with_its_run(
    workplace: Workplace, tmp_path: Path, options: tuple[str, ...], program: str
) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    (workplace.folder / "spec.yaml").write_text(SPEC)
    (workplace.folder / "questions.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)))
    (tmp_path / "stuck").mkdir()
    (tmp_path / "stuck" / "transformers.py").write_text(STUCK)
    here = tmp_path / "here"
    workplace.environment["PYTHONPATH"] += f":{tmp_path / 'stuck'}"
    workplace.environment["STUCK"] = str(here)
    run = workplace.start("spec.yaml", *options)
    wait_for(lambda: here.exists() or run.poll() is not None, "the evaluator is stuck")
    assert run.poll() is None, run.communicate()
    commands = [Path(f"/proc/{pid}/cmdline").read_text() for pid in find_processes(str(tmp_path))]
    assert any(program in command for command in commands)
    run.kill()
    run.communicate()
    wait_until_alone(workplace)


def test_the_log_of_an_evaluator_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LOG_LIMIT", 1 << 20)
    evaluator = _Evaluator(tmp_path)
    try:
        log = tmp_path / "evaluator.log"
        with log.open("ab") as stream:
            stream.write(b"all work and no play\n" * (1 << 16) + b"last words\n")
        with pytest.raises(EngineTimeout):
            evaluator.receive(time.monotonic() + 0.2, lambda: False)
        assert log.stat().st_size < logs.LOG_LIMIT // 2
        assert "bytes of log were deleted" in log.read_text() and "last words" in evaluator.log.tail()
    finally:
        evaluator.end()
