"""The log of a session's processes: its end for errors, its bound, and its lines for a reader on another machine."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from specrunner.secrets import Redactor

LOG_FILE = "worker.log"

LOG_TAIL_LINES = 40
LOG_TAIL_BYTES = 16_384
LONGEST_SECRET = 8192
"""Bytes before the tail that are read with it, so that a secret at its edge is seen whole."""

LOG_LIMIT = 64 << 20
"""Bytes of log above which all but the end is deleted: an engine that prints for ever must not fill the disk."""

MOST_READ = 4 << 20
"""Bytes that `Log.read` returns at once; a longer line is left out."""

LINE_END = re.compile(rb"[\r\n]")
"""What ends a line; a progress bar goes back to its beginning."""


class Log:
    """A file that processes print to, or that holds what they printed elsewhere.

    Args:
        path: of the file.
        redactor: takes the secrets out of all that is read.
    """

    def __init__(self, path: Path, redactor: Redactor) -> None:
        self.path = path
        self._redactor = redactor

    def tail(self) -> str:
        """Return the last lines, without secrets; nothing when there is no file."""
        try:
            with self.path.open("rb") as log:
                log.seek(0, os.SEEK_END)
                log.seek(max(0, log.tell() - LOG_TAIL_BYTES - LONGEST_SECRET))
                text = self._redactor.redact(log.read().decode("utf-8", errors="replace"))
        except OSError:
            return ""
        return "\n".join(text[-LOG_TAIL_BYTES:].splitlines()[-LOG_TAIL_LINES:])

    def read(self, place: int) -> tuple[str, int]:
        """Return the whole lines that begin at or behind a place, without secrets.

        A line that is still being printed waits for its end, lest a secret in it be seen in two halves. For the same
        reason nothing is read from the middle of a line, where a place may be once the log was cut.

        Args:
            place: bytes from the beginning, as the call before returned it; 0 at first.

        Returns:
            The lines, and the place to go on from.
        """
        try:
            with self.path.open("rb") as log:
                if log.seek(0, os.SEEK_END) < place:
                    place = 0
                log.seek(max(0, place - 1))
                before = log.read(1) if place else b"\n"
                data = log.read(MOST_READ)
        except OSError:
            return "", place
        first = 0 if LINE_END.match(before) else find_line(data)
        last = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        if last > first:
            return self._redactor.redact(data[first:last].decode("utf-8", errors="replace")), place + last
        if first == 0 and len(data) == MOST_READ:
            return f"[a line of more than {MOST_READ} bytes was left out]\n", place + len(data)
        return "", place + first

    def append(self, lines: str) -> None:
        """Add what was printed elsewhere, and bound the file; a full disk costs these lines and nothing else."""
        with suppress(OSError), self.path.open("a", encoding="utf-8", newline="") as log:
            log.write(lines)
        self.bound()

    def bound(self) -> None:
        """Cut a file that is too long down to its end; the processes go on adding to it."""
        with suppress(OSError):
            size = self.path.stat().st_size
            if size > LOG_LIMIT:
                tail = self.tail()
                os.truncate(self.path, 0)
                with self.path.open("a", encoding="utf-8") as log:
                    log.write(f"[{size} bytes of log were deleted but for this end]\n{tail}\n")

    def while_waiting(self, cancelled: Callable[[], bool]) -> Callable[[], bool]:
        """Return what to poll in place of `cancelled`: it also bounds the file."""

        def poll() -> bool:
            self.bound()
            return cancelled()

        return poll


def find_line(data: bytes) -> int:
    """Return where the first line begins that begins in `data`, or its length."""
    end = LINE_END.search(data)
    return end.end() if end else len(data)
