"""Why a run did not begin, as reports tell it: each problem of invalid specs, or that nothing was selected."""

from __future__ import annotations

from dataclasses import dataclass

from specrunner.errors import SpecError, SpecrunnerError
from specrunner.secrets import own_redactor


@dataclass(frozen=True, slots=True)
class Problem:
    """One reason why no case ran.

    Attributes:
        path: the spec's, or "" where it is the fault of no spec.
        line: from 1, or 0 without a spec.
        column: likewise.
        code: what kind of problem, e.g. `unknown-key`.
        message: one line.
        help: what to do about it, or "".
        text: everything that the terminal says of it.
    """

    path: str
    line: int
    column: int
    code: str
    message: str
    help: str
    text: str

    @property
    def name(self) -> str:
        """`unknown-key at 12:5`."""
        return f"{self.code} at {self.line}:{self.column}" if self.path else self.code


def list_problems(error: SpecrunnerError) -> list[Problem]:
    """Return the problems of an error that ended a run before it began, in the order of files and lines."""
    redact = own_redactor().redact
    if isinstance(error, SpecError):
        return [
            Problem(
                one.location.path,
                one.location.line,
                one.location.column,
                one.code,
                redact(one.message),
                redact(one.help or ""),
                redact(one.render()),
            )
            for one in error.diagnostics
        ]
    text = f"error: {error.message}" + (f"\n  help: {error.help}" if error.help else "")
    return [Problem("", 0, 0, "nothing-verified", redact(error.message), redact(error.help or ""), redact(text))]
