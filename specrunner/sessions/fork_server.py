"""The fork server: a process that has imported an engine, and from which workers are forked that need not import it.

An import takes most of the load of a small model, and gives the same to each. The server is started as
`python -m specrunner.sessions.fork_server MODULE...` with the engine's own interpreter; it imports the modules, and
never loads a model nor computes anything. Requests come through a Unix socket, with the descriptors that a worker
needs, and what becomes of them is told through the control channel:

    {"program": str, "mark": str, "variables": {...}, "folder": str}, with descriptors to read from, to write to, and
        of the log
    {"reap": pid}

    {"type": "ready"}
    {"type": "failed", "why": str}                      the modules cannot be imported, or no process can be forked
    {"type": "forked", "mark": str, "pid": int}
    {"type": "refused", "mark": str}
    {"type": "exited", "pid": int, "status": int}

A process that has exited keeps its id until it is reaped, so that the caller can end its group without hitting others.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from specrunner.engines.forking import FORKED_VARIABLE, renew_import_state, settle_titles
from specrunner.sessions import worker
from specrunner.sessions.protocol import (
    CONTROL_VARIABLE,
    FORKS_VARIABLE,
    LONGEST_FORK_REQUEST,
    SESSION_VARIABLE,
    Channel,
)

STARTED_FIELDS = (45, 47)
"""Places of `arg_start` and `env_start` in /proc/PID/stat behind the command's name, each before its end (proc(5))."""


class ForkServer:
    """The server.

    Args:
        channel: to tell the caller.
        requests: the socket that requests come through.
    """

    def __init__(self, channel: Channel, requests: socket.socket) -> None:
        self._channel = channel
        self._requests = requests
        self._running: set[int] = set()
        self._woken, self._wake = os.pipe()
        for end in (self._woken, self._wake):
            os.set_blocking(end, False)

    def serve(self) -> None:
        """Fork workers until the caller is gone."""
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        while True:
            ready = select.select([self._requests.fileno(), self._woken], [], [])[0]
            if self._woken in ready:
                with suppress(BlockingIOError):
                    os.read(self._woken, 1 << 12)
                self._tell_exits()
            if self._requests.fileno() in ready and not self._obey():
                return

    def _tell_exits(self) -> None:
        for pid in tuple(self._running):
            end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if end is not None:
                self._running.remove(pid)
                status = end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
                self._channel.send({"type": "exited", "pid": pid, "status": status})

    def _obey(self) -> bool:
        """Do what the next request says; return False when there is none and never will be."""
        data, descriptors, _, _ = socket.recv_fds(self._requests, LONGEST_FORK_REQUEST, 3)
        if not data:
            return False
        request = json.loads(data)
        if "reap" in request:
            os.waitpid(request["reap"], 0)
            return True
        try:
            pid = self._fork(request, descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        if pid is None:
            self._channel.send({"type": "refused", "mark": request["mark"]})
            return True
        self._running.add(pid)
        self._channel.send({"type": "forked", "mark": request["mark"], "pid": pid})
        self._tell_exits()  # it may have ended before it was known
        return True

    def _fork(self, request: dict[str, Any], descriptors: Sequence[int]) -> int | None:
        """Fork a worker, and return its id once it can be found by its mark; None where that fails."""
        told, tell = os.pipe()
        try:
            pid = os.fork()
        except OSError:
            traceback.print_exc()
            os.close(told)
            os.close(tell)
            return None
        if not pid:
            os.close(told)
            self._become_worker(request, descriptors, tell)
        os.close(tell)
        is_marked = os.read(told, 1)
        os.close(told)
        if is_marked:
            return pid
        os.waitpid(pid, 0)
        return None

    def _become_worker(self, request: dict[str, Any], descriptors: Sequence[int], tell: int) -> NoReturn:
        """Turn this process, which was just forked, into what `python -m PROGRAM` would be."""
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()
            self._channel.close()
            self._requests.close()
            for end in (self._woken, self._wake):
                os.close(end)
            *control, log = descriptors
            for standard in (1, 2):
                os.dup2(log, standard)
            os.close(log)
            os.chdir(request["folder"])
            rewrite_mark(request["mark"])
            rewrite_command(request["program"])
            os.environ.clear()
            os.environ.update(request["variables"])
            os.environ[SESSION_VARIABLE] = request["mark"]
            os.environ[FORKED_VARIABLE] = "1"
            os.environ[CONTROL_VARIABLE] = ",".join(map(str, control))
            tempfile.tempdir = None  # found anew in this environment
            renew_import_state()
            os.write(tell, b"+")
            os.close(tell)
            importlib.import_module(request["program"]).main()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - nothing of it may reach the server's own code
            traceback.print_exc()
        finally:
            os._exit(1)


def find_started() -> tuple[tuple[int, int], tuple[int, int]]:
    """Return where the kernel put arguments and environment when this process was started: addresses, end excluded."""
    fields = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    (arguments, environment) = ((int(fields[place]), int(fields[place + 1])) for place in STARTED_FIELDS)
    return arguments, environment


def rewrite_mark(mark: str) -> None:
    """Have /proc say that this process carries another session's mark, as if it had been started with it.

    The kernel shows the bytes at which the environment was put when the process was started, those of the server; the
    mark among them is overwritten.

    Raises:
        ValueError: there is less room than the mark needs.
    """
    _, (start, end) = find_started()
    entries = ctypes.string_at(start, end - start)
    name = f"{SESSION_VARIABLE}=".encode()
    place = 0 if entries.startswith(name) else entries.index(b"\0" + name) + 1
    room = entries.index(b"\0", place) - place
    entry = name + mark.encode()
    if len(entry) > room:
        raise ValueError(f"a mark of {len(entry)} bytes in {room}")
    ctypes.memmove(start + place, entry.ljust(room, b"\0"), room)


def rewrite_command(program: str) -> None:
    """Have `ps` say that this process runs a program, where there is room for its name."""
    (start, end), _ = find_started()
    command = b"\0".join(argument.encode() for argument in (sys.executable, "-m", program)) + b"\0"
    if len(command) <= end - start:
        ctypes.memmove(start, command.ljust(end - start, b"\0"), end - start)


def import_modules(names: Sequence[str]) -> str | None:
    """Import what workers need; return why no worker can be forked then, or None."""
    for name in names:
        try:
            importlib.import_module(name)
        except BaseException as error:  # noqa: BLE001 - the worker that imports it itself says what is wrong
            traceback.print_exc()
            return f"{name} cannot be imported: {type(error).__name__}: {error}"
    return None


def main() -> None:
    """Serve until the caller is gone."""
    requests = socket.socket(fileno=int(os.environ.pop(FORKS_VARIABLE)))
    requests.set_inheritable(False)
    channel, _ = worker.open_guarded_channel()
    why = import_modules(sys.argv[1:])
    if why is not None:
        channel.send({"type": "failed", "why": why})
        return
    settle_titles()
    del sys.argv[1:]
    gc.collect()
    gc.freeze()  # no collection looks through, and so copies, what all share
    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.CDLL(None).fflush(None)
    channel.send({"type": "ready"})
    ForkServer(channel, requests).serve()


if __name__ == "__main__":
    main()
