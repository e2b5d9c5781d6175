"""Lines to a stream that may be gone, or may not know every character."""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TextIO

from specrunner.reporters.escape import disarm
from specrunner.words import count_cells

_ASCII = str.maketrans({"…": "...", "·": "-", "│": "|", "−": "-", "×": "x", "≤": "<=", "≥": ">="})
"""What our own typography becomes on a stream that is not Unicode."""


class Console:
    """Writes lines; a reader that has gone away (`specrunner run | head`) never stops the run.

    Args:
        stream: a text stream.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._gone = False

    def print(self, line: str = "") -> None:
        """Write one line and flush it."""
        self.write(disarm(line) + "\n")

    def write(self, text: str) -> None:
        """Write text and flush it; characters that the stream's encoding lacks become escapes."""
        if self._gone:
            return
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        if not self.can_show(text):
            text = text.translate(_ASCII)
        try:
            self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self.stream.flush()
        except (OSError, ValueError):
            self._gone = True
            silence_stream(self.stream)

    @property
    def width(self) -> int:
        """Columns of the terminal; 80 where there is none."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            return os.get_terminal_size(self.stream.fileno()).columns or 80
        return shutil.get_terminal_size().columns

    def can_show(self, text: str) -> bool:
        """Tell whether the stream's encoding has every character of `text`."""
        try:
            text.encode(getattr(self.stream, "encoding", None) or "utf-8")
        except UnicodeEncodeError:
            return False
        return True


def silence_stream(stream: TextIO) -> None:
    """Let a stream whose reader is gone swallow what is still written to it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)


def fit_cells(text: str, width: int) -> str:
    """Cut `text` to `width` terminal cells, with an ellipsis where something was cut; wide characters take two."""
    used = 0
    for index, character in enumerate(text):
        cells = count_cells(character)
        if used + cells > width:
            return _cut(text[:index], width - 1) + "…"
        used += cells
    return text


def _cut(text: str, width: int) -> str:
    while count_cells(text) > width:
        text = text[:-1]
    return text
