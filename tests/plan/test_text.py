"""The printed plan, line by line."""

from __future__ import annotations

from dataclasses import replace

import pytest

from specrunner.plan.model import Foresight, PlannedSession
from specrunner.plan.text import describe_foresight, format_plan
from specrunner.requests import Session
from specrunner.results import Failure
from specrunner.spec.model import Decode, EngineChoice, Model, Rule
from tests.plan.test_build import CASE, plan_of

LABEL = CASE.model.label


def test_the_whole_plan() -> None:
    tuned = replace(CASE.candidate, options={"attn_implementation": "eager", "threads": 2})
    cases = (
        replace(CASE, suite="specs/b", decode=Decode(3), tokens=Rule("exact")),
        CASE,
        replace(CASE, name="tuned", candidate=tuned),
        replace(CASE, name="absent", candidate=EngineChoice("vllm", "float32", "cpu")),
    )
    plan = plan_of(*cases).build()
    reference, first, third = (planned.session.key for planned in plan.sessions)
    assert list(format_plan(plan)) == [
        "3 cases on 3 sessions, 5 distinct requests of 6 asked for",
        f"  session {reference}  hf {LABEL} float32 cpu  [hf-d1]",
        "    1 load, 2 requests (1 with decoding) for specs/a, specs/b",
        f"  session {first}  hf {LABEL} bfloat16 cpu  [hf-d1]",
        "    1 load, 2 requests (1 with decoding) for specs/a, specs/b",
        f"  session {third}  hf {LABEL} bfloat16 cpu  [hf-d1]",
        "    options: attn_implementation=eager threads=2",
        "    1 load, 1 request (0 with decoding) for specs/a",
        "  1 skipped: vllm is not installed (specrunner engines install vllm)",
    ]


def test_skips_are_counted_by_reason() -> None:
    plan = plan_of(CASE).build()
    skips = [Failure("engine-missing", *one) for one in (("no room", "make room"),) * 2 + (("no reason",),)]
    cases = tuple(replace(plan.cases[0], skip=skip) for skip in skips)
    assert list(format_plan(replace(plan, cases=cases)))[-2:] == [
        "  2 skipped: no room (make room)",
        "  1 skipped: no reason",
    ]


def test_what_a_machine_with_more_would_start() -> None:
    wanted = replace(
        CASE,
        requires={"device": "cuda", "memory_gb": 900_000},
        reference=replace(CASE.candidate, dtype="float32", options={"threads": 2}),
        peer=EngineChoice("oracle", "float64", "auto"),
    )
    other = replace(wanted, reference=replace(CASE.candidate, dtype="float32", options={"threads": 4}), peer=None)
    lines = list(format_plan(plan_of(wanted, other).build()))
    start = lines.index("  a machine with what these cases require would start 4 sessions:")
    assert lines[start + 1 :] == [
        f"    session hf {LABEL} bfloat16 cuda, 900,000 GB of memory",
        f"    session hf {LABEL} float32 cuda, 900,000 GB of memory",
        "      options: threads=2",
        f"    session hf {LABEL} float32 cuda, 900,000 GB of memory",
        "      options: threads=4",
        f"    session oracle {LABEL} float64 cuda, 900,000 GB of memory",
    ]
    skipped = replace(CASE, requires={"packages": ("no_such",)})
    assert list(format_plan(plan_of(skipped).build()))[-3:] == [
        "  a machine with what these cases require would start 2 sessions:",
        f"    session hf {LABEL} bfloat16 cpu",
        f"    session hf {LABEL} float32 cpu",
    ]


@pytest.mark.parametrize(
    ("seen", "line"),
    [
        ((0, 0, ""), "does not run: the verdicts of its cases are kept"),
        ((2, 2, ""), "does not run: its answers are kept"),
        ((2, 0, "nothing of it is kept"), "runs because nothing of it is kept"),
        ((3, 1, "it must"), "runs because it must (1 of 3 answers kept)"),
        ((1, 0, "it must"), "runs because it must"),
    ],
)
def test_why_a_session_runs(seen: tuple[int, int, str], line: str) -> None:
    session = Session("hf", "hf-d1", Model(path="m"), "float32", "cpu")
    assert describe_foresight(PlannedSession(session, ()), Foresight(0, {session.key: seen})) == line


def test_a_session_that_nobody_foresaw_needs_nothing() -> None:
    session = Session("hf", "hf-d1", Model(path="m"), "float32", "cpu")
    found = describe_foresight(PlannedSession(session, ()), Foresight(0, {}))
    assert found == "does not run: the verdicts of its cases are kept"


def test_kept_verdicts_are_counted() -> None:
    plan = plan_of(CASE).build()
    seen = {planned.session.key: (1, 1, "") for planned in plan.sessions}
    lines = list(format_plan(plan, Foresight(1, seen)))
    assert lines.count("    does not run: its answers are kept") == 2
    assert lines[-1] == "  1 verdict kept: nothing that they come from has changed"
    assert not any("verdict" in line for line in format_plan(plan, Foresight(0, seen)))
