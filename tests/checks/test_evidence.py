"""A case's checks: their order, and that missing evidence never passes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from specrunner.checks import evidence
from specrunner.checks.evidence import LoadedCapture
from specrunner.checks.sources import MemorySource
from specrunner.results import CheckResult
from specrunner.spec.model import Attention, Case, Decode, EngineChoice, Location, Model, Prompt, Rule, Tolerance

HERE = Location("specs/x.yaml", 3, 5)
EXACT = Tolerance("*", (Rule("exact"),), Location("specs/x.yaml", 9, 7))
DEEP = Tolerance(
    "layers.**", (Rule("sqnr", {"min": 20.0}), Rule("cosine", {"min": 0.9})), Location("specs/x.yaml", 8, 7)
)
TENSORS = {name: torch.randn(3, 4) for name in ("logits", "layers.10.output", "layers.2.output", "embeddings")}


def check_case(
    case: Case, candidate: LoadedCapture, reference: LoadedCapture | None, peer: LoadedCapture | None = None
) -> list[CheckResult]:
    roles = {"candidate": candidate, "reference": reference, "peer": peer}
    return evidence.check_case(case, {role: capture for role, capture in roles.items() if capture is not None})


def make_case(**fields: Any) -> Case:
    engine, oracle = EngineChoice("hf", "float32"), EngineChoice("oracle", "float64")
    return Case(
        "specs/x", "one", (("engine", "hf"),), HERE, engine, oracle, Model(recipe="tiny"), Prompt(text="a"), **fields
    )


def make_capture(
    tensors: dict[str, torch.Tensor] | None = None, prompt: tuple[int, ...] = (1, 2, 3), output: Any = (7, 8)
) -> LoadedCapture:
    sources = {name: MemorySource(name, value) for name, value in (TENSORS if tensors is None else tensors).items()}
    return LoadedCapture(prompt, sources, output)


def tell(results: list[CheckResult]) -> list[tuple[str, str, bool]]:
    return [(result.subject, result.rule, result.passed) for result in results]


def test_checks_come_in_model_order_under_the_first_rule_that_matches() -> None:
    case = make_case(tensors=("**",), tolerance=(DEEP, EXACT), tokens=Rule("exact"))
    results = check_case(case, make_capture(), make_capture())
    assert tell(results) == [
        ("tokenization", "exact", True),
        ("embeddings", "exact", True),
        ("layers.2.output", "sqnr", True),
        ("layers.2.output", "cosine", True),
        ("layers.10.output", "sqnr", True),
        ("layers.10.output", "cosine", True),
        ("logits", "exact", True),
        ("tokens", "exact", True),
    ]
    assert [result.location for result in results[:3]] == ["specs/x.yaml:3", "specs/x.yaml:9", "specs/x.yaml:8"]


def test_a_wrong_tensor_fails_alone() -> None:
    wrong = TENSORS | {"layers.2.output": TENSORS["layers.2.output"] + 1}
    case = make_case(tensors=("**",), tolerance=(EXACT, DEEP))
    results = check_case(case, make_capture(wrong), make_capture())
    assert [result.subject for result in results if not result.passed] == ["layers.2.output", "layers.2.output"]


def test_only_what_the_case_asks_for_is_compared() -> None:
    wrong = TENSORS | {"embeddings": torch.zeros(1)}
    results = check_case(make_case(tensors=("logits",), tolerance=(EXACT,)), make_capture(wrong), make_capture())
    assert tell(results) == [("tokenization", "exact", True), ("logits", "exact", True)]


@pytest.mark.parametrize(("candidate", "reference", "message"), [
    (("embeddings",), ("embeddings", "logits"), "missing in candidate"),
    (("embeddings", "logits"), ("embeddings",), "missing in reference"),
    (("embeddings",), ("embeddings",), "missing in candidate and reference: the pattern selects no captured tensor"),
])  # fmt: skip
def test_a_missing_tensor_fails(candidate: tuple[str, ...], reference: tuple[str, ...], message: str) -> None:
    sides = [make_capture({name: TENSORS[name] for name in names}) for names in (candidate, reference)]
    results = check_case(make_case(tensors=("embeddings", "logits"), tolerance=(EXACT,)), *sides)
    assert tell(results)[1:] == [("embeddings", "exact", True), ("logits", "evidence", False)]
    assert results[2].message == message


def test_a_pattern_must_select_something_itself() -> None:
    case = make_case(tensors=("**", "layers.*.router.logits"), tolerance=(EXACT, DEEP))
    results = check_case(case, make_capture(), make_capture())
    assert [result.subject for result in results if not result.passed] == ["layers.*.router.logits"]


def test_a_tensor_without_a_rule_fails() -> None:
    results = check_case(make_case(tensors=("logits",), tolerance=(DEEP,)), make_capture(), make_capture())
    assert tell(results)[1:] == [("logits", "evidence", False)]


UNITS = Rule("ulp", {"max": 1, "over_one": 1.0})


@pytest.mark.parametrize(
    ("stated", "captured", "coarse"),
    [
        ("float32", torch.bfloat16, True),
        ("float32", torch.float16, True),
        ("float32", torch.float8_e4m3fn, True),
        ("float16", torch.bfloat16, True),
        ("float64", torch.float32, True),
        ("float32", torch.float32, False),
        ("bfloat16", torch.float32, False),
        ("bfloat16", torch.float16, False),
    ],
)
def test_units_of_a_coarser_dtype_than_the_cases_are_no_evidence(
    stated: str, captured: torch.dtype, coarse: bool
) -> None:
    engine = EngineChoice("hf", stated)
    sides = [make_capture({"logits": TENSORS["logits"].to(dtype)}) for dtype in (captured, torch.float64)]
    for rules in ((UNITS,), (Rule("sqnr", {"min": 10.0}), UNITS)):
        case = replace(
            make_case(tensors=("logits",), tolerance=(Tolerance("**", rules, EXACT.location),)), candidate=engine
        )
        results = check_case(case, *sides)
        failed = [(one.rule, one.message, one.location) for one in results if not one.passed]
        captured_name = str(captured).removeprefix("torch.")
        message = f"the candidate's {captured_name} is coarser than the case's {stated}, so its `ulp` shows nothing"
        assert failed == ([("evidence", message, "specs/x.yaml:9")] if coarse else [])


def test_a_coarser_dtype_than_the_cases_is_judged_by_rules_with_units_of_their_own() -> None:
    case = make_case(tensors=("logits",), tolerance=(Tolerance("**", (Rule("sqnr", {"min": 10.0}),), HERE),))
    results = check_case(case, make_capture({"logits": TENSORS["logits"].bfloat16()}), make_capture())
    assert tell(results)[1:] == [("logits", "sqnr", True)]


def test_other_prompt_ids_stop_everything_in_one_check() -> None:
    case = make_case(tensors=("**",), tolerance=(EXACT,), tokens=Rule("exact"))
    (result,) = check_case(case, make_capture(prompt=(1, 2)), make_capture())
    assert (result.subject, result.passed) == ("tokenization", False)
    assert result.message.endswith("nothing else was compared")
    (result,) = check_case(case, make_capture(), make_capture(), make_capture(prompt=(1, 2)))
    assert result.message.startswith("the peer's prompt")
    (result,) = check_case(case, make_capture(prompt=()), make_capture(prompt=()))
    assert not result.passed


def test_tokens_are_compared_last_and_must_be_there() -> None:
    case = make_case(tensors=("logits",), tolerance=(EXACT,), tokens=Rule("exact"))
    assert tell(check_case(case, make_capture(output=(7, 9)), make_capture()))[-1] == ("tokens", "exact", False)
    assert tell(check_case(case, make_capture(output=None), make_capture()))[-1] == ("tokens", "evidence", False)
    assert tell(check_case(case, make_capture(output=()), make_capture(output=())))[-1] == ("tokens", "exact", False)


def test_tokenization_alone_is_not_a_comparison() -> None:
    assert tell(check_case(make_case(), make_capture(), make_capture()))[1:] == [("case", "evidence", False)]


def test_a_case_without_a_reference_compares_nothing() -> None:
    (result,) = check_case(make_case(tensors=("logits",), tolerance=(EXACT,)), make_capture(), None)
    assert not result.passed


def test_the_peer_sets_the_floor() -> None:
    floor = Tolerance("logits", (Rule("noise_floor", {"k": 3.0}),), HERE)
    case = make_case(tensors=("logits",), tolerance=(floor,))
    logits = TENSORS["logits"]
    near, far = make_capture({"logits": logits * 1.002}), make_capture({"logits": logits * 1.01})
    reference, peer = make_capture(), make_capture({"logits": logits * 1.001})
    assert check_case(case, near, reference, peer)[-1].passed
    assert not check_case(case, far, reference, peer)[-1].passed
    assert not check_case(case, near, reference)[-1].passed
    assert not check_case(case, near, reference, make_capture({}))[-1].passed


def test_the_candidates_prompt_is_not_called_the_peers() -> None:
    case = make_case(tensors=("**",), tolerance=(EXACT,))
    (result,) = check_case(case, make_capture(prompt=(1, 2)), make_capture())
    assert result.message.startswith("first mismatch at position 2")
    led = {"candidate": make_capture(), "reference": make_capture(), "forced": make_capture(prompt=(1,))}
    (result,) = evidence.check_case(case, led)
    assert result.message.startswith("first mismatch at position 1")


MARKED = {"attention": Location("specs/x.yaml", 11, 3), "trajectory": Location("specs/x.yaml", 12, 3)}
CHANGES = torch.tensor([[1.0, 0.0], [0.5, 1.0]])
PROBE = LoadedCapture(
    (1, 2),
    {"probe.logits": MemorySource("x", CHANGES), "probe.noise.logits": MemorySource("x", torch.zeros(2))},
)


def test_the_geometry_is_read_off_the_probe_alone() -> None:
    case = make_case(attention=Attention("causal"), marks=MARKED)
    (result,) = evidence.check_case(case, {"probe": PROBE})
    assert (result.subject, result.rule, result.passed, result.location) == (
        "attention",
        "attention",
        True,
        "specs/x.yaml:11",
    )
    (result,) = evidence.check_case(make_case(attention=Attention("bidirectional")), {"probe": PROBE})
    assert (result.passed, result.location) == (False, "specs/x.yaml:3")
    (result,) = evidence.check_case(case, {})
    assert (result.rule, result.message) == ("evidence", "missing in candidate: the probe")


BLOCKS = Decode(2, "low_confidence", 2, 0.9, True)
MASK = 3


def decoded(token: int = 1) -> LoadedCapture:
    """A decode of one block of two tokens in one step."""
    logits = torch.zeros(2, 4)
    logits[:, token] = 20.0
    step = {"block_start": 2, "tokens_before": [MASK, MASK], "accepted": [2, 3], "accepted_token_ids": [token, token]}
    facts = {"request": {"trajectory": [step], "mask_token_id": MASK, "eos_token_ids": []}}
    return LoadedCapture((1, 2), {"passes.0.logits": MemorySource("x", logits)}, (token, token), facts)


def test_a_sampler_is_replayed_and_a_reference_beside_it_is_a_trend() -> None:
    case = make_case(trajectory=Rule("sampler", {"kappa": 4.0}), decode=BLOCKS, marks=MARKED)
    (result,) = evidence.check_case(case, {"candidate": decoded()})
    assert (result.rule, result.passed, result.gates, result.location) == ("sampler", True, True, "specs/x.yaml:12")
    results = evidence.check_case(case, {"candidate": decoded(), "reference": decoded(2)})
    assert [(one.rule, one.passed, one.gates) for one in results[1:]] == [
        ("sampler", True, True),
        ("free_run", False, False),
    ]


def test_an_exact_trajectory_gates_on_the_other_side() -> None:
    case = make_case(trajectory=Rule("exact"), decode=BLOCKS)
    results = evidence.check_case(case, {"candidate": decoded(), "reference": decoded()})
    assert tell(results)[1:] == [("trajectory", "exact", True)]
    results = evidence.check_case(case, {"candidate": decoded(), "reference": decoded(2)})
    assert [(one.rule, one.passed, one.gates) for one in results[1:]] == [("exact", False, True)]
    results = evidence.check_case(case, {"reference": decoded()})
    assert [(one.rule, one.message) for one in results] == [("evidence", "missing in candidate: its decode")]


def test_near_ties_need_the_run_led_by_the_reference() -> None:
    case = make_case(tokens=Rule("near_tie", {"kappa": 4.0, "max_share": 0.5}), decode=Decode(2))
    sides = {"candidate": make_capture({}), "reference": make_capture({})}
    results = evidence.check_case(case, sides)
    assert (results[-1].rule, results[-1].message) == (
        "evidence",
        "missing in candidate: the run led by the reference",
    )
    led = LoadedCapture((1, 2, 3), {}, (7, 8), {"request": {"segments": [{"start": 0, "token_ids": [7, 8]}]}})
    results = evidence.check_case(case, sides | {"forced": led})
    assert tell(results)[1:] == [("tokens", "near_tie", True), ("tokens", "free_run", True)]
    parted = LoadedCapture((1, 2, 3), {}, (7, 9), {"request": {"segments": [{"start": 0, "token_ids": [7, 9]}]}})
    results = evidence.check_case(case, sides | {"forced": parted})
    assert tell(results)[1:] == [("tokens", "near_tie", False), ("tokens", "free_run", False)]
    assert not results[-1].gates


def test_a_case_needs_a_reference_for_all_that_is_held_against_one() -> None:
    for fields in ({}, {"tokens": Rule("exact")}, {"tensors": ("logits",), "attention": Attention("causal")}):
        results = evidence.check_case(make_case(**fields), {"candidate": make_capture(), "probe": PROBE})
        assert results[0].message == "the case has no reference, so its checks compare nothing"


def test_routing_is_judged_beside_the_other_rules_of_its_tensor() -> None:
    name = "layers.0.router.expert_ids"
    routing = Rule("routing", {"decisive": None, "all": 1.0, "noise": None})
    side = make_capture({name: torch.tensor([[0, 1], [1, 2]])})
    for rules, expected in (
        ((routing,), [(name, "routing", True)]),
        ((routing, Rule("exact")), [(name, "exact", True), (name, "routing", True)]),
        ((Rule("exact"),), [(name, "exact", True)]),
    ):
        case = make_case(tensors=(name,), tolerance=(Tolerance("**", rules, HERE),))
        assert tell(check_case(case, side, side))[1:] == expected
