"""The printed plan: which sessions will start, what each will be asked, which cases will not run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from specrunner.plan.model import Foresight, Plan, PlannedSession
from specrunner.spec.diagnostics import count


def format_plan(plan: Plan, foresight: Foresight | None = None) -> Iterator[str]:
    """Yield the lines of `run --plan`; without a foresight, everything runs."""
    running = [planned for planned in plan.cases if planned.skip is None]
    users = Counter(
        (evidence.session, planned.case.suite) for planned in running for evidence in planned.evidence.values()
    )
    asked = sum(len(planned.evidence) for planned in running)
    requests = sum(len(session.requests) for session in plan.sessions)
    yield (
        f"{count(len(running), 'case')} on {count(len(plan.sessions), 'session')}, "
        f"{count(requests, 'distinct request')} of {asked:,} asked for"
    )
    for planned_session in plan.sessions:
        session = planned_session.session
        suites = sorted(suite for key, suite in users if key == session.key)
        yield f"  session {session.key}  {session.label}  [{session.environment}]"
        if session.options:
            options = " ".join(f"{key}={value}" for key, value in session.options.items())
            yield f"    options: {options}"
        decodes = sum(request.decode is not None for request in planned_session.requests)
        asked_here = count(len(planned_session.requests), "request")
        yield f"    1 load, {asked_here} ({decodes} with decoding) for {', '.join(suites)}"
        if foresight is not None:
            yield f"    {describe_foresight(planned_session, foresight)}"
    if foresight is not None and foresight.verdicts:
        yield f"  {count(foresight.verdicts, 'verdict')} kept: nothing that they come from has changed"
    skipped = [planned for planned in plan.cases if planned.skip is not None]
    reasons = Counter((planned.skip.message, planned.skip.help) for planned in skipped if planned.skip)
    for (message, help_text), skips in reasons.items():
        yield f"  {skips} skipped: {message}" + (f" ({help_text})" if help_text else "")


def describe_foresight(planned: PlannedSession, foresight: Foresight) -> str:
    """Return why a session runs, or why it need not."""
    needed, kept, why = foresight.sessions.get(planned.session.key, (0, 0, ""))
    if not needed:
        return "does not run: the verdicts of its cases are kept"
    if kept == needed:
        return "does not run: its answers are kept"
    some = f" ({kept} of {count(needed, 'answer')} kept)" if kept else ""
    return f"runs because {why}{some}"
