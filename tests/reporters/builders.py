"""Runs made by hand: cases, results and the events that a runner would send."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from specrunner.events import (
    CaseFinished,
    Event,
    RequestFinished,
    RunFinished,
    RunStarted,
    SessionEnded,
    SessionReady,
    SessionStarted,
)
from specrunner.plan.model import Plan, PlannedCase, PlannedSession
from specrunner.reporters.base import Reporter
from specrunner.requests import Evidence, Request, Session
from specrunner.results import CaseResult, CheckResult, Failure, Verdict
from specrunner.spec.model import Case, EngineChoice, Location, Model, Prompt, Xfail

STARTED_AT = 1_700_000_000.0
FACTS = {
    "model_class": "LlamaForCausalLM",
    "versions": {"python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0"},
    "device": "cpu",
    "attention_backend": "sdpa",
    "patches": [],
}


def make_case(name: str = "capital", *, suite: str = "specs/smoke/glass", line: int = 12, **changes: Any) -> Case:
    """Return a case of `hf` in bfloat16 against `hf` in float32."""
    fields: dict[str, Any] = {
        "suite": suite,
        "name": name,
        "parameters": (("engine", "hf"), ("dtype", "bfloat16")),
        "location": Location(f"{suite}.yaml", line, 5),
        "candidate": EngineChoice("hf", "bfloat16"),
        "reference": EngineChoice("hf", "float32"),
        "model": Model(recipe="glass-0.8m"),
        "prompt": Prompt(text="The capital of France is"),
    }
    return Case(**{**fields, **changes})


def make_check(
    subject: str = "logits", passed: bool = True, rule: str = "allclose", message: str | None = None, **measured: Any
) -> CheckResult:
    """Return a check with the measurements given."""
    if message is None:
        message = "" if passed else "3 of 64 elements differ by more than the tolerance"
    limits = {"rtol": 1e-5, "atol": 1e-6, "outliers": 0.0}
    return CheckResult(
        subject, rule, passed, message, measured or {"max_abs": 0.0}, limits, "specs/smoke/glass.yaml:20"
    )


def make_result(case: Case | None = None, verdict: Verdict = Verdict.PASSED, **changes: Any) -> CaseResult:
    """Return a result whose evidence fits the verdict."""
    case = case or make_case()
    if verdict is Verdict.XPASSED and case.xfail is None:
        raise ValueError("an xpassed case needs an xfail")
    fields: dict[str, Any] = {"seconds": 0.25, "candidate": FACTS, "reference": FACTS}
    if verdict in (Verdict.FAILED, Verdict.XFAILED):
        fields["checks"] = (make_check("embeddings"), make_check("logits", passed=False, max_abs=0.5))
    elif verdict is Verdict.ERROR:
        fields["failure"] = Failure(
            "worker-died", "the worker was ended by signal 9", "look at the log", "a\nb", "candidate"
        )
    elif verdict is Verdict.SKIPPED:
        fields["failure"] = Failure("engine-missing", "vllm is not installed", "run `specrunner engines install vllm`")
    else:
        fields["checks"] = (make_check(),)
    return CaseResult(case, verdict, **{**fields, **changes})


def make_all_verdicts() -> list[CaseResult]:
    """Return one result of each verdict, in two spec files."""
    xfail = Xfail("the kernel rounds twice")
    other = "specs/llada2/tiny"
    return [
        make_result(make_case("passes"), Verdict.PASSED),
        make_result(make_case("fails"), Verdict.FAILED),
        make_result(make_case("breaks"), Verdict.ERROR),
        make_result(make_case("lacks", suite=other), Verdict.SKIPPED),
        make_result(make_case("known", suite=other, xfail=xfail), Verdict.XFAILED),
        make_result(make_case("mended", suite=other, xfail=xfail), Verdict.XPASSED),
    ]


def make_session(dtype: str = "bfloat16") -> Session:
    """Return the session of `make_case`'s candidate (or reference)."""
    return Session("hf", "", Model(recipe="glass-0.8m"), dtype, "cpu")


def make_events(
    results: Sequence[CaseResult],
    *,
    unfinished: Iterable[Case] = (),
    environment: Mapping[str, Any] | None = None,
    interrupted: bool = False,
    exit_code: int = 0,
    finish: bool = True,
) -> list[Event]:
    """Return the events of a run with one session.

    Args:
        results: one for every case that finishes, in order.
        unfinished: cases of the plan that never finish.
        environment: facts of the machine.
        interrupted: what the last event says.
        exit_code: what the last event says.
        finish: whether there is a last event.
    """
    session = make_session()
    request = Request(Prompt(text="The capital of France is"), ("logits",))
    evidence = {"candidate": Evidence(session.key, request.key)}
    cases = [result.case for result in results] + list(unfinished)
    plan = Plan(
        tuple(PlannedCase(case, evidence) for case in cases),
        (PlannedSession(session, (request,)),),
    )
    environment = {"specrunner": "0.1.0", "python": "3.11.0"} if environment is None else environment
    events: list[Event] = [
        RunStarted(plan, ("specrunner", "run", "specs/"), STARTED_AT, environment),
        SessionStarted(session.key, session.label, 1),
        SessionReady(session.key, session.label, 1.5, FACTS),
        RequestFinished(session.key, request.key, 0.1),
        *(CaseFinished(result) for result in results),
        SessionEnded(session.key, session.label),
    ]
    return [*events, RunFinished(3.25, interrupted, exit_code)] if finish else events


def play(events: Iterable[Event], *reporters: Reporter) -> None:
    """Send events to reporters and close them, as a runner does."""
    for event in events:
        for reporter in reporters:
            reporter.handle(event)
    for reporter in reporters:
        reporter.close()
