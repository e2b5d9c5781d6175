"""Reads a case's checks the way an engineer would: where it first went wrong, by how much, and how it grew."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specrunner.results import CheckResult, find_side
from specrunner.words import plural

_STREAM = re.compile(r"embeddings|layers\.\d+\.output|final_norm|logits|passes\.\d+\.logits")
"""Tensors that every error passes through: the residual stream after each layer, and what comes of it."""

GROWTH_MEASURE = "relative_l2"
"""The measurement that is followed: the L2 norm of the difference over that of the reference."""


@dataclass(frozen=True, slots=True)
class GrowthRow:
    """One tensor on the way through the model.

    Attributes:
        subject: its name.
        value: the relative L2 error of the whole tensor.
        worst: that of the worst token, or None.
        token: the worst token, or None.
        passed: whether every check of this tensor holds.
        skipped: how many rows between the one before and this one are left out.
    """

    subject: str
    value: Any
    worst: Any
    token: int | None
    passed: bool
    skipped: int = 0


def count_later_failures(checks: Sequence[CheckResult]) -> tuple[int, int]:
    """Return how many checks after the first failed one failed too, and how many came after it."""
    first = next((index for index, check in enumerate(checks) if check.fails), len(checks))
    later = checks[first + 1 :]
    return sum(check.fails for check in later), len(later)


def describe_golden_failures(checks: Sequence[CheckResult]) -> str:
    """Return how many checks against the golden failed where one against the reference failed before, or ""."""
    kept = [check for check in checks if check.against == "golden"]
    failed = 0 if find_side(checks) == "golden" else sum(check.fails for check in kept)
    return f"{failed} of {plural(len(kept), 'check')} against the golden failed too" if failed else ""


def describe_golden(checks: Sequence[CheckResult]) -> str:
    """Return which golden a case was held against, when it was made, and whether it is another device's, or ""."""
    found = next((check.measurements for check in checks if check.against == "golden"), {})
    named = (found.get(name) for name in ("golden", "golden_date", "golden_fallback"))
    return "  ".join(str(text) for text in named if text)


def trace_growth(checks: Sequence[CheckResult], most: int) -> list[GrowthRow]:
    """Return how the error grows from the embeddings to the logits.

    Args:
        checks: a case's checks against one side, in model order.
        most: how many rows to keep; those around the first failure and both ends stay.

    Returns:
        The tensors of the residual stream and the first that went wrong; empty when fewer than two were measured.
    """
    first = next((check.subject for check in checks if check.fails), None)
    wrong = {check.subject for check in checks if check.fails}
    rows = {
        check.subject: GrowthRow(
            check.subject,
            check.measurements[GROWTH_MEASURE],
            check.measurements.get("max_relative_l2"),
            check.measurements.get("max_relative_l2_token"),
            check.subject not in wrong,
        )
        for check in checks
        if GROWTH_MEASURE in check.measurements and (_STREAM.fullmatch(check.subject) or check.subject == first)
    }
    return _thin(list(rows.values()), most) if len(rows) > 1 else []


def _thin(rows: Sequence[GrowthRow], most: int) -> list[GrowthRow]:
    """Leave rows out until `most` are left: first those far from the first failure and from both ends."""
    first = next((index for index, row in enumerate(rows) if not row.passed), 0)
    last = len(rows) - 1
    near = [first, 0, last, first - 1, first + 1, last - 1, 1]
    even = [round(index * last / most) for index in range(most + 1)]
    wanted = [index for index in dict.fromkeys([*near, *even, *range(len(rows))]) if 0 <= index <= last]
    thinned: list[GrowthRow] = []
    before = -1
    for index in sorted(wanted[:most]):
        thinned.append(dataclasses.replace(rows[index], skipped=index - before - 1))
        before = index
    return thinned


def describe_facts(facts: Mapping[str, Any]) -> list[str]:
    """Return what an engine really ran, a few words each: model class, versions, device, attention, patches."""
    words = [str(facts["model_class"]).rpartition(".")[2]] if facts.get("model_class") else []
    versions = facts.get("versions")
    if isinstance(versions, Mapping):
        names = [name for name, version in versions.items() if name != "python" and version != "absent"]
        words += [", ".join(f"{name} {versions[name]}" for name in names[:2])] if names else []
    words += [str(facts[name]) for name in ("device", "attention_backend") if facts.get(name)]
    request = facts.get("request")
    if isinstance(request, Mapping) and request.get("decode_loop"):
        words.append(f"decoded by {request['decode_loop']}")
    patches = facts.get("patches")
    if isinstance(patches, Sequence) and not isinstance(patches, str) and patches:
        words.append("patched: " + ", ".join(map(str, patches)))
    return words
