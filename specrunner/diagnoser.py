"""Looking into failed cases: the candidate, still loaded, answers again with each layer fed by the reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, field, replace

from specrunner.engines.registry import find_engine
from specrunner.plan.model import Plan, PlannedCase
from specrunner.requests import Evidence
from specrunner.results import CaseResult, Verdict, find_side, select_side, select_telling
from specrunner.sessions.captures import StoredCapture
from specrunner.sessions.executor import Answer, Executor

MOST_DIAGNOSED = 8
"""How many failed cases of one session are looked into."""


@dataclass(slots=True)
class _Open:
    """A failed case whose led captures are awaited."""

    planned: PlannedCase
    result: CaseResult
    reference: StoredCapture
    asked: dict[Evidence, str] = field(default_factory=dict)
    led: dict[str, StoredCapture] = field(default_factory=dict)


class Diagnoser:
    """Asks for led captures of failed cases, and closes sessions that it will not ask again.

    Args:
        plan: the run's plan.
        pool: takes the requests.
        timeouts: by (session key, request key); what is asked is added.
    """

    def __init__(self, plan: Plan, pool: Executor, timeouts: MutableMapping[tuple[str, str], float]) -> None:
        self._pool = pool
        self._timeouts = timeouts
        self._requests = {
            Evidence(planned.session.key, request.key): request
            for planned in plan.sessions
            for request in planned.requests
        }
        sessions = (find_led_session(planned) for planned in plan.cases)
        self._unjudged = Counter(session for session in sessions if session is not None)
        self._asked: Counter[str] = Counter()
        self._open: dict[Evidence, _Open] = {}

    def may_ask(self, session: str) -> bool:
        """Tell whether a session may be asked more than what is planned for it."""
        return self._unjudged[session] > 0

    def start(self, planned: PlannedCase, result: CaseResult, reference: Answer | None) -> bool:
        """Ask for what a failed case needs; False when there is nothing to ask, and its result stands."""
        session = find_led_session(planned)
        if session is None or result.verdict is not Verdict.FAILED or result.diagnosis is None:
            return False
        if not result.diagnosis.growth or not isinstance(reference, StoredCapture):
            return False
        if find_side(select_telling(result.checks)) == "golden":  # a reference with which it agrees tells nothing
            return False
        if not self._unjudged[session] or self._asked[session] >= MOST_DIAGNOSED:
            return False
        opened = _Open(planned, result, reference)
        routed = any(name.endswith(".router.expert_weights") for name in reference.tensor_names)
        plain = self._requests[planned.evidence["candidate"]]
        for lead in ("inputs", "routing") if routed else ("inputs",):
            request = replace(plain, decode=None, follow=planned.evidence["reference"], lead=lead)
            evidence = Evidence(session, request.key)
            self._timeouts[session, request.key] = planned.case.timeout
            if evidence not in self._open and self._pool.add(session, request):
                opened.asked[evidence] = lead
                self._open[evidence] = opened
        self._asked[session] += 1
        return bool(opened.asked)

    def accept(self, evidence: Evidence, answer: Answer) -> tuple[PlannedCase, CaseResult] | None:
        """Take an answer to what was asked here; return the case with its full diagnosis when it was the last."""
        opened = self._open.pop(evidence, None)
        if opened is None:
            return None
        lead = opened.asked.pop(evidence)
        if isinstance(answer, StoredCapture):
            opened.led[lead] = answer
        if opened.asked:
            return None
        from specrunner.checks.localisation import add_local_errors

        result = opened.result
        assert result.diagnosis is not None
        checks = select_side(select_telling(result.checks))
        diagnosis = add_local_errors(result.diagnosis, opened.led, opened.reference, checks)
        return opened.planned, replace(opened.result, diagnosis=diagnosis)

    def close(self, planned: PlannedCase) -> None:
        """Note that a case has its verdict; a session without another such case takes no more requests."""
        session = find_led_session(planned)
        if session is not None and self._unjudged[session]:
            self._unjudged[session] -= 1
            if not self._unjudged[session]:
                self._pool.close(session)

    def take_open(self) -> Iterator[CaseResult]:
        """Yield the results of cases whose led captures never came; they stand as they are."""
        results = {id(opened): opened.result for opened in self._open.values()}
        self._open.clear()
        yield from results.values()


def find_led_session(planned: PlannedCase) -> str | None:
    """Return the session in which a case's candidate can be led by its reference, or None."""
    if not {"candidate", "reference"} <= planned.evidence.keys():
        return None
    if not any(pattern.startswith(("layers", "*")) for pattern in planned.case.tensors):
        return None
    led = find_engine(planned.case.candidate.engine).capabilities().led
    return planned.evidence["candidate"].session if led else None
