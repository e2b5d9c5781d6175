"""One fork server from the caller's side, and the processes that are forked off it."""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from specrunner.sessions.answers import Tell
from specrunner.sessions.process import UNSEEN, Cancelled, Child, end_tree, open_channel, start_child
from specrunner.sessions.protocol import FORKS_VARIABLE, LONGEST_FORK_REQUEST, LONGEST_MARK, Channel, ChannelClosed

IMPORT_TIMEOUT = 600.0
"""Seconds that the modules of an engine may take to be imported."""

FORK_TIMEOUT = 60.0
"""Seconds that a fork may take."""


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
