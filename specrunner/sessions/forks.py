"""Fork servers from the caller's side: one for each interpreter, engine and environment that a run's sessions have."""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from specrunner.sessions.answers import Tell
from specrunner.sessions.process import (
    UNSEEN,
    Cancelled,
    Child,
    Fork,
    end_tree,
    link_package,
    open_channel,
    start_child,
)
from specrunner.sessions.protocol import FORKS_VARIABLE, LONGEST_FORK_REQUEST, LONGEST_MARK, Channel, ChannelClosed

MOST_SERVERS = 4
"""Fork servers at once; each keeps an imported engine in memory (measured on a CPU: hf 0.35, SGLang 0.5, vLLM 0.6 GiB,
which its workers share)."""

IMPORT_TIMEOUT = 600.0
"""Seconds that the modules of an engine may take to be imported."""

FORK_TIMEOUT = 60.0
"""Seconds that a fork may take."""

WORKER = "specrunner.sessions.worker"
"""The program of a session's process."""

PLACE = "\0workspace"
"""Stands for a session's own folder where environments are told apart."""

IGNORED = ("SPECRUNNER_", "PYTEST_")
"""How the names of variables begin that no engine reads when it is imported."""


class ForkedProcess:
    """A worker that was forked off a server; it is a `process.Child`.

    Args:
        server: its parent.
        pid: its process id.
    """

    def __init__(self, server: ForkServer, pid: int) -> None:
        self._server = server
        self._pid = pid
        self._descriptor: int | None = os.pidfd_open(pid)
        self._status: int | None = None

    @property
    def pid(self) -> int:
        """Its process id, which nobody else gets before `wait` has returned."""
        return self._pid

    def poll(self) -> int | None:
        """Return how it ended, as `wait` does; None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return its status: below 0 for a signal, `UNSEEN` where the server ended before it.

        Raises:
            subprocess.TimeoutExpired: it still runs after `timeout` seconds.
        """
        if self._descriptor is not None:
            watch = select.poll()
            watch.register(self._descriptor, select.POLLIN)
            if not watch.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired(f"process {self._pid}", timeout or 0)
            self._status = self._server.take_status(self._pid)
            os.close(self._descriptor)
            self._descriptor = None
        assert self._status is not None
        return self._status


