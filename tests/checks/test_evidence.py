"""A case's checks: their order, and that missing evidence never passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from specrunner.checks import evidence
from specrunner.checks.evidence import LoadedCapture
from specrunner.checks.sources import MemorySource
from specrunner.results import CheckResult
from specrunner.spec.model import Case, EngineChoice, Location, Model, Prompt, Rule, Tolerance

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
