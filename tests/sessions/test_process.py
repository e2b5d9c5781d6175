"""Worker processes: control, logs, deadlines, and that nothing of them is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from specrunner.errors import EngineError, EngineOutOfMemory, EngineTimeout, ModelUnavailable, WorkerDied
from specrunner.requests import Request, Session
from specrunner.sessions.captures import read_capture
from specrunner.sessions.process import Cancelled, WorkerProcess, find_marked
from specrunner.spec.model import Model, Prompt
from tests.waiting import wait_for

HERE = Path(__file__).parent
Start = Callable[..., WorkerProcess]


def load_message(**options: Any) -> dict[str, Any]:
    """A load message for the misbehaving engine."""
    session = Session("misbehaving", "own", Model(path="."), "float32", "cpu", options)
    return {
        "type": "load",
        "engine": "misbehaving:MisbehavingEngine",
        "session": session.to_json(),
        "model_path": ".",
        "workspace": ".",
    }


def capture_message(text: str, directory: Path) -> dict[str, Any]:
    """A capture message whose prompt says what happens."""
    request = Request(Prompt(text=text), ("logits",))
    return {"type": "capture", "request": request.to_json(), "directory": str(directory)}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start loaded workers; end them after the test."""
    workers: list[WorkerProcess] = []

    def start_worker(load: bool = True) -> WorkerProcess:
        workspace = tmp_path / f"worker-{len(workers)}"
        workspace.mkdir()
        mark = f"test-{os.getpid()}-{tmp_path.name}-{len(workers)}"
        worker = WorkerProcess(Path(sys.executable), workspace, {"PYTHONPATH": str(HERE)}, mark)
        workers.append(worker)
        if load:
            worker.ask(load_message(), timeout=60)
        return worker

    yield start_worker
    for worker in workers:
        worker.kill()


def assert_gone(worker: WorkerProcess) -> None:
    """No process of the session is left."""
    assert not worker.alive
    assert find_marked(worker._mark) == []


def test_answer_is_a_complete_capture(start: Start, tmp_path: Path) -> None:
    worker = start()
    facts = worker.ask(capture_message("ok", tmp_path / "c"), timeout=60)
    assert facts["pid"] == worker.pid
    stored = read_capture(tmp_path / "c")
    assert stored.prompt_token_ids == (1, 2)
    assert stored.tensor_names == ("logits",)
    worker.close()
    assert_gone(worker)


def test_rubbish_on_stdout_reaches_the_log_and_nothing_else(start: Start, tmp_path: Path) -> None:
    worker = start()
    worker.ask(capture_message("rubbish", tmp_path / "c"), timeout=60)
    assert read_capture(tmp_path / "c").tensor_names == ("logits",)
    assert worker.log_tail().endswith("last words")


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("exit", WorkerDied, "exited with status 7"),
        ("kill", WorkerDied, "killed by SIGKILL"),
        ("raise", EngineError, "ValueError: the kernel"),
        ("unavailable", ModelUnavailable, "no model here"),
        ("memory", EngineOutOfMemory, "can't allocate memory"),
        ("lost", WorkerDied, "the engine's own process is gone"),
    ],
)
def test_each_way_to_fail_has_its_error(
    start: Start, tmp_path: Path, text: str, error: type[EngineError], words: str
) -> None:
    worker = start()
    with pytest.raises(error, match=words) as caught:
        worker.ask(capture_message(text, tmp_path / "c"), timeout=60)
    assert "\n" not in caught.value.message
    assert not (tmp_path / "c" / "capture.json").exists()


def test_an_error_leaves_the_worker_usable(start: Start, tmp_path: Path) -> None:
    worker = start()
    with pytest.raises(EngineError):
        worker.ask(capture_message("raise", tmp_path / "a"), timeout=60)
    worker.ask(capture_message("ok", tmp_path / "b"), timeout=60)
    assert read_capture(tmp_path / "b").prompt_token_ids == (1, 2)


@pytest.mark.parametrize("text", ["memory", "lost"])
def test_a_worker_whose_engine_is_lost_is_ended(start: Start, tmp_path: Path, text: str) -> None:
    worker = start()
    with pytest.raises(EngineError):
        worker.ask(capture_message(text, tmp_path / "a"), timeout=60)
    assert_gone(worker)


def test_a_hang_ends_with_the_whole_tree(start: Start, tmp_path: Path) -> None:
    worker = start()
    with pytest.raises(EngineTimeout, match=r"longer than 0\.5 s"):
        worker.ask(capture_message("child hang", tmp_path / "c"), timeout=0.5)
    assert_gone(worker)


def test_children_in_another_process_group_are_ended_too(start: Start, tmp_path: Path) -> None:
    worker = start()
    worker.ask(capture_message("child", tmp_path / "c"), timeout=60)
    assert len(find_marked(worker._mark)) == 3, "the worker, its guardian and the child"
    worker.close()
    assert_gone(worker)


def test_cancelling_leaves_the_decision_to_the_caller(start: Start, tmp_path: Path) -> None:
    worker = start()
    with pytest.raises(Cancelled):
        worker.ask(capture_message("hang", tmp_path / "c"), timeout=60, cancelled=lambda: True)
    assert worker.alive
    worker.kill()
    assert_gone(worker)


def test_a_missing_interpreter_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WorkerDied, match="could not be started"):
        WorkerProcess(tmp_path / "python", tmp_path, {}, "test-none")


def test_the_engine_sees_nothing_of_our_environment_but_specrunner(start: Start) -> None:
    worker = start()
    folder = worker.workspace / "import"
    assert [entry.name for entry in folder.iterdir()] == ["specrunner"]


def test_workers_end_when_their_caller_dies(tmp_path: Path) -> None:
    script = textwrap.dedent(
        f"""
        import os, signal, sys
        from pathlib import Path
        sys.path.insert(0, {str(HERE)!r})
        from specrunner.sessions.process import WorkerProcess
        from test_process import load_message
        variables = {{"PYTHONPATH": {str(HERE)!r}}}
        worker = WorkerProcess(Path(sys.executable), Path({str(tmp_path)!r}), variables, "test-orphan")
        worker.ask(load_message(), timeout=60)
        print(worker.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    wait_for(lambda: find_marked("test-orphan") == [], "the worker ends")
