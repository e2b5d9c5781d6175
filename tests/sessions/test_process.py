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

import numpy
import pytest
from safetensors.numpy import load_file

from specrunner.engines.base import Capture
from specrunner.errors import EngineError, EngineOutOfMemory, EngineTimeout, ModelUnavailable, WorkerDied
from specrunner.requests import Request, Session
from specrunner.sessions.captures import CAPTURE_FILE, TENSORS_FILE, read_capture
from specrunner.sessions.process import Bystander, Cancelled, WorkerProcess, find_marked
from specrunner.sessions.protocol import Channel
from specrunner.sessions.worker import Writer
from specrunner.spec.model import Model, Prompt
from tests.sessions.misbehaving import LateFacts
from tests.waiting import wait_for

HERE = Path(__file__).parent
Start = Callable[..., WorkerProcess]


def load_message(engine: str = "MisbehavingEngine", **options: Any) -> dict[str, Any]:
    """A load message for the misbehaving engine."""
    session = Session("misbehaving", "own", Model(path="."), "float32", "cpu", options)
    return {
        "type": "load",
        "engine": f"misbehaving:{engine}",
        "session": session.to_json(),
        "model_path": ".",
        "workspace": ".",
    }


def capture_message(text: str, directory: Path) -> dict[str, Any]:
    """A capture message whose prompt says what happens."""
    request = Request(Prompt(text=text), ("logits",))
    return {"type": "capture", "request": request.to_json(), "directory": str(directory)}


class Recorder(Channel):
    """Notes the types of the messages, and whether `first` was on disk when each was sent."""

    def __init__(self, first: Path) -> None:
        self.first = first
        self.notes: list[tuple[str, bool]] = []

    def send(self, message: dict[str, Any]) -> None:
        """Note a message."""
        self.notes.append((message["type"], (self.first / CAPTURE_FILE).exists()))


class Captures:
    """What became of captures, in the order in which it was told."""

    def __init__(self, worker: WorkerProcess, directory: Path) -> None:
        self.worker, self.directory = worker, directory
        self.outcomes: dict[str, EngineError | Bystander | None] = {}

    def ask(self, text: str, timeout: float = 60, cancelled: Callable[[], bool] = lambda: False) -> Path:
        """Have a capture computed; return where it will lie."""

        def note(outcome: EngineError | Bystander | None) -> None:
            assert text not in self.outcomes, "told twice"
            self.outcomes[text] = outcome

        directory = self.directory / text.replace(" ", "-")
        self.worker.capture(capture_message(text, directory), timeout=timeout, cancelled=cancelled, written=note)
        return directory


