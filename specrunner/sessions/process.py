"""One worker process from the caller's side: start it, talk to it, end its whole tree."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Protocol

import specrunner
from specrunner.errors import ENGINE_ERRORS, EngineError, EngineTimeout, WorkerDied
from specrunner.secrets import Redactor
from specrunner.sessions.logs import LOG_FILE, Log
from specrunner.sessions.protocol import CONTROL_VARIABLE, SESSION_VARIABLE, Channel, ChannelClosed
from specrunner.words import describe_exit

KILL_PATIENCE = 10.0
"""Seconds to wait for killed processes to be gone."""


class Cancelled(Exception):
    """The caller asked to stop while an answer was awaited."""


class Bystander(Exception):
    """The process ended over another request before this one's capture was on disk: it has to be asked again."""


class Child(Protocol):
    """A process that leads a group of its own: one that was started (`subprocess.Popen`), or forked off another."""

    @property
    def pid(self) -> int:
        """Its process id, which nobody else gets before `wait` has returned."""

    def poll(self) -> int | None:
        """Return how it ended, as `wait` does; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return its status: below 0 for a signal, `UNSEEN` where nobody can tell.

        Raises:
            subprocess.TimeoutExpired: it still runs after `timeout` seconds.
        """


WORKER = "specrunner.sessions.worker"
"""The program of a session's process."""

UNSEEN = 1 << 16
"""The status of a process whose parent, which was not us, ended before it."""

Fork = Callable[[Mapping[str, str], str, IO[bytes], Path], tuple[Child, Channel] | None]
"""Takes a worker's environment, mark, log and folder; returns the process and our end of its channel, or None."""

Written = Callable[[EngineError | Bystander | None], None]
"""Is told, once, that a capture lies in its directory (None), or why it does not."""


