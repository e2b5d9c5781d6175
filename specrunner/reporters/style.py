"""Colour: when it is used, and what it means."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TextIO

from specrunner.results import Verdict

_CODES = {"bold": "1", "dim": "2", "good": "32", "warn": "33", "bad": "31;1", "note": "36"}

VERDICT_STYLES: dict[Verdict, str] = {
    Verdict.PASSED: "good",
    Verdict.FAILED: "bad",
    Verdict.ERROR: "bad",
    Verdict.XPASSED: "bad",
    Verdict.XFAILED: "warn",
    Verdict.SKIPPED: "warn",
    Verdict.INCONCLUSIVE: "warn",
}


class Palette:
    """Paints text, or leaves it as it is.

    Args:
        enabled: whether escape codes are written.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled

    def paint(self, text: str, style: str) -> str:
        """Return `text` in a style of `bold`, `dim`, `good`, `warn`, `bad` and `note`."""
        return f"\x1b[{_CODES[style]}m{text}\x1b[0m" if self.enabled and text else text


PLAIN = Palette(False)


def wants_color(mode: str, stream: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Decide whether to colour what goes to `stream`.

    `always` and `never` decide; under `auto` NO_COLOR says no, FORCE_COLOR says yes, and otherwise a terminal is
    coloured.
    """
    if mode != "auto":
        return mode == "always"
    if environment.get("NO_COLOR"):
        return False
    if environment.get("FORCE_COLOR", "0") not in ("", "0", "false"):
        return True
    return is_terminal(stream) and environment.get("TERM") != "dumb"


def is_terminal(stream: TextIO) -> bool:
    """Tell whether `stream` is a terminal; a closed one is not."""
    try:
        return stream.isatty()
    except (ValueError, AttributeError):
        return False