class ForkServer:
    """A fork server that was started.

    Args:
        python: the engine's interpreter.
        modules: to import.
        variables: its environment.
        folder: its own, for its log and what the modules write.
        unchanged: tells whether what the modules come from is what it was before they were imported; None where nobody
            asks.
    """

    def __init__(
        self,
        python: Path,
        modules: Sequence[str],
        variables: Mapping[str, str],
        folder: Path,
        unchanged: Tell | None = None,
    ) -> None:
        self._unchanged = unchanged
        self._folder = folder
        self._asking = threading.Lock()
        self._mark = f"{os.getpid()}-{folder.name}-forks".ljust(LONGEST_MARK, "-")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [str(python), "-m", "specrunner.sessions.fork_server", *modules]
        own = {**variables, FORKS_VARIABLE: str(theirs.fileno())}
        try:
            with (folder / "forks.log").open("ab") as log:
                self._process, self._channel = start_child(
                    command, own, self._mark, stdout=log, cwd=folder, pass_fds=[theirs.fileno()]
                )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._requests = ours
        self._changed = threading.Condition()
        self._ready = False
        self._over = False
        self._forked: dict[str, int | None] = {}
        self._exited: dict[int, int] = {}
        self.running: set[int] = set()
        self._listener = threading.Thread(target=self._listen, daemon=True, name="fork server")
        self._listener.start()

    @property
    def is_over(self) -> bool:
        """Whether nothing can be forked any more."""
        return self._over

    def _listen(self) -> None:
        """Take in what the server says until it is gone."""
        try:
            while not self._over:
                message = self._channel.receive()
                if message is not None:
                    self._note(message)
        except ChannelClosed:
            pass
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _note(self, message: Mapping[str, Any]) -> None:
        with self._changed:
            kind = message["type"]
            if kind == "ready":
                self._ready = True
            elif kind == "forked":
                self._forked[message["mark"]] = message["pid"]
            elif kind == "refused":
                self._forked[message["mark"]] = None
            elif kind == "exited":
                self._exited[message["pid"]] = message["status"]
            else:
                self._over = True
            self._changed.notify_all()

    def _wait_for(self, holds: Callable[[], bool], timeout: float, cancelled: Callable[[], bool]) -> bool:
        """Wait until something holds; return False when it never will.

        Raises:
            Cancelled: `cancelled()` became true.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while not holds():
                if cancelled():
                    raise Cancelled
                if self._over or time.monotonic() > deadline:
                    return False
                self._changed.wait(0.1)
        return True

    def is_current(self) -> bool:
        """Tell whether what was imported is known to be what is installed now."""
        with self._asking:
            return self._unchanged is not None and self._unchanged() is not None

    def fork(
        self,
        program: str,
        variables: Mapping[str, str],
        mark: str,
        log: IO[bytes],
        folder: Path,
        cancelled: Callable[[], bool],
    ) -> tuple[Child, Channel] | None:
        """Fork a process that runs a program's `main`; see `process.Fork`.

        Raises:
            Cancelled: `cancelled()` became true.
        """
        if not self._wait_for(lambda: self._ready, IMPORT_TIMEOUT, cancelled):
            return None
        told = {"program": program, "mark": mark, "variables": dict(variables), "folder": str(folder)}
        request = json.dumps(told).encode()
        if len(request) > LONGEST_FORK_REQUEST or len(mark) > LONGEST_MARK:
            return None
        channel, ends = open_channel()
        try:
            socket.send_fds(self._requests, [request], [*ends, log.fileno()])
            if not self._wait_for(lambda: mark in self._forked, FORK_TIMEOUT, lambda: False):
                raise ConnectionError("the fork server does not answer")
            pid = self._forked.pop(mark)
            if pid is None:
                raise ChildProcessError("the fork server could not fork")
            process = ForkedProcess(self, pid)
        except OSError:  # of the server, whatever it is: the interpreter is started instead
            channel.close()
            return None
        finally:
            for end in ends:
                os.close(end)
        self.running.add(pid)
        return process, channel

    def take_status(self, pid: int) -> int:
        """Return how a process of ours ended that has ended, and let its id go."""
        self._wait_for(lambda: pid in self._exited, FORK_TIMEOUT, lambda: False)
        self.running.discard(pid)
        with suppress(OSError):
            self._requests.send(json.dumps({"reap": pid}).encode())
        return self._exited.pop(pid, UNSEEN)

    def close(self) -> None:
        """End the server, of which no process may be running, and remove its folder."""
        self._over = True
        end_tree(self._process, self._mark)
        self._listener.join()
        self._channel.close()
        self._requests.close()
        shutil.rmtree(self._folder, ignore_errors=True)


@dataclass(frozen=True)
class _Kind:
    """What makes two servers the same."""

    python: Path
    modules: tuple[str, ...]
    variables: frozenset[tuple[str, str]]


class ForkServers:
    """The fork servers of a run.

    Args:
        directory: where their folders are made.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._servers: dict[_Kind, ForkServer | None] = {}
        self._lock = threading.Lock()

    def prepare(
        self,
        python: Path,
        modules: Sequence[str],
        workspace: Path,
        watch: Callable[[], Tell] | None,
        cancelled: Callable[[], bool],
        *,
        program: str = WORKER,
    ) -> Fork | None:
        """Return what forks a worker that has imported some modules; None where that is not done.

        Args:
            python: the engine's interpreter.
            modules: that every load of the engine imports.
            workspace: the session's; where variables name it, the server's own folder stands for it.
            watch: begins to watch what the session's answers come from; None where nobody will ask. What was imported
                before serves only while that is what it was.
            cancelled: polled ten times a second; the fork then raises `process.Cancelled`.
            program: the module whose `main` the forked process runs.
        """
        if not modules or not can_fork():
            return None

        def fork(variables: Mapping[str, str], mark: str, log: IO[bytes], folder: Path) -> tuple[Child, Channel] | None:
            server = self._find(python, tuple(modules), variables, workspace, watch)
            return server.fork(program, variables, mark, log, folder, cancelled) if server is not None else None

        return fork

    def import_ahead(
        self,
        python: Path,
        modules: Sequence[str],
        variables: Mapping[str, str],
        workspace: Path,
        watch: Callable[[], Tell] | None,
    ) -> bool:
        """Start the server that a session will be forked off, unless there is one, or hardly room for it.

        Args:
            python: see `prepare`, as of the rest.
            modules: to import.
            variables: the session's whole environment.
            workspace: the session's.
            watch: begins to watch what the session's answers come from.

        Returns:
            Whether one was started.
        """
        if not modules or not can_fork():
            return False
        kind, plain = describe_kind(python, tuple(modules), variables, workspace)
        with self._lock:
            if kind in self._servers or len(self._list_alive()) >= MOST_SERVERS - 1:
                return False
            self._servers[kind] = self._start(kind, plain, watch() if watch is not None else None)
            return self._servers[kind] is not None

    def _find(
        self,
        python: Path,
        modules: tuple[str, ...],
        variables: Mapping[str, str],
        workspace: Path,
        watch: Callable[[], Tell] | None,
    ) -> ForkServer | None:
        """Return the server for a session, started if need be; None where there is none and can be none."""
        kind, plain = describe_kind(python, modules, variables, workspace)
        with self._lock:
            if kind not in self._servers:
                if not self._make_room():
                    return None
                self._servers[kind] = self._start(kind, plain, watch() if watch is not None else None)
                return self._servers[kind]
            server = self._servers[kind]
        if server is not None and watch is not None and not server.is_current():
            return None  # what it has imported may not be what the session's stamp says
        return server

    def _list_alive(self) -> list[_Kind]:
        return [kind for kind, server in self._servers.items() if server is not None and not server.is_over]

    def _make_room(self) -> bool:
        """End a server that has nothing to do where there are too many; return whether there is room for one more."""
        alive = self._list_alive()
        if len(alive) < MOST_SERVERS:
            return True
        for kind in alive:
            server = self._servers[kind]
            if server is not None and not server.running:
                del self._servers[kind]
                server.close()
                return True
        return False

    def _start(self, kind: _Kind, plain: Mapping[str, str], unchanged: Tell | None) -> ForkServer | None:
        folder = Path(tempfile.mkdtemp(prefix="forks-", dir=self._directory))
        link_package(folder)
        own = {name: value.replace(PLACE, str(folder)) for name, value in plain.items()}
        if "TMPDIR" in own:
            Path(own["TMPDIR"]).mkdir(parents=True, exist_ok=True)
        try:
            return ForkServer(kind.python, kind.modules, own, folder, unchanged)
        except OSError:
            return None

    def close(self) -> None:
        """End all of them; no worker may be running."""
        with self._lock:
            for server in self._servers.values():
                if server is not None:
                    server.close()
            self._servers.clear()


def describe_kind(
    python: Path, modules: tuple[str, ...], variables: Mapping[str, str], workspace: Path
) -> tuple[_Kind, dict[str, str]]:
    """Return which server serves a session, and its variables with `PLACE` for the session's workspace."""
    plain = {name: value.replace(str(workspace), PLACE) for name, value in variables.items()}
    told = frozenset(item for item in plain.items() if not item[0].startswith(IGNORED))
    return _Kind(python, modules, told), plain


def can_fork() -> bool:
    """Tell whether this machine has what forking workers takes: Linux's /proc, and descriptors of processes."""
    return sys.platform == "linux" and hasattr(os, "pidfd_open") and Path("/proc/self/stat").exists()
