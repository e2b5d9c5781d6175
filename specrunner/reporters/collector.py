"""Gathers a run's events into a `RunRecord`."""

from __future__ import annotations

import dataclasses
import time

from specrunner.events import (
    AnswersKept,
    CaseFinished,
    Event,
    RequestFinished,
    RunFinished,
    RunStarted,
    SessionEnded,
    SessionReady,
    SessionStarted,
)
from specrunner.reporters.record import CaseRecord, RunRecord, SessionRecord, not_run_result, record_result, utc_text
from specrunner.secrets import own_redactor


class RunCollector:
    """Listens to events; `record` can be asked at any time."""

    def __init__(self) -> None:
        self.started: RunStarted | None = None
        self.finished: RunFinished | None = None
        self.cases: dict[str, CaseRecord] = {}
        self.sessions: dict[str, SessionRecord] = {}

    def handle(self, event: Event) -> None:
        """Take one event in."""
        match event:
            case RunStarted():
                redact = own_redactor().redact_values
                command, environment = redact(event.command), redact(event.environment)
                self.started = dataclasses.replace(event, command=command, environment=environment)
            case AnswersKept():
                self._update(
                    event.session,
                    event.label,
                    facts=own_redactor().redact_values(event.facts),
                    requests=event.requests,
                    kept=event.kept,
                    why=event.why,
                )
            case SessionStarted():
                known = self.sessions.get(event.session, SessionRecord(event.session, event.label))
                requests = max(known.requests, event.requests)
                self._update(event.session, event.label, requests=requests, starts=known.starts + 1, end="")
            case SessionReady():
                self._update(
                    event.session,
                    event.label,
                    facts=own_redactor().redact_values(event.facts),
                    load_seconds=event.seconds,
                )
            case RequestFinished():
                known = self.sessions.get(event.session, SessionRecord(event.session, event.session))
                count = "failed" if event.failed else "answered"
                asked = (
                    known.kept + known.answered + known.failed + 1
                )  # more than planned, once a failure is looked into
                self._update(
                    event.session,
                    known.label,
                    requests=max(known.requests, asked),
                    tensors=known.tensors + event.tensors,
                    tokens=known.tokens + event.tokens,
                    **{count: getattr(known, count) + 1},
                )
            case SessionEnded():
                self._update(event.session, event.label, end=own_redactor().redact(event.reason))
            case CaseFinished():
                record = record_result(event.result)
                self.cases[record.node_id] = record
            case RunFinished():
                self.finished = event

    def record(self) -> RunRecord:
        """Return the run so far, with every planned case: those without a verdict are errors (`not-run`)."""
        started, finished = self.started, self.finished
        planned = [planned.case for planned in started.plan.cases] if started else []
        order = dict.fromkeys(case.node_id for case in planned) | dict.fromkeys(self.cases)
        missing = {
            case.node_id: CaseRecord.from_result(not_run_result(case))
            for case in planned
            if case.node_id not in self.cases
        }
        sessions = [one.session.key for one in started.plan.sessions] if started else []
        return RunRecord(
            command=started.command if started else (),
            started_at=utc_text(started.started_at if started else time.time()),
            seconds=finished.seconds if finished else None,
            interrupted=finished.interrupted if finished else True,
            complete=finished is not None,
            exit_code=int(finished.exit_code) if finished else None,
            environment=started.environment if started else {},
            sessions=tuple(
                self.sessions[key] for key in dict.fromkeys([*sessions, *self.sessions]) if key in self.sessions
            ),
            cases=tuple(self.cases.get(node_id) or missing[node_id] for node_id in order),
        )

    def _update(self, key: str, label: str, **changes: object) -> None:
        known = self.sessions.get(key, SessionRecord(key, label))
        self.sessions[key] = dataclasses.replace(known, label=label, **changes)  # type: ignore[arg-type]
