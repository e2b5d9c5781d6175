"""Verdicts and numbers as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specrunner.results import Verdict
from specrunner.words import plural

VERDICT_WORDS: dict[Verdict, str] = {
    Verdict.FAILED: "failed",
    Verdict.ERROR: "errors",
    Verdict.XPASSED: "xpassed",
    Verdict.INCONCLUSIVE: "inconclusive",
    Verdict.PASSED: "passed",
    Verdict.XFAILED: "xfailed",
    Verdict.SKIPPED: "skipped",
}
"""How a count of each verdict is named, the worst first."""


def describe_counts(counts: Mapping[Verdict, int]) -> list[tuple[Verdict, str]]:
    """Return `(verdict, "2 failed")` for every verdict that occurred, the worst first."""
    parts = []
    for verdict, word in VERDICT_WORDS.items():
        count = counts.get(verdict, 0)
        if count:
            parts.append((verdict, plural(count, "error") if verdict is Verdict.ERROR else f"{count:,} {word}"))
    return parts


def format_seconds(seconds: float) -> str:
    """Return `0.41 s`, `12.3 s`, `4 min 05 s` or `1 h 02 min`."""
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def format_number(value: Any) -> str:
    """Return a measurement or limit in at most five significant digits; what is not a number as it is."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 100_000 else str(value)
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list | tuple | Mapping) and not value:
        return "none"
    if isinstance(value, list | tuple):
        shown = ", ".join(format_number(item) for item in value[:8])
        return f"[{shown}, … {len(value)} in all]" if len(value) > 8 else f"[{shown}]"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_format_nested(item)}" for key, item in value.items())
    return "-" if value is None else str(value)


def _format_nested(value: Any) -> str:
    return f"({format_number(value)})" if isinstance(value, Mapping) else format_number(value)