def capture(worker: WorkerProcess, text: str, directory: Path, **limits: Any) -> None:
    """Have a capture made, and wait until it is written."""
    outcomes: list[EngineError | Bystander | None] = []
    worker.capture(capture_message(text, directory), **{"timeout": 60, **limits}, written=outcomes.append)
    worker.flush()
    assert outcomes == [None]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start loaded workers; end them after the test."""
    workers: list[WorkerProcess] = []

    def start_worker(engine: str = "MisbehavingEngine") -> WorkerProcess:
        workspace = tmp_path / f"worker-{len(workers)}"
        workspace.mkdir()
        mark = f"test-{os.getpid()}-{tmp_path.name}-{len(workers)}"
        worker = WorkerProcess(Path(sys.executable), workspace, {"PYTHONPATH": str(HERE)}, mark)
        workers.append(worker)
        worker.ask(load_message(engine), timeout=60)
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
    capture(worker, "ok", tmp_path / "c")
    stored = read_capture(tmp_path / "c")
    assert stored.facts["pid"] == worker.pid
    assert stored.facts["frozen"] > 1000, "no collection looks through what the load made"
    assert stored.prompt_token_ids == (1, 2)
    assert stored.tensor_names == ("logits",)
    worker.close()
    assert_gone(worker)


def test_rubbish_on_stdout_reaches_the_log_and_nothing_else(start: Start, tmp_path: Path) -> None:
    worker = start()
    capture(worker, "rubbish", tmp_path / "c")
    assert read_capture(tmp_path / "c").tensor_names == ("logits",)
    assert worker.log.tail().endswith("last words")


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("exit", WorkerDied, "exited with status 7"),
        ("kill", WorkerDied, "killed by SIGKILL"),
        ("alarm", WorkerDied, "killed by signal 40"),
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
        capture(worker, text, tmp_path / "c")
    assert "\n" not in caught.value.message
    assert not (tmp_path / "c" / "capture.json").exists()


def test_an_error_leaves_the_worker_usable(start: Start, tmp_path: Path) -> None:
    worker = start()
    with pytest.raises(EngineError):
        capture(worker, "raise", tmp_path / "a")
    capture(worker, "ok", tmp_path / "b")
    assert read_capture(tmp_path / "b").prompt_token_ids == (1, 2)


@pytest.mark.parametrize("text", ["memory", "lost"])
def test_a_worker_whose_engine_is_lost_is_ended(start: Start, tmp_path: Path, text: str) -> None:
    worker = start()
    with pytest.raises(EngineError):
        capture(worker, text, tmp_path / "a")
    assert_gone(worker)


def test_a_hang_ends_with_the_whole_tree(start: Start, tmp_path: Path) -> None:
    worker = start()
    with pytest.raises(EngineTimeout, match=r"longer than 0\.5 s"):
        capture(worker, "child hang", tmp_path / "c", timeout=0.5)
    assert_gone(worker)


def test_children_in_another_process_group_are_ended_too(start: Start, tmp_path: Path) -> None:
    worker = start()
    capture(worker, "child", tmp_path / "c")
    assert len(find_marked(worker._mark)) == 3, "the worker, its guardian and the child"
    worker.close()
    assert_gone(worker)


def test_a_death_is_seen_though_a_forked_child_lives(start: Start, tmp_path: Path) -> None:
    worker = start()
    with pytest.raises(WorkerDied, match="SIGKILL"):
        capture(worker, "fork kill", tmp_path / "c", timeout=20)
    assert_gone(worker)


def test_cancelling_leaves_the_decision_to_the_caller(start: Start, tmp_path: Path) -> None:
    worker = start()
    with pytest.raises(Cancelled):
        capture(worker, "hang", tmp_path / "c", cancelled=lambda: True)
    assert worker.alive
    worker.kill()
    assert_gone(worker)


def test_a_capture_is_written_while_the_engine_works_on(start: Start, tmp_path: Path) -> None:
    captures = Captures(start(), tmp_path)
    first = captures.ask("late 0.5")
    assert not (first / CAPTURE_FILE).exists(), "the engine is free before the capture is on disk"
    assert captures.outcomes == {}
    second = captures.ask("ok")
    assert list(captures.outcomes) == ["late 0.5"], "of the earlier capture one hears before the later is computed"
    assert read_capture(first).facts["late"] == "0.5"
    captures.worker.flush()
    assert captures.outcomes == {"late 0.5": None, "ok": None}
    assert read_capture(second).tensor_names == ("logits",)


def test_what_the_engine_overwrites_is_written_first(start: Start, tmp_path: Path) -> None:
    captures = Captures(start("BorrowingEngine"), tmp_path)
    folders = [captures.ask(text) for text in ("late 0.2", "a", "b")]
    assert (folders[-1] / CAPTURE_FILE).exists(), "it is on disk before the engine is free"
    captures.worker.flush()
    assert [load_file(folder / TENSORS_FILE)["logits"][0, 0] for folder in folders] == [1, 2, 3]


@pytest.mark.parametrize(("most", "first"), [(24, False), (23, True)])
def test_what_is_too_large_to_be_held_twice_is_written_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, first: bool
) -> None:
    monkeypatch.setattr("specrunner.sessions.worker.AHEAD_BYTES", most)
    recorder = Recorder(tmp_path / "c")
    writer = Writer(recorder)
    tensors = {"logits": numpy.ones((2, 3), numpy.float32)}
    writer.take(tmp_path / "c", Capture([1], tensors, facts=LateFacts(late="0.2")), lasting=True)
    writer.finish()
    assert recorder.notes == [("computed", first), ("written", True)]


def test_a_capture_that_cannot_be_written_is_an_error_of_its_own_request(start: Start, tmp_path: Path) -> None:
    captures = Captures(start(), tmp_path)
    (tmp_path / "a").write_text("a file where the capture's folder would be")
    captures.ask("a")
    captures.ask("b")
    captures.worker.flush()
    assert "FileExistsError" in str(captures.outcomes["a"])
    assert captures.outcomes["b"] is None
    assert captures.worker.alive


def test_an_engine_lost_while_it_writes_is_asked_again_for_the_later_capture(start: Start, tmp_path: Path) -> None:
    captures = Captures(start(), tmp_path)
    captures.ask("late memory")
    with pytest.raises(Bystander):
        captures.ask("ok")
    assert isinstance(captures.outcomes.pop("late memory"), EngineOutOfMemory)
    assert captures.outcomes == {}
    assert_gone(captures.worker)


def test_memory_that_ends_while_nothing_else_is_asked_is_the_captures_own_error(start: Start, tmp_path: Path) -> None:
    captures = Captures(start(), tmp_path)
    captures.ask("late memory")
    captures.worker.flush()
    assert isinstance(captures.outcomes["late memory"], EngineOutOfMemory)
    assert_gone(captures.worker)


@pytest.mark.parametrize(("text", "error", "seconds"), [("kill", WorkerDied, 60), ("hang", EngineTimeout, 0.5)])
def test_a_death_is_the_fault_of_the_later_request(
    start: Start, tmp_path: Path, text: str, error: type[EngineError], seconds: float
) -> None:
    captures = Captures(start(), tmp_path)
    captures.ask("late 30")
    with pytest.raises(error):
        captures.ask(text, timeout=seconds)
    assert isinstance(captures.outcomes["late 30"], Bystander)
    assert_gone(captures.worker)


def test_a_death_with_nothing_else_asked_is_the_captures_own(start: Start, tmp_path: Path) -> None:
    captures = Captures(start(), tmp_path)
    captures.ask("late 30")
    os.kill(captures.worker.pid, signal.SIGKILL)
    captures.worker.flush()
    assert isinstance(captures.outcomes["late 30"], WorkerDied)
    assert_gone(captures.worker)


def test_writing_has_the_requests_own_time_limit(start: Start, tmp_path: Path) -> None:
    captures = Captures(start(), tmp_path)
    captures.ask("late 30", timeout=0.5)
    captures.worker.flush()
    assert "writing a capture took longer than 0.5 s" in str(captures.outcomes["late 30"])
    assert isinstance(captures.outcomes["late 30"], EngineTimeout)
    assert_gone(captures.worker)


def test_a_flush_that_is_cancelled_leaves_the_capture_due(start: Start, tmp_path: Path) -> None:
    captures = Captures(start(), tmp_path)
    captures.ask("late 30")
    with pytest.raises(Cancelled):
        captures.worker.flush(cancelled=lambda: True)
    assert captures.worker.alive
    captures.worker.kill()
    assert isinstance(captures.outcomes["late 30"], Bystander)


def test_an_orderly_end_waits_for_the_capture(start: Start, tmp_path: Path) -> None:
    captures = Captures(start(), tmp_path)
    folder = captures.ask("late 0.5")
    captures.worker.close()
    assert read_capture(folder).facts["late"] == "0.5"


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
