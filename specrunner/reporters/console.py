"""Lines to a stream that may be gone, or may not know every character."""

from __future__ import annotations

import contextlib
import os
import shutil
import unicodedata
from typing import TextIO

from specrunner.reporters.escape import disarm
from specrunner.reporters.json import silence_stream

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


def fit_cells(text: str, width: int) -> str:
    """Cut `text` to `width` terminal cells, with an ellipsis where something was cut; wide characters take two."""
    used = 0
    for index, character in enumerate(text):
        cells = _cells(character)
        if used + cells > width:
            return _cut(text[:index], width - 1) + "…"
        used += cells
    return text


def _cut(text: str, width: int) -> str:
    while sum(map(_cells, text)) > width:
        text = text[:-1]
    return text


def _cells(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
