"""The matrix of faults and cases: what was caught where, and by what margin."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from specrunner.errors import ExitCode, FaultInapplicable
from specrunner.faults.model import Fault
from specrunner.proof.shares import Share, largest_share
from specrunner.results import CaseResult, Verdict


class Outcome(StrEnum):
    """What a case said of an engine with a fault.

    `CAUGHT`: it failed. `MISSED`: something it measures moved, within the limits. `UNSEEN`: nothing that it measures
    moved. `INAPPLICABLE`: the fault has no place in this engine or model. `ERROR`: no evidence.
    """

    CAUGHT = "caught"
    MISSED = "missed"
    UNSEEN = "unseen"
    INAPPLICABLE = "inapplicable"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Entry:
    """One fault in one case.

    Attributes:
        fault: the fault's name.
        case: the id of the case, without the fault.
        outcome: what happened.
        share: the largest share of a limit, or None without evidence.
        first: the first check that failed, as `tensor (rule)`, or "".
        message: why there is no evidence, or "".
    """

    fault: str
    case: str
    outcome: Outcome
    share: Share | None = None
    first: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One fault over all cases of one candidate.

    Attributes:
        fault: the fault.
        candidate: `engine/dtype`.
        entries: one a case, in the order of the cases.
    """

    fault: Fault
    candidate: str
    entries: tuple[Entry, ...]

    @property
    def dtype(self) -> str:
        """The candidate's dtype."""
        return self.candidate.partition("/")[2]

    def having(self, *outcomes: Outcome) -> list[Entry]:
        """Return the entries with one of these outcomes."""
        return [entry for entry in self.entries if entry.outcome in outcomes]

    @property
    def caught(self) -> list[Entry]:
        """The cases that failed."""
        return self.having(Outcome.CAUGHT)

    @property
    def why_invisible(self) -> str:
        """Why the fault cannot be seen in this candidate, or ""."""
        return self.fault.why_invisible(self.dtype)

    @property
    def survives(self) -> bool:
        """Whether the specs should have caught the fault and did not."""
        evidence = self.having(Outcome.CAUGHT, Outcome.MISSED, Outcome.UNSEEN)
        return bool(evidence) and not self.caught and not self.why_invisible

    @property
    def alarms(self) -> list[Entry]:
        """The cases that failed although the engine is as right as without the change."""
        return self.caught if self.fault.legitimate else []

    @property
    def margins(self) -> list[float]:
        """The largest share of a limit in each case that failed, ascending."""
        return sorted(entry.share.value for entry in self.caught if entry.share is not None)

    @property
    def largest(self) -> Entry | None:
        """The entry with the largest share of a limit."""
        shared = [entry for entry in self.entries if entry.share is not None]
        return max(shared, key=lambda entry: entry.share.value if entry.share else 0.0, default=None)


