"""A calibration as text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from specrunner.calibration.noise import SAFETY, Noise
from specrunner.calibration.rewriting import format_limit
from specrunner.words import plural


def format_noises(noises: Sequence[Noise]) -> Iterator[str]:
    """Yield a block for each tolerance entry, a line for each of its limits."""
    before = ""
    for noise in noises:
        limit = noise.limit
        title = f"{limit.location}  {limit.pattern}"
        if title != before:
            yield title
            before = title
        yield "  " + describe_noise(noise)
    if noises:
        runs = max(len(noise.shares) for noise in noises)
        yield ""
        yield (
            f"{plural(len(noises), 'limit')}, up to {plural(runs, 'run')} each. Noise is given as a share of the "
            f"stated limit; the suggestion is {SAFETY} times its 99th percentile."
        )


def describe_noise(noise: Noise) -> str:
    """Return one limit's line: stated, noise, suggestion, and the alarms to expect of both."""
    limit, runs = noise.limit, len(noise.shares)
    if not limit.parameter:
        broken = sum(not math.isfinite(share) or share > 0 for share in noise.shares)
        return f"{limit.rule}: broken by {broken} of {plural(runs, 'run')}"
    stated = f"{limit.rule}.{limit.parameter} {format_limit(limit.stated)}"
    used = f"noise {_percent(noise.high)} at p99, {_percent(noise.largest)} at most, {noise.alarms} of {runs} beyond"
    if noise.suggested is None:
        return f"{stated}: {used}; no number follows from it"
    alarms, bound = noise.expect_alarms()
    expected = f"{alarms} of {runs} held-out runs beyond it, at most {bound:.2%} expected"
    return f"{stated}: {used}; suggested {format_limit(noise.suggested)}, {expected}"


def _percent(share: float) -> str:
    return f"{share:.0%}" if math.isfinite(share) else "more than any number"
