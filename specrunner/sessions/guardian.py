"""The guardian: a process beside a worker that ends the session when the caller is gone, whatever the worker does.

The worker's own thread notices too, but cannot run while native code holds the interpreter's lock, nor when the worker
is killed together with the caller.
"""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress

from specrunner.sessions.process import find_marked


def start_guardian(read_fd: int, write_fd: int, mark: str) -> int:
    """Fork the guardian of this process; to be called while there is one thread.

    Args:
        read_fd: what the worker reads messages from; it hangs up when the caller is gone.
        write_fd: what the worker writes to, closed in the guardian so that the worker's death is seen.
        mark: of the session's processes.

    Returns:
        Its process id.
    """
    pid = os.fork()
    if pid:
        return pid
    try:
        os.close(write_fd)
        watch = select.poll()
        watch.register(read_fd, 0)  # a hang-up is always told
        watch.poll()
        end_session(mark)
    finally:
        os._exit(1)


def dismiss_guardian(pid: int) -> None:
    """End the guardian of a worker that ends in order."""
    with suppress(OSError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def end_session(mark: str) -> None:
    """Kill every process of the session: those that left the process group first, then the group and ourselves."""
    group = os.getpgrp()
    for pid in find_marked(mark):
        with suppress(OSError):
            if os.getpgid(pid) != group:
                os.kill(pid, signal.SIGKILL)
    os.killpg(group, signal.SIGKILL)
