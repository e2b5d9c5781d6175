"""The printed plan: which sessions will start, what each will be asked, which cases will not run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from specrunner.errors import SKIPPING
from specrunner.plan.model import Foresight, Plan, PlannedCase, PlannedSession
from specrunner.words import plural


def format_plan(plan: Plan, foresight: Foresight | None = None) -> Iterator[str]:
    """Yield the lines of `run --plan`; without a foresight, everything runs."""
    running = [planned for planned in plan.cases if planned.skip is None]
    users = Counter(
        (evidence.session, planned.case.suite) for planned in running for evidence in planned.evidence.values()
    )
    asked = sum(len(planned.evidence) for planned in running)
    requests = sum(len(session.requests) for session in plan.sessions)
    yield (
        f"{plural(len(running), 'case')} on {plural(len(plan.sessions), 'session')}, "
        f"{plural(requests, 'distinct request')} of {asked:,} asked for"
    )
    for planned_session in plan.sessions:
        session = planned_session.session
        suites = sorted(suite for key, suite in users if key == session.key)
        yield f"  session {session.key}  {session.label}  [{session.environment}]"
        if session.options:
            options = " ".join(f"{key}={value}" for key, value in session.options.items())
            yield f"    options: {options}"
        decodes = sum(request.decode is not None for request in planned_session.requests)
        asked_here = plural(len(planned_session.requests), "request")
        yield f"    1 load, {asked_here} ({decodes} with decoding) for {', '.join(suites)}"
        if foresight is not None:
            yield f"    {describe_foresight(planned_session, foresight)}"
    if foresight is not None and foresight.verdicts:
        yield f"  {plural(foresight.verdicts, 'verdict')} kept: nothing that they come from has changed"
    skipped = [planned for planned in plan.cases if planned.skip is not None]
    reasons = Counter(
        ("skipped" if planned.skip.kind in SKIPPING else "in error", planned.skip.message, planned.skip.help)
        for planned in skipped
        if planned.skip
    )
    for (fate, message, help_text), count in reasons.items():
        yield f"  {count} {fate}: {message}" + (f" ({help_text})" if help_text else "")
    yield from _tell_absent(skipped)


def _tell_absent(skipped: Sequence[PlannedCase]) -> Iterator[str]:
    """Yield the sessions that cases would take on a machine with what they require."""
    sessions: dict[str, dict[str, None]] = {}
    for case in (planned.case for planned in skipped if planned.case.requires):
        memory = case.requires.get("memory_gb")
        needs = f", {memory:,g} GB of memory" if isinstance(memory, int | float) else ""
        for choice in (case.candidate, case.reference, case.peer):
            if choice is not None:
                device = case.requires.get("device") or choice.device
                options = " ".join(f"{key}={value}" for key, value in choice.options.items())
                where = f"  [{choice.environment}]" if choice.environment else ""
                line = f"{choice.engine} {case.model.label} {choice.dtype} {device}{needs}{where}"
                sessions.setdefault(line, {}).setdefault(options)
    if sessions:
        total = sum(map(len, sessions.values()))
        yield f"  a machine with what these cases require would start {plural(total, 'session')}:"
    for line, variants in sessions.items():
        for stated in variants:
            yield f"    session {line}"
            if stated:
                yield f"      options: {stated}"


def describe_foresight(planned: PlannedSession, foresight: Foresight) -> str:
    """Return why a session runs, or why it need not."""
    needed, kept, why = foresight.sessions.get(planned.session.key, (0, 0, ""))
    if not needed:
        return "does not run: the verdicts of its cases are kept"
    if kept == needed:
        return "does not run: its answers are kept"
    some = f" ({kept} of {plural(needed, 'answer')} kept)" if kept else ""
    return f"runs because {why}{some}"
