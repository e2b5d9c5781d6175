"""Diagnostics: what is wrong in a spec, where, and what to do about it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TextIO

from specrunner.spec.model import Location
from specrunner.words import count_cells, escape_controls, plural, suggest

MAX_LINE = 120
"""Columns of a source line that are shown; a longer line is cut around the culprit."""
_TAB = 4
_FEW = 8
_LONGEST_MESSAGE = 1000
_MEANT = {"gpu": "cuda"}
"""Other words for a name than those that are spelt like it."""

ENOUGH = 500
"""Problems of one file after which no further ones are looked for."""
_RED, _BLUE, _GREEN, _BOLD, _RESET = "\x1b[1;31m", "\x1b[1;34m", "\x1b[1;32m", "\x1b[1m", "\x1b[0m"


Report = Callable[..., bool]
"""Reports `(code, message, help, *path, at_key=False)` of a case's fields and returns False."""


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One problem in a spec.

    Attributes:
        code: what kind of problem, e.g. `unknown-key`; stable, so that it can be searched for.
        message: a lower-case sentence without a full stop.
        location: where the culprit begins.
        line_text: the source line as it stands in the file, without its line break, or "".
        width: characters of `line_text` the caret underlines, at least 1.
        help: what to do about it, or None.
        notes: further facts, e.g. where a key was first written.
    """

    code: str
    message: str
    location: Location
    line_text: str = ""
    width: int = 1
    help: str | None = None
    notes: tuple[str, ...] = ()

    def render(self, color: bool = False) -> str:
        """Return the diagnostic as lines of text, without a final line break."""
        red, blue, green, bold, reset = (_RED, _BLUE, _GREEN, _BOLD, _RESET) if color else ("",) * 5
        location = self.location
        gutter = " " * len(str(location.line))
        lines = [
            f"{red}error[{self.code}]{reset}{bold}: {_brief(self.message)}{reset}",
            f"{gutter}{blue}-->{reset} {_brief(location.path)}:{location.line}:{location.column}",
        ]
        if self.line_text.strip():
            source, caret = _underline(self.line_text, location.column - 1, self.width)
            lines += [
                f"{gutter} {blue}|{reset}",
                f"{blue}{location.line} |{reset} {source}",
                f"{gutter} {blue}|{reset} {red}{caret}{reset}",
            ]
        lines += [f"{gutter} {blue}={reset} note: {_brief(note)}" for note in self.notes]
        if self.help:
            lines.append(f"{gutter} {blue}={reset} {green}help{reset}: {_brief(self.help)}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.render()


def sort_diagnostics(diagnostics: Iterable[Diagnostic]) -> tuple[Diagnostic, ...]:
    """Return the distinct diagnostics by file (in the order given), line and column."""
    distinct = list(dict.fromkeys(diagnostics))
    order = {path: rank for rank, path in enumerate(dict.fromkeys(d.location.path for d in distinct))}
    return tuple(sorted(distinct, key=lambda d: (order[d.location.path], d.location.line, d.location.column, d.code)))


def accepted_values(word: str, candidates: Sequence[str], what: str = "accepted") -> str:
    """Return a help text: did-you-mean for a close candidate; all candidates where they are few or none is close."""
    names = sorted(dict.fromkeys(candidates)) if len(candidates) > 6 else list(dict.fromkeys(candidates))
    meant = _MEANT.get(word.casefold())
    guess = meant if meant in names else suggest(word, names)
    listed = ", ".join(f"`{name}`" for name in names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    if not names:
        return f"{what}: none"
    if guess and len(names) > _FEW:
        return f"did you mean `{guess}`?"
    return f"did you mean `{guess}`? {what}: {listed}" if guess else f"{what}: {listed}"


def _brief(text: str) -> str:
    """Return text that may quote a value of any length, without controls and cut in the middle where it is long."""
    if len(text) > _LONGEST_MESSAGE:
        half = _LONGEST_MESSAGE // 2
        text = f"{text[:half]} … {text[-half:]}"
    return escape_controls(text)


def _underline(line: str, column: int, width: int) -> tuple[str, str]:
    """Return the line as it can be shown, and the carets under `width` of its characters from `column` (from 0)."""
    column = min(column, len(line))
    end = min(max(column + width, column + 1), max(len(line), column + 1))
    start = 0
    if len(line) > MAX_LINE and end > MAX_LINE:
        start = max(0, column - MAX_LINE // 3)
    stop = start + MAX_LINE
    shown: list[str] = []
    carets: list[str] = []
    position = 0
    for index, char in enumerate(line[start:stop], start):
        text = " " * (_TAB - position % _TAB) if char == "\t" else escape_controls(char)
        columns = count_cells(text)
        position += columns
        shown.append(text)
        if index < end:
            carets.append(("^" if index >= column else " ") * columns)
    if not any("^" in part for part in carets):  # behind the line's end, or on a mark that takes no column
        carets.append("^")
    prefix = "…" if start else ""
    suffix = "…" if stop < len(line) else ""
    return prefix + "".join(shown).rstrip() + suffix, " " * len(prefix) + "".join(carets)


def print_diagnostics(diagnostics: Sequence[Diagnostic], stream: TextIO, color: bool | None = None) -> None:
    """Write diagnostics, an empty line between them, and how many there are.

    Args:
        diagnostics: what to write, in this order.
        stream: where to.
        color: whether to colour them; None asks whether `stream` is a terminal and `NO_COLOR` is unset.
    """
    if color is None:
        color = stream.isatty() and not os.environ.get("NO_COLOR")
    for diagnostic in diagnostics:
        stream.write(diagnostic.render(color) + "\n\n")
    files = len({diagnostic.location.path for diagnostic in diagnostics})
    stream.write(f"{plural(len(diagnostics), 'problem')} in {plural(files, 'file')}\n")
