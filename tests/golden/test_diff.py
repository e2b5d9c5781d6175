"""What changed from one golden to another, with the numbers that a reviewer sees."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from specrunner.checks.evidence import LoadedCapture
from specrunner.checks.sources import MemorySource
from specrunner.golden.diff import Change, TensorChange, compare_goldens
from specrunner.golden.kept import Golden
from specrunner.golden.review import describe_change
from specrunner.results import CheckResult
from specrunner.spec.model import Case, EngineChoice, GoldenChoice, Rule, Tolerance
from tests.golden.builders import FACTS, make, make_case, sqnr

SMALL = torch.arange(1.0, 13.0).view(3, 4)
WIDE = torch.randn(3, 3000, generator=torch.Generator().manual_seed(3))
NAME = "layers.0.output"


def make_golden(case: Case, output: tuple[int, ...] | None = (1, 2), facts: Any = None, **values: Any) -> Golden:
    tensors = {name.replace("__", "."): MemorySource(name, value) for name, value in values.items()}
    return make(case, LoadedCapture((7, 8, 9), tensors, output), facts=facts or {})


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return make_case(tmp_path, tensors=("**",))


def compare(case: Case, new: torch.Tensor | None, old: torch.Tensor | None, **changes: Any) -> TensorChange:
    """Return how the one tensor changed."""
    sides = [{} if value is None else {"layers__0__output": value} for value in (new, old)]
    judged = replace(case, **changes)
    (change,) = compare_goldens(make_golden(case, **sides[0]), make_golden(case, **sides[1]), judged).tensors
    assert change.name == NAME
    return change


def test_a_full_tensor_has_its_movers(case: Case) -> None:
    moved = SMALL.clone()
    moved[1, 2] += 0.5
    moved[2, 0] -= 1.0
    change = compare(case, moved, SMALL)
    assert (change.same, change.note, change.holds) == (False, "", False)
    assert change.movers == (
        {"token": 2, "column": 0, "old": 9.0, "new": 8.0},
        {"token": 1, "column": 2, "old": 7.0, "new": 7.5},
    )
    assert change.measurements is not None
    expected = math.sqrt(0.25 + 1.0) / float(SMALL.norm())
    assert change.measurements["relative_l2"] == pytest.approx(expected)
    assert [(check.rule, check.passed) for check in change.checks] == [("sqnr", False)]
    same = compare(case, SMALL, SMALL)
    assert (same.same, same.holds, same.movers) == (True, True, ())


def test_the_five_that_moved_most_are_shown(case: Case) -> None:
    change = compare(case, SMALL + torch.arange(12.0).view(3, 4), SMALL)
    assert [(mover["token"], mover["column"]) for mover in change.movers] == [(2, 3), (2, 2), (2, 1), (2, 0), (1, 3)]


def test_a_token_of_several_rows(case: Case) -> None:
    old = torch.zeros(2, 3, 2)
    new = old.clone()
    new[1, 1, 1] = 4.0
    assert compare(case, new, old).movers == ({"token": 1, "column": 1, "old": 0.0, "new": 4.0},)


def test_integers_have_no_movers(case: Case) -> None:
    exact = (Tolerance("**", (Rule("exact"),), case.location),)
    change = compare(case, torch.tensor([[1, 2]]), torch.tensor([[1, 3]]), tolerance=exact)
    assert (change.movers, change.same, change.holds) == ((), False, False)
    assert compare(case, torch.tensor([[1, 2]]), torch.tensor([[1.0, 3.0]]), tolerance=exact).movers == ()


@pytest.mark.parametrize(
    ("new", "old", "note"),
    [
        (SMALL, None, "not kept before"),
        (None, SMALL, "kept no more"),
        (SMALL[:2], SMALL, "shape [3, 4] became [2, 4]"),
    ],
)
def test_what_cannot_be_measured_is_noted_and_does_not_hold(
    case: Case, new: torch.Tensor | None, old: torch.Tensor | None, note: str
) -> None:
    change = compare(case, new, old)
    assert (change.note, change.same, change.holds, change.measurements) == (note, False, False, None)
    whole = Change({}, (change,), ())
    assert (whole.holds, whole.exceeds, whole.largest) == (False, True, math.inf)


@pytest.mark.parametrize(("new_full", "old_full"), [(0, 0), (64, 0), (0, 64)])
def test_a_compact_side_is_estimated(case: Case, new_full: int, old_full: int) -> None:
    moved = WIDE.clone()
    moved[1] *= 1.01
    sides = [
        make_golden(replace(case, golden=GoldenChoice(full_tokens=full)), layers__0__output=value)
        for full, value in ((new_full, moved), (old_full, WIDE))
    ]
    (change,) = compare_goldens(sides[0], sides[1], case).tensors
    assert change.measurements is not None and change.measurements["estimated"]
    expected = 0.01 * float(WIDE[1].norm() / WIDE.norm())
    assert change.measurements["relative_l2"] == pytest.approx(expected, rel=0.15)
    assert [mover["token"] for mover in change.movers] == [1]
    assert change.movers[0]["relative_l2"] == pytest.approx(0.01, rel=0.15)
    assert [(check.rule, check.passed) for check in change.checks] == [("sqnr", False)]
    (loose,) = compare_goldens(
        sides[0], sides[1], replace(case, tolerance=(Tolerance("**", sqnr(30), case.location),))
    ).tensors
    assert loose.holds
    (unjudged,) = compare_goldens(sides[0], sides[1]).tensors
    assert (unjudged.checks, unjudged.holds) == ((), False)
    assert not Change({}, (unjudged,), ()).exceeds, "what was not judged is not certainly outside"


def test_compact_ones_of_another_kind_cannot_be_compared(case: Case) -> None:
    few = replace(case, golden=GoldenChoice(projections=200))
    new = make_golden(few, layers__0__output=WIDE)
    (change,) = compare_goldens(new, make_golden(case, layers__0__output=WIDE * 2), case).tensors
    assert (change.same, change.note) == (False, "the two were made compact in different ways")
    (same,) = compare_goldens(new, make_golden(case, layers__0__output=WIDE), case).tensors
    assert (same.same, same.note, same.holds) == (True, "", True)


def test_another_dtype_is_not_the_same(case: Case) -> None:
    rough = SMALL.bfloat16()
    assert not compare(case, rough, rough.float()).same
    loose = compare(case, rough, rough.float())
    assert loose.holds, "but the numbers are"


def test_a_noise_floor_is_not_judged_between_goldens(case: Case) -> None:
    rules = (Rule("noise_floor", {"k": 2.0}), *sqnr(10))
    change = compare(case, SMALL * 1.001, SMALL, tolerance=(Tolerance("**", rules, case.location),))
    assert [check.rule for check in change.checks] == ["sqnr"]
    assert change.holds


def test_tensors_come_in_model_order(case: Case) -> None:
    both = make_golden(case, logits=SMALL, layers__10__output=SMALL, layers__9__output=SMALL, embeddings=SMALL)
    change = compare_goldens(both, make_golden(case, embeddings=SMALL, final_norm=SMALL), case)
    assert [one.name for one in change.tensors] == [
        *("embeddings", "layers.9.output", "layers.10.output", "final_norm", "logits")
    ]


def test_provenance_is_told_by_what_differs(case: Case) -> None:
    other = replace(case, candidate=EngineChoice("hf", "float32", options={"a": 1, "b": {"c": 2, "d": 3}}))
    old = make_golden(other, embeddings=SMALL, facts={"versions": {"torch": "2.12", "numpy": "2.0"}})
    other = replace(case, candidate=EngineChoice("hf", "bfloat16", options={"b": {"c": 2, "d": 4}, "e": 5}))
    new = make_golden(other, embeddings=SMALL, facts={"versions": {"torch": "2.13", "numpy": "2.0"}})
    change = compare_goldens(new, old, case)
    digests = change.provenance.pop("spec_digest")  # type: ignore[attr-defined]
    assert digests[0] != digests[1]
    assert change.provenance == {
        "dtype": ("float32", "bfloat16"),
        "options.a": (1, None),
        "options.b.d": (3, 4),
        "options.e": (None, 5),
        "facts.versions.torch": ("2.12", "2.13"),
    }
    assert change.holds, "provenance alone is no change of numbers"
    assert compare_goldens(new, new).provenance == {}
    assert next(iter(describe_change(change))) == "  dtype: float32 -> bfloat16"


LONG = tuple(range(30))


@pytest.mark.parametrize(
    ("new", "old", "expected"),
    [
        (
            (*LONG[:15], 99, *LONG[16:]),
            LONG,
            {"prefix": 15, "start": 9, "old": list(range(9, 22)), "new": [*range(9, 15), 99, *range(16, 22)]},
        ),
        ((9, 2, 3), (1, 2, 3), {"prefix": 0, "start": 0, "old": [1, 2, 3], "new": [9, 2, 3]}),
        (LONG[:8], LONG[:7], {"prefix": 7, "start": 1, "old": [1, 2, 3, 4, 5, 6], "new": [1, 2, 3, 4, 5, 6, 7]}),
        (None, (1, 2), {"prefix": 0, "start": 0, "old": [1, 2], "new": None}),
        ((1, 2), None, {"prefix": 0, "start": 0, "old": None, "new": [1, 2]}),
    ],
)
def test_tokens_are_shown_around_the_first_that_differs(
    case: Case, new: tuple[int, ...] | None, old: tuple[int, ...] | None, expected: dict[str, Any]
) -> None:
    change = compare_goldens(
        make_golden(case, output=new, embeddings=SMALL), make_golden(case, output=old, embeddings=SMALL), case
    )
    lengths = [len(old or ()), len(new or ())]
    assert change.tokens == ({"name": "output_token_ids", **expected, "lengths": lengths},)
    assert (change.holds, change.exceeds) == (False, True)
    assert change.to_json()["within_tolerance"] is False


def check(passed: bool) -> CheckResult:
    return CheckResult("x", "sqnr", passed, "" if passed else "far", {})


@pytest.mark.parametrize(
    ("change", "holds", "exceeds"),
    [
        (TensorChange("x", True), True, False),
        (TensorChange("x", True, note="odd"), True, False),
        (TensorChange("x", False), False, False),
        (TensorChange("x", False, checks=(check(True),)), True, False),
        (TensorChange("x", False, checks=(check(True), check(False))), False, True),
        (TensorChange("x", False, note="gone", checks=(check(True),)), False, True),
    ],
)
def test_when_a_change_holds_and_when_it_exceeds(change: TensorChange, holds: bool, exceeds: bool) -> None:
    assert change.holds is holds
    whole = Change({}, (TensorChange("y", True), change), ())
    assert (whole.holds, whole.exceeds) == (holds, exceeds)
    assert Change({}, (), ({"name": "output_token_ids"},)).exceeds


def test_the_largest_change() -> None:
    def tensor(value: Any, **changes: Any) -> TensorChange:
        return TensorChange("x", False, measurements={"relative_l2": value}, **changes)

    assert Change({}, (), ()).largest == 0.0
    assert Change({}, (tensor(0.1), tensor(0.3), TensorChange("y", True)), ()).largest == 0.3
    assert Change({}, (tensor(0.1), tensor("inf")), ()).largest == math.inf
    assert Change({}, (tensor(0.1), TensorChange("y", False, note="gone")), ()).largest == math.inf


def test_a_change_as_json(case: Case) -> None:
    moved = SMALL.clone()
    moved[1, 2] += 0.5
    facts = {"versions": {"torch": "2.13"}}
    new, old = make_golden(case, embeddings=moved, facts=facts), make_golden(case, embeddings=SMALL)
    shown = compare_goldens(new, old, case).to_json()
    (tensor,) = shown.pop("tensors")
    assert shown == {
        "within_tolerance": False,
        "provenance": {"facts.versions.torch": [FACTS["versions"]["torch"], "2.13"]},
        "tokens": [],
    }
    assert tensor["movers"] == [{"token": 1, "column": 2, "old": 7.0, "new": 7.5}]
    assert {name: tensor[name] for name in ("name", "same", "within_tolerance", "note")} == {
        "name": "embeddings",
        "same": False,
        "within_tolerance": False,
        "note": "",
    }
    assert [(one["rule"], one["passed"]) for one in tensor["checks"]] == [("sqnr", False)]
