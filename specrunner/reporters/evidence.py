"""Reads a case's checks the way an engineer would: where it first went wrong, by how much, and how it grew."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specrunner.results import CheckResult

_STREAM = re.compile(r"embeddings|layers\.\d+\.output|final_norm|logits")
_GROWTH = ("relative_l2", "max_relative_l2", "max_abs", "max_ulp")
"""Measurements that tell the growth of an error from layer to layer, the most telling first."""


@dataclass(frozen=True, slots=True)
class GrowthRow:
    """One tensor of the residual stream.

    Attributes:
        subject: its name.
        value: the measurement.
        passed: whether every check of this tensor holds.
        skipped: how many tensors between the row before and this one are left out.
    """

    subject: str
    value: Any
    passed: bool
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class Growth:
    """How an error grows through the model.

    Attributes:
        metric: the measurement's name.
        rows: in model order.
    """

    metric: str
    rows: tuple[GrowthRow, ...]


def count_later_failures(checks: Sequence[CheckResult]) -> tuple[int, int]:
    """Return how many checks after the first failed one failed too, and how many came after it."""
    first = next((index for index, check in enumerate(checks) if not check.passed), len(checks))
    later = checks[first + 1 :]
    return sum(not check.passed for check in later), len(later)


def trace_growth(checks: Sequence[CheckResult], most: int = 10) -> Growth | None:
    """Return the error after the embeddings, every layer, the final norm and the logits.

    Args:
        checks: a case's checks in model order.
        most: how many rows to keep; those around the first failure and both ends stay.

    Returns:
        None when fewer than two of these tensors share a measurement.
    """
    stream = [check for check in checks if _STREAM.fullmatch(check.subject)]
    for metric in _GROWTH:
        values = {check.subject: check.measurements[metric] for check in stream if metric in check.measurements}
        if len(values) >= 2:
            wrong = {check.subject for check in stream if not check.passed}
            rows = [GrowthRow(subject, value, subject not in wrong) for subject, value in values.items()]
            return Growth(metric, tuple(_thin(rows, most)))
    return None


def _thin(rows: Sequence[GrowthRow], most: int) -> list[GrowthRow]:
    if len(rows) <= most:
        return list(rows)
    first = next((index for index, row in enumerate(rows) if not row.passed), 0)
    wanted = [0, len(rows) - 1, len(rows) - 2, first, first - 1, first + 1, 1]
    step = max(1, len(rows) // max(1, most - 5))
    wanted += list(range(0, len(rows), step))
    kept = sorted(dict.fromkeys(index for index in wanted if 0 <= index < len(rows)))
    kept = sorted(sorted(kept, key=lambda index: wanted.index(index))[:most])
    before = -1
    thinned = []
    for index in kept:
        row = rows[index]
        thinned.append(GrowthRow(row.subject, row.value, row.passed, index - before - 1))
        before = index
    return thinned


def describe_facts(facts: Mapping[str, Any]) -> list[str]:
    """Return what an engine really ran, a few words each: model class, versions, device, attention, patches."""
    words = [str(facts["model_class"])] if facts.get("model_class") else []
    versions = facts.get("versions")
    if isinstance(versions, Mapping) and versions:
        words.append(", ".join(f"{package} {version}" for package, version in list(versions.items())[:3]))
    words += [str(facts[name]) for name in ("device", "attention_backend") if facts.get(name)]
    patches = facts.get("patches")
    if isinstance(patches, Sequence) and not isinstance(patches, str) and patches:
        words.append("patched: " + ", ".join(map(str, patches)))
    return words