class WorkerProcess:
    """A running worker.

    Args:
        python: the engine's interpreter.
        workspace: this session's directory; log, sockets and caches of the engine live below it.
        environment: variables to set over the caller's.
        mark: a string unique to this session; processes that carry it are ended with the session.
        fork: forks the process off one that has imported the engine, or returns None where there is none; without it,
            and then, the interpreter is started.
    """

    def __init__(
        self, python: Path, workspace: Path, environment: Mapping[str, str], mark: str, fork: Fork | None = None
    ) -> None:
        self.workspace = workspace
        variables = make_variables(workspace, environment)
        self._redactor = Redactor(variables)
        self.log = Log(workspace / LOG_FILE, self._redactor)
        command = [str(python), "-m", WORKER]
        try:
            with self.log.path.open("ab") as log:
                self._process, self._channel, self._mark = fork_or_start(fork, command, variables, mark, log, workspace)
        except OSError as error:
            raise WorkerDied(f"the engine's interpreter {python} could not be started: {error}") from error
        self._ended = False
        self._due: tuple[Written, float] | None = None  # who waits for the capture that is being written, how long

    @property
    def pid(self) -> int:
        """The worker's process id, which is also its process group and session id."""
        return self._process.pid

    def ask(
        self, message: dict[str, Any], *, timeout: float, cancelled: Callable[[], bool] = lambda: False
    ) -> dict[str, Any]:
        """Send a message and wait for its answer.

        Args:
            message: of the type `load` or `answer`.
            timeout: seconds to wait.
            cancelled: polled ten times a second.

        Returns:
            The facts of the answer.

        Raises:
            Cancelled: `cancelled()` became true.
            EngineTimeout: no answer in time; the process tree has been ended.
            WorkerDied: the process is gone.
            EngineError: what the engine reported.
            Bystander: the process ended because an earlier capture could not be written.
        """
        facts: dict[str, Any] = self._exchange(message, timeout, cancelled)["facts"]
        return facts

    def capture(
        self,
        message: dict[str, Any],
        *,
        timeout: float,
        cancelled: Callable[[], bool] = lambda: False,
        written: Written,
    ) -> None:
        """Send a `capture` message and wait until the engine is free again; its capture may still be written then.

        Args:
            message: of the type `capture`.
            timeout: seconds to wait.
            cancelled: polled ten times a second.
            written: told what became of the capture, by a later call: at the latest by `flush` or `kill`.

        Raises:
            Cancelled, EngineTimeout, WorkerDied, EngineError, Bystander: as `ask` does; `written` is then not told.
        """
        self._exchange(message, timeout, cancelled)
        self._due = (written, timeout)

    def flush(self, *, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Wait until no capture is being written any more.

        Raises:
            Cancelled: `cancelled()` became true.
        """
        if self._due is None:
            return
        written, timeout = self._due
        try:
            answer = self._receive(time.monotonic() + timeout, cancelled)
        except ChannelClosed:
            self._due = None
            written(self._describe_death())
            return
        if answer is None:
            if cancelled():
                raise Cancelled
            self._due = None
            self.kill()
            error = EngineTimeout(f"writing a capture took longer than {timeout:g} s", log_tail=self.log.tail())
            written(error)
            return
        with suppress(Bystander):
            self._settle(answer)

    def _receive(self, deadline: float, cancelled: Callable[[], bool]) -> dict[str, Any] | None:
        return self._channel.receive(deadline=deadline, cancelled=self.log.while_waiting(cancelled))

    def _exchange(self, message: dict[str, Any], timeout: float, cancelled: Callable[[], bool]) -> dict[str, Any]:
        """Send a message and return its answer; what comes before it is about the capture that is being written."""
        deadline = time.monotonic() + timeout
        try:
            self._channel.send(message)
            answer = self._receive(deadline, cancelled)
            if answer is not None and answer["type"] in ("written", "unwritten"):
                self._settle(answer)
                answer = self._receive(deadline, cancelled)
        except ChannelClosed:
            raise self._describe_death() from None
        if answer is None:
            if cancelled():
                raise Cancelled
            self.kill()
            what = "loading the model" if message["type"] == "load" else "a request"
            raise EngineTimeout(f"{what} took longer than {timeout:g} s", log_tail=self.log.tail())
        if answer["type"] == "failed":
            raise self._read_failure(answer)
        return answer

    def _read_failure(self, answer: Mapping[str, Any]) -> EngineError:
        """Return the error that the worker reported; end the process when it is lost with it."""
        error_class = ENGINE_ERRORS.get(answer["kind"], EngineError)
        log_tail = self.log.tail()
        if answer["fatal"]:
            self.kill()
        advice = answer["help"] and self._redactor.redact(answer["help"])
        return error_class(self._redactor.redact(answer["message"]), help=advice, log_tail=log_tail)

    def _settle(self, answer: Mapping[str, Any]) -> None:
        """Tell who waits for the capture that was being written.

        Raises:
            Bystander: the process was ended over it, and is lost for whoever asked it since.
        """
        assert self._due is not None, "a capture was written that nobody waits for"
        (written, _), self._due = self._due, None
        if answer["type"] == "written":
            written(None)
            return
        written(self._read_failure(answer))
        if answer["fatal"]:
            raise Bystander

    def _describe_death(self) -> WorkerDied:
        """Say how the worker ended, then make sure that nothing of it is left."""
        try:
            status = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            status = None
        self.kill()
        how = "closed its control channel" if status is None else describe_end(status)
        tail = self.log.tail()
        hint = "the kernel may have killed it for want of memory" if status == -signal.SIGKILL else None
        return WorkerDied(f"the engine process {how}", help=hint, log_tail=tail)

    @property
    def alive(self) -> bool:
        """Whether the worker can be asked again."""
        return not self._ended and self._process.poll() is None

    def close(self, grace: float = 10.0) -> None:
        """Let the engine shut down in order, for at most `grace` seconds, then end what is left."""
        if not self._ended:
            with suppress(ChannelClosed, subprocess.TimeoutExpired):
                self._channel.send({"type": "close"})
                self._process.wait(timeout=grace)
            self.kill()

    def kill(self) -> None:
        """End the whole process tree at once; also called after an orderly end, for children left behind."""
        if self._ended:
            return
        self._ended = True
        end_tree(self._process, self._mark)
        self._channel.close()
        due, self._due = self._due, None
        if due is not None:
            due[0](Bystander())


def start_child(
    command: Sequence[str],
    variables: Mapping[str, str],
    mark: str,
    *,
    stdout: IO[Any],
    stderr: IO[Any] | None = None,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
) -> tuple[subprocess.Popen[bytes], Channel]:
    """Start a process that leads a group of its own, carries a session's mark, and has a control channel to us.

    Args:
        command: the program and its arguments.
        variables: its environment, to which mark and channel are added.
        mark: for `end_tree`.
        stdout: where its output goes.
        stderr: where its errors go; with the output by default.
        cwd: its folder; ours by default.
        pass_fds: descriptors that it inherits.

    Returns:
        The process, and our end of the channel.

    Raises:
        OSError: it could not be started; nothing is left open.
    """
    channel, ends = open_channel()
    own = {CONTROL_VARIABLE: ",".join(map(str, ends)), SESSION_VARIABLE: mark}
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.STDOUT if stderr is None else stderr,
            cwd=cwd,
            env={**variables, **own},
            pass_fds=(*ends, *pass_fds),
            start_new_session=True,
        )
    except BaseException:
        channel.close()
        raise
    finally:
        for end in ends:
            os.close(end)
    return process, channel


def fork_or_start(
    fork: Fork | None, command: Sequence[str], variables: Mapping[str, str], mark: str, log: IO[bytes], folder: Path
) -> tuple[Child, Channel, str]:
    """Fork a process, or start it where none can be forked; return it, our end of its channel, and its mark.

    Args:
        fork: forks it, or returns None; None starts it.
        command: to start it with.
        variables: its environment.
        mark: for `end_tree`; what is started instead of forked gets another, since a process that was forked without
            our knowledge ends all that has its own.
        log: where its output goes.
        folder: where it runs.

    Raises:
        OSError: it could not be started.
    """
    if fork is not None:
        forked = fork(variables, mark, log, folder)
        if forked is not None:
            return *forked, mark
        mark = f"{mark}-started"
    return *start_child(command, variables, mark, stdout=log, cwd=folder), mark


def open_channel() -> tuple[Channel, tuple[int, int]]:
    """Open a control channel; return our end, and the descriptors from which the other side reads and writes."""
    to_child_read, to_child_write = os.pipe()
    from_child_read, from_child_write = os.pipe()
    return Channel(from_child_read, to_child_write), (to_child_read, from_child_write)


def describe_end(status: int) -> str:
    """Return how a `Child` ended."""
    return "ended" if status == UNSEEN else describe_exit(status)


def end_tree(process: Child, mark: str) -> None:
    """End at once a process that leads its group, the group, and every process that carries its mark."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + KILL_PATIENCE
    while (strays := find_marked(mark)) and time.monotonic() < deadline:
        for pid in strays:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    process.wait()


def find_marked(mark: str) -> list[int]:
    """List processes, other than ourselves, whose environment carries a session's mark (Linux; else none)."""
    needle = f"{SESSION_VARIABLE}={mark}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ") if Path("/proc").is_dir() else ():
        pid = int(entry.parent.name)
        try:
            if pid != os.getpid() and needle in entry.read_bytes().split(b"\0"):
                found.append(pid)
        except OSError:
            continue
    return found


def make_variables(workspace: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the whole environment of a worker, which finds specrunner in its workspace.

    Args:
        workspace: of its session.
        environment: variables to set over the caller's.
    """
    path = filter(None, [str(link_package(workspace)), environment.get("PYTHONPATH")])
    return {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(path)}


def link_package(workspace: Path) -> Path:
    """Make a directory from which the worker can import specrunner, and nothing else of the caller's environment."""
    folder = workspace / "import"
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "specrunner"
    if not link.is_symlink():
        link.symlink_to(Path(specrunner.__file__).parent, target_is_directory=True)
    return folder
