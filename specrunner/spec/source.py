"""A spec file as it was read: its text, its tree, and the diagnostics of the text itself.

A broken file is a value like any other: reading never raises, whatever the file holds.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specrunner.spec.diagnostics import Diagnostic
from specrunner.spec.model import Location
from specrunner.spec.syntax import Problem, Span
from specrunner.spec.tree import build_tree

MAX_BYTES = 16 * 2**20
"""Size of the largest spec file that is read."""

_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")
_BREAK = re.compile("\r\n|\r|\n")
_WIDE_ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x00\x00\xfe\xff": "UTF-32"}


@dataclass(frozen=True, slots=True)
class Source:
    """One spec file.

    Attributes:
        path: the file as the user named it, with forward slashes.
        text: its content; "" when it could not be decoded.
        root: the document (`tree.Map`, `tree.Seq` or a scalar); None when there is nothing to go on with.
        diagnostics: what is wrong with the text.
        odd_numbers: spans of the infinite and not-a-number scalars in it.
    """

    path: str
    text: str = ""
    root: Any = None
    diagnostics: tuple[Diagnostic, ...] = ()
    odd_numbers: tuple[Span, ...] = ()
    _breaks: list[int] = field(default_factory=list, compare=False, repr=False)
    _lines: dict[int, str] = field(default_factory=dict, compare=False, repr=False)

    def locate(self, offset: int) -> Location:
        """Return the line and column of a character offset into the text."""
        if not self._breaks:
            self._breaks.append(0)
            self._breaks.extend(match.end() for match in _BREAK.finditer(self.text))
        line = bisect_right(self._breaks, offset)
        return Location(self.path, line, offset - self._breaks[line - 1] + 1)

    def line(self, number: int) -> str:
        """Return the text of a line (from 1), without its break: one string, however many diagnostics show it."""
        if number not in self._lines:
            self._lines[number] = self._read_line(number)
        return self._lines[number]

    def _read_line(self, number: int) -> str:
        start = self._breaks[number - 1] if number <= len(self._breaks) else len(self.text)
        match = _BREAK.search(self.text, start)
        return self.text[start : match.start() if match else len(self.text)]

    def diagnose(
        self, code: str, message: str, span: Span, help: str | None = None, notes: tuple[str, ...] = ()
    ) -> Diagnostic:
        """Make a diagnostic that points at `span` of this file."""
        start, end = self._trim(span)
        location = self.locate(start)
        return Diagnostic(code, message, location, self.line(location.line), max(1, end - start), help, notes)

    def _trim(self, span: Span) -> Span:
        """Move a span that begins at the end of the text to the last visible character."""
        start, end = span
        if start >= len(self.text):
            start = len(self.text.rstrip())
            end = start + 1
        return start, end


def read_source(path: str | Path) -> Source:
    """Read a spec file.

    Args:
        path: the file.
    """
    name = Path(path).as_posix()
    try:
        with Path(path).open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        return _refuse(name, "unreadable-file", f"the file cannot be read: {error.strerror or error}")
    if len(data) > MAX_BYTES:
        return _refuse(
            name, "too-large", f"the file is larger than {MAX_BYTES >> 20} MiB", "split it into several specs"
        )
    return parse_bytes(data, name)


def parse_bytes(data: bytes, name: str) -> Source:
    """Decode and parse the content of a spec file."""
    for mark, encoding in _WIDE_ENCODINGS.items():
        if data.startswith(mark):
            return _refuse(
                name, "encoding", f"the file is {encoding}, not UTF-8", "save it as UTF-8 without a byte order mark"
            )
    if data.startswith(b"\xef\xbb\xbf"):
        return _refuse(
            name, "encoding", "the file begins with a byte order mark", "save it as UTF-8 without a byte order mark"
        )
    try:
        return parse_text(data.decode("utf-8"), name)
    except UnicodeDecodeError as error:
        readable = Source(name, data[: error.start].decode("utf-8") + "\ufffd")
        at = error.start and len(readable.text) - 1
        message = f"byte 0x{data[error.start]:02x} is not UTF-8"
        found = readable.diagnose("encoding", message, (at, at + 1), "save the file as UTF-8")
        return Source(name, diagnostics=(found,))


def parse_text(text: str, name: str) -> Source:
    """Parse the text of a spec."""
    bare = Source(name, text)
    forbidden = _FORBIDDEN.search(text)
    if forbidden:
        code = ord(forbidden.group())
        found = bare.diagnose(
            "control-character",
            f"character U+{code:04X} cannot stand in YAML",
            forbidden.span(),
            f'write it as an escape in double quotes: "\\u{code:04x}"' if not 0xD800 <= code <= 0xDFFF else "remove it",
        )
        return Source(name, text, diagnostics=(found,))
    tree = build_tree(text)
    problems = [_diagnose(bare, problem) for problem in tree.problems]
    if tree.complete and tree.root is None and not problems:
        problems.append(_empty(bare))
    return Source(name, text, tree.root, tuple(problems), tree.odd_numbers)


def _diagnose(source: Source, problem: Problem) -> Diagnostic:
    notes: tuple[str, ...] = ()
    if problem.related is not None:
        text, span = problem.related
        notes = (f"{text} at line {source.locate(source._trim(span)[0]).line}",)
    return source.diagnose(problem.code, problem.message, problem.span, problem.help, notes)


def _empty(source: Source) -> Diagnostic:
    advice = "a spec begins with `version: 1` and lists its `cases`"
    return Diagnostic("empty-file", "the file holds no spec", Location(source.path, 1, 1), help=advice)


def _refuse(name: str, code: str, message: str, help: str | None = None) -> Source:
    return Source(name, diagnostics=(Diagnostic(code, message, Location(name, 1, 1), help=help),))
