"""The control channel between the pool and a worker: JSON lines over a pair of pipes of their own.

Engines write to stdout and stderr as they like; nothing they print can reach this channel. Messages to the worker:

    {"type": "load", "engine": "module:Class", "session": {...}, "model_path": str, "workspace": str}
    {"type": "capture", "request": {...}, "directory": str, "followed": str | null}
    {"type": "answer", "request": {...}, "questions": [...]}
    {"type": "close"}

and from it:

    {"type": "ready", "facts": {...}}
    {"type": "done", "facts": {...}}
    {"type": "failed", "kind": str, "message": str, "help": str | null, "fatal": bool}

A capture is answered twice, so that the engine need not wait for the disk: once the engine is free, and once the
capture lies in its directory. The second answer always comes before the next request's first:

    {"type": "computed"}
    {"type": "written"}
    {"type": "unwritten", "kind": str, "message": str, "help": str | null, "fatal": bool}
"""

from __future__ import annotations

import json
import os
import select
import threading
import time
from collections.abc import Callable
from typing import Any

CONTROL_VARIABLE = "SPECRUNNER_CONTROL"
"""Environment variable that tells a worker its two file descriptors: `read,write`."""

SESSION_VARIABLE = "SPECRUNNER_SESSION"
"""Environment variable that marks every process of a session, so that strays can be found."""

FORKS_VARIABLE = "SPECRUNNER_FORKS"
"""Environment variable that tells a fork server the descriptor of the socket that its requests come through."""

LONGEST_FORK_REQUEST = 1 << 17
"""Bytes of a request to a fork server; one that is longer does not go through a socket as a whole everywhere."""

LONGEST_MARK = 200
"""Characters of a mark; a fork server's own has as many, so that each has room where that one was."""


class ChannelClosed(Exception):
    """The other side is gone."""


class Channel:
    """One end of the control channel.

    Args:
        read_fd: descriptor to read messages from; owned by the channel.
        write_fd: descriptor to write messages to; owned by the channel.
    """

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._buffer = b""
        self._sending = threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        """Write one message; may be called from several threads.

        Raises:
            ChannelClosed: nobody reads any more.
        """
        data = json.dumps(message).encode() + b"\n"
        try:
            with self._sending:
                while data:
                    data = data[os.write(self._write_fd, data) :]
        except OSError as error:
            raise ChannelClosed from error

    def receive(
        self, *, deadline: float | None = None, cancelled: Callable[[], bool] = lambda: False
    ) -> dict[str, Any] | None:
        """Read one message; wait until `deadline` (of `time.monotonic`, seconds), or for ever.

        Returns:
            The message, or None when the deadline passed or `cancelled()` became true.

        Raises:
            ChannelClosed: the other side is gone.
        """
        while b"\n" not in self._buffer:
            wait = 0.1 if deadline is None else min(0.1, deadline - time.monotonic())
            if wait <= 0 or cancelled():
                return None
            if not select.select([self._read_fd], [], [], wait)[0]:
                continue
            try:
                data = os.read(self._read_fd, 1 << 16)
            except OSError as error:
                raise ChannelClosed from error
            if not data:
                raise ChannelClosed
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        message: dict[str, Any] = json.loads(line)
        return message

    def close(self) -> None:
        """Close both descriptors."""
        for descriptor in (self._read_fd, self._write_fd):
            os.close(descriptor)
