"""Which failed cases the engine is asked about again."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

import specrunner.diagnoser
from specrunner.checks.localisation import diagnose
from specrunner.diagnoser import Diagnoser
from specrunner.plan.model import Plan, PlannedCase, PlannedSession
from specrunner.requests import Evidence, Request
from specrunner.results import Verdict
from specrunner.sessions.captures import StoredCapture
from specrunner.spec.model import Prompt
from tests.reporters.builders import make_case, make_check, make_result, make_session


@pytest.mark.parametrize(("against", "asked"), [("reference", True), ("golden", False)])
def test_a_case_that_agrees_with_its_reference_is_not_led_by_it(
    against: str, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails against the golden alone is no clearer with each layer fed by the reference."""
    session, request = make_session(), Request(Prompt(text="hi"), ("logits",))
    monkeypatch.setattr(specrunner.diagnoser, "find_led_session", lambda planned: session.key)
    evidence = dict.fromkeys(("candidate", "reference"), Evidence(session.key, request.key))
    planned = PlannedCase(make_case(), evidence)
    pool: Any = SimpleNamespace(add=lambda session, request: True)
    diagnoser = Diagnoser(Plan((planned,), (PlannedSession(session, (request,)),)), pool, {})

    failed = replace(make_check("logits", passed=False, relative_l2=0.5), against=against)
    checks = (make_check("logits", relative_l2=0.0), failed)
    result = make_result(planned.case, Verdict.FAILED, checks=checks, diagnosis=diagnose(checks))
    reference = StoredCapture(None, (), (1,), None, {})
    assert diagnoser.start(planned, result, reference) is asked
