"""Words that every floor says the same way: counts, guesses at a name, how a process ended, widths, visible escapes."""

from __future__ import annotations

import signal
import unicodedata
from collections.abc import Iterable
from contextlib import suppress

_LONGEST_WORD = 100


def plural(count: int, noun: str, many: str | None = None) -> str:
    """Return `1 case`, `2 cases`; `many` where adding an s is not enough."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {many or noun + 's'}"


def suggest(word: str, candidates: Iterable[str], *, cutoff: float = 0.6, most: int = 256) -> str | None:
    """Return the candidate that `word` was probably meant to be, whatever its case, or None.

    Args:
        word: what was written.
        candidates: what could have been meant.
        cutoff: how like it must be, of 1, by `difflib.SequenceMatcher.ratio`.
        most: of how many candidates one is still looked for; ten thousand take half a second.
    """
    by_folded = {candidate.casefold(): candidate for candidate in candidates}
    if len(word) > _LONGEST_WORD or len(by_folded) > most:
        return None  # to look for a near one would take seconds
    import difflib

    close = difflib.get_close_matches(word.casefold(), by_folded, n=1, cutoff=cutoff)
    return by_folded[close[0]] if close else None


def did_you_mean(word: str, candidates: Iterable[str], *, cutoff: float = 0.6, most: int = 256) -> str | None:
    """Return a help text that asks for the candidate next to `word`, or None where none is near; see `suggest`."""
    guess = suggest(word, candidates, cutoff=cutoff, most=most)
    return f"did you mean `{guess}`?" if guess else None


def describe_exit(status: int) -> str:
    """Return how a process ended: `exited with status 3`, `was killed by SIGKILL`.

    Args:
        status: below 0 for a signal, of which the real-time ones between the first and the last have no name.
    """
    if status >= 0:
        return f"exited with status {status}"
    name = f"signal {-status}"
    with suppress(ValueError):
        name = signal.Signals(-status).name
    return f"was killed by {name}"


def count_cells(text: str) -> int:
    """Return the cells `text` takes in a terminal: wide characters take two, combining and invisible ones none."""
    return sum(map(_count_cells, text))


def _count_cells(char: str) -> int:
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1


def escape_character(char: str) -> str:
    r"""Return a character as a Python literal would show it: `\x1b`, `\u202e`, `\U000e0001`."""
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def escape_controls(text: str) -> str:
    """Return `text` with everything a terminal could act on (controls, lone surrogates, bidi marks) as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == " " else escape_character(c) for c in text)