@dataclass(frozen=True, slots=True)
class Matrix:
    """A whole proof.

    Attributes:
        faults: a row for each fault and candidate.
        variants: likewise for the legitimate variants.
        healthy: what the cases said of the engine as it is: `MISSED` stands for a case that passes.
        skipped: ids of the cases that did not run, with the reason.
    """

    faults: tuple[Row, ...]
    variants: tuple[Row, ...]
    healthy: tuple[Entry, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def survivors(self) -> list[Row]:
        """Faults that should have been caught."""
        return [row for row in self.faults if row.survives]

    @property
    def false_alarms(self) -> list[Entry]:
        """Cases that failed on a legitimate variant, or on the engine as it is."""
        healthy = [entry for entry in self.healthy if entry.outcome is Outcome.CAUGHT]
        return [*healthy, *(entry for row in self.variants for entry in row.alarms)]

    @property
    def errors(self) -> list[Entry]:
        """Entries without evidence, but for those of a fault that another case caught."""
        rows = (*(row for row in self.faults if not row.caught), *self.variants)
        unproven = [entry for row in rows for entry in row.having(Outcome.ERROR)]
        return [entry for entry in self.healthy if entry.outcome is Outcome.ERROR] + unproven

    @property
    def exit_code(self) -> ExitCode:
        """0: every visible fault is caught and nothing else; 1: not so; 10: no evidence; 5: nothing was proven."""
        if self.survivors or self.false_alarms:
            return ExitCode.FAILED
        if self.errors:
            return ExitCode.ERRORS
        proven = any(row.caught for row in self.faults) or any(row.having(Outcome.MISSED) for row in self.variants)
        proven = proven or any(row.having(Outcome.UNSEEN) for row in self.variants)
        return ExitCode.PASSED if proven else ExitCode.NOTHING_VERIFIED

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object with every entry."""
        return {
            "version": 1,
            "exit_code": int(self.exit_code),
            "faults": [_row_to_json(row) for row in self.faults],
            "variants": [_row_to_json(row) for row in self.variants],
            "healthy": [_entry_to_json(entry) for entry in self.healthy],
            "skipped": dict(self.skipped),
        }


def judge_result(fault: str, case: str, result: CaseResult, healthy: CaseResult | None) -> Entry:
    """Say what a case's result means for the fault that was planted.

    Args:
        fault: the fault's name; "" for the engine as it is.
        case: the case's id without the fault.
        result: what the case said.
        healthy: what it said of the engine as it is.
    """
    if result.failure is not None and result.failure.kind == FaultInapplicable.kind:
        return Entry(fault, case, Outcome.INAPPLICABLE, message=result.failure.message)
    if result.verdict not in (Verdict.PASSED, Verdict.FAILED):
        message = result.failure.message if result.failure is not None else str(result.verdict)
        return Entry(fault, case, Outcome.ERROR, message=message)
    share = largest_share(result.checks)
    if result.verdict is Verdict.FAILED:
        failed = next(check for check in result.checks if check.fails)
        return Entry(fault, case, Outcome.CAUGHT, share, f"{failed.subject} ({failed.rule})", failed.message)
    same = healthy is not None and measurements_of(healthy) == measurements_of(result)
    return Entry(fault, case, Outcome.UNSEEN if same else Outcome.MISSED, share)


def measurements_of(result: CaseResult) -> list[Any]:
    """Return all that a case measured, to tell whether anything moved."""
    return [(check.subject, check.rule, dict(check.measurements)) for check in result.checks]


def make_rows(faults: Sequence[Fault], entries: Mapping[str, Iterable[tuple[str, Entry]]]) -> tuple[Row, ...]:
    """Group entries into a row for each fault and candidate.

    Args:
        faults: in the order of the rows.
        entries: by fault, (candidate, entry) in the order of the cases.
    """
    rows = []
    for fault in faults:
        by_candidate: dict[str, list[Entry]] = {}
        for candidate, entry in entries.get(fault.name, ()):
            by_candidate.setdefault(candidate, []).append(entry)
        rows += [Row(fault, candidate, tuple(found)) for candidate, found in by_candidate.items()]
    return tuple(rows)


def _row_to_json(row: Row) -> dict[str, Any]:
    return {
        "fault": row.fault.name,
        "area": row.fault.area,
        "story": row.fault.story,
        "candidate": row.candidate,
        "legitimate": row.fault.legitimate,
        "invisible": row.why_invisible,
        "caught": len(row.caught),
        "survives": row.survives,
        "entries": [_entry_to_json(entry) for entry in row.entries],
    }


def _entry_to_json(entry: Entry) -> dict[str, Any]:
    share = entry.share
    value = None if share is None else share.value if math.isfinite(share.value) else "inf"
    return {
        "case": entry.case,
        "outcome": str(entry.outcome),
        "share": value,
        "subject": share.subject if share else "",
        "rule": share.rule if share else "",
        "first": entry.first,
        "message": entry.message,
    }
