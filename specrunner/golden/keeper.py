"""What a run does with goldens: judges cases against them and, when asked, puts new ones up for review."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from specrunner.errors import GoldenError
from specrunner.plan.model import OWN_ROLES, select_repeat, split_role
from specrunner.results import CheckResult, Failure
from specrunner.spec.model import Case

if TYPE_CHECKING:  # the checks bring torch, which a run imports with its first judged case
    from specrunner.checks.evidence import LoadedCapture
    from specrunner.golden.kept import Golden
    from specrunner.sessions.captures import StoredCapture

WRITTEN, UNCHANGED, FAILED, REFUSED = "written", "unchanged", "failed", "refused"

Judgement = tuple[tuple[CheckResult, ...], Failure | None]


class Keeper:
    """Judges against goldens, and makes them.

    Args:
        update: put a new golden up for review where it is missing, differs or speaks of something else.
        reason: what a new golden's manifest says until it is accepted.
    """

    def __init__(self, update: bool = False, reason: str = "made by run --update-goldens") -> None:
        self._update = update
        self._reason = reason
        self._counts: Counter[str] = Counter()

    def judge(
        self,
        case: Case,
        captures: Mapping[str, StoredCapture],
        facts: Mapping[str, Mapping[str, Any]],
        checks: Sequence[CheckResult],
    ) -> Judgement:
        """Add what a case's golden says to what its reference says.

        Args:
            case: any case; one without a golden is left as it is, and so is a benchmark, which has a baseline.
            captures: by role; `candidate` and perhaps `forced`, `reference`, `peer`, `candidate#2` …
            facts: by role, of session and request.
            checks: those against the reference.

        Each repeat of the case is held against the golden. A new one is made of the first; every repeat that there is
        must then agree with it.

        Returns:
            All checks, and why there is no evidence: a golden that is missing, damaged or stale. When goldens are being
            updated, these and a difference from the golden are no failure, but a golden that must not be written is.
        """
        if case.golden is None or case.benchmark is not None:
            return tuple(checks), None
        from specrunner.checks.evidence import load_captures

        loaded = load_captures(captures)
        candidates = find_candidates(loaded)
        if not candidates:
            why = "there is no capture of the candidate to hold against the golden"
            return tuple(checks), Failure("golden-missing", why, role="golden")
        role = "candidate" if "candidate" in facts else "forced"
        golden, found, problem = self._compare(case, candidates[: case.repeat], facts[role], loaded)
        if not self._update:
            if problem is None:
                return (*checks, *found), None
            if any(check.fails and check.rule != "evidence" for check in checks):
                missing = CheckResult("golden", "evidence", False, problem.message, {}, {}, str(case.location))
                return (*checks, replace(missing, against="golden")), None
            return tuple(checks), Failure(problem.kind, problem.message, problem.help, role="golden")
        return self._refresh(case, candidates, facts[role], loaded, (tuple(checks), tuple(found)), golden)

    def _compare(
        self,
        case: Case,
        candidates: Sequence[LoadedCapture],
        facts: Mapping[str, Any],
        loaded: Mapping[str, LoadedCapture],
    ) -> tuple[Golden | None, list[CheckResult], GoldenError | None]:
        from specrunner.golden.check import check_golden, find_golden

        try:
            golden = find_golden(case, facts)
        except GoldenError as error:
            return None, [], error
        reference, peer = loaded.get("reference"), loaded.get("peer")
        found = [
            replace(describe_source(check, golden, facts), repeat=repeat)
            for repeat, candidate in enumerate(candidates, 1)
            for check in check_golden(case, candidate, golden, reference, peer)
        ]
        return golden, found, None

    def _refresh(
        self,
        case: Case,
        candidates: Sequence[LoadedCapture],
        facts: Mapping[str, Any],
        loaded: Mapping[str, LoadedCapture],
        both: tuple[tuple[CheckResult, ...], tuple[CheckResult, ...]],
        golden: Golden | None,
    ) -> Judgement:
        """Write a new golden where one is due; what the old one says is a trend of this run."""
        from specrunner.golden.keys import name_device
        from specrunner.golden.record import Captured, make_golden, write_new

        checks, found = both
        trends = tuple(replace(check, gates=False) for check in found)
        if case.expected_to_fail or any(check.fails for check in checks):
            self._counts[FAILED] += 1
            return (*checks, *trends), None
        own = name_device(str(facts.get("device", "unknown")))
        is_current = golden is not None and golden.slot.device == own and _has_settings(golden, case)
        if is_current and not any(check.fails for check in found):
            self._counts[UNCHANGED] += 1
            return (*checks, *found), None
        try:
            made = make_golden(
                case,
                [Captured(candidate, facts) for candidate in candidates],
                reason=self._reason,
                reference=loaded.get("reference"),
                peer=loaded.get("peer"),
            )
            write_new(made)
        except GoldenError as error:
            self._counts[REFUSED] += 1
            return (*checks, *trends), Failure(error.kind, error.message, error.help, role="golden")
        self._counts[WRITTEN] += 1
        numbers = {"golden": made.slot.label, "repeats": made.manifest.repeats, "agreement": made.manifest.agreement}
        written = CheckResult("golden", "update", True, "", numbers, {}, str(case.location), against="golden")
        return (*checks, *trends, written), None

    def summarize(self) -> list[str]:
        """Return the lines that close a run that updates goldens."""
        if not self._update:
            return []
        counts = self._counts
        parts = [
            (WRITTEN, "written for review"),
            (UNCHANGED, "unchanged"),
            (FAILED, "not written, since the case did not pass"),
            (REFUSED, "refused"),
        ]
        told = [f"{counts[name]} {text}" for name, text in parts if counts[name]]
        lines = [f"goldens: {', '.join(told) if told else 'no case that ran has one'}"]
        if counts[WRITTEN]:
            lines.append("look at them with: specrunner golden review")
        return lines


def find_candidates(loaded: Mapping[str, LoadedCapture]) -> list[LoadedCapture]:
    """Return what the candidate did on its own in each repeat, the first one first."""
    repeats = sorted({repeat for role, repeat in map(split_role, loaded) if role in OWN_ROLES})
    found = (find_candidate(select_repeat(loaded, repeat)) for repeat in repeats)
    return [candidate for candidate in found if candidate is not None]


def find_candidate(loaded: Mapping[str, LoadedCapture]) -> LoadedCapture | None:
    """Return what the candidate did on its own; under `near_tie`, its free run is told by the run that was led."""
    candidate, led = loaded.get("candidate"), loaded.get("forced")
    if candidate is None or led is None or candidate.output_token_ids is not None:
        return candidate or led
    return replace(candidate, output_token_ids=led.output_token_ids)


def describe_source(check: CheckResult, golden: Golden, facts: Mapping[str, Any]) -> CheckResult:
    """Note in a check which golden served, and whether it is another device's."""
    from specrunner.golden.keys import name_device

    own = name_device(str(facts.get("device", "unknown")))
    numbers: dict[str, Any] = {"golden": golden.slot.label, "golden_date": golden.manifest.date}
    if golden.slot.device != own:
        numbers["golden_fallback"] = f"{golden.slot.device} served for {own}"
    return replace(check, measurements={**check.measurements, **numbers})


def _has_settings(golden: Golden, case: Case) -> bool:
    choice = case.golden
    assert choice is not None
    return golden.manifest.settings == choice.settings
