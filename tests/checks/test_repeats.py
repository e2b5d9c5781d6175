"""Repeats compared with each other: the same bits or not, and nothing but a measurement."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from specrunner.checks.evidence import LoadedCapture
from specrunner.checks.repeats import compare_repeats, find_differences, is_same
from specrunner.checks.sources import MemorySource, open_tensors
from specrunner.results import ALL_REPEATS, CheckResult


def capture(output: list[int] | None = None, **tensors: torch.Tensor) -> LoadedCapture:
    return LoadedCapture((1, 2), {name: MemorySource(name, value) for name, value in tensors.items()}, output)


def compare(*captures: LoadedCapture, failed: tuple[int, ...] = ()) -> CheckResult:
    return compare_repeats({n: {"candidate": one} for n, one in enumerate(captures, 1)}, failed, location="s.yaml:3")


ONES = torch.ones(3, 4)


def test_the_same_bits_are_equal() -> None:
    result = compare(capture(logits=ONES), capture(logits=ONES.clone()), capture(logits=ONES.clone()))
    assert (result.passed, result.message, result.gates, result.fails) == (True, "", False, False)
    assert (result.repeat, result.against, result.location) == (ALL_REPEATS, "", "s.yaml:3")
    assert result.measurements == {"repeats": [1, 2, 3], "failed": [], "bitwise_equal": True, "unequal": []}


def test_each_that_differs_from_the_first_is_told_with_its_first_tensor_in_model_order() -> None:
    first = capture([7], logits=ONES, embeddings=ONES, **{"layers.10.output": ONES, "layers.9.output": ONES})
    same = capture([7], logits=ONES, embeddings=ONES, **{"layers.10.output": ONES, "layers.9.output": ONES})
    other = capture([8], logits=ONES * 2, embeddings=ONES, **{"layers.10.output": -ONES, "layers.9.output": -ONES})
    result = compare(first, same, other, other, failed=(3,))
    assert not result.passed and not result.fails, "wavering alone is a trend"
    numbers = result.measurements
    assert (numbers["failed"], numbers["bitwise_equal"]) == ([3], False)
    assert numbers["unequal"] == [
        {"repeat": 3, "first": "layers.9.output", "differences": 4},
        {"repeat": 4, "first": "layers.9.output", "differences": 4},
    ]
    assert result.message == (
        "the answers are not bitwise equal: repeat 3 differs from repeat 1, first at layers.9.output, and 1 more do"
    )


def test_the_repeats_keep_their_numbers_when_one_has_no_evidence() -> None:
    result = compare_repeats({2: {"probe": capture(a=ONES)}, 5: {"probe": capture(a=-ONES)}}, [])
    assert result.measurements["repeats"] == [2, 5]
    assert "repeat 5 differs from repeat 2, first at a" in result.message


@pytest.mark.parametrize(
    ("other", "names"),
    [
        (capture(logits=ONES), []),
        (capture(), ["logits"]),
        (capture(logits=ONES, embeddings=ONES), ["embeddings"]),
        (capture([1], logits=ONES), ["tokens"]),
        (LoadedCapture((1, 3), {"logits": MemorySource("logits", ONES)}), ["tokens"]),
        (LoadedCapture([1, 2], {"logits": MemorySource("logits", ONES)}), []),
    ],
)
def test_what_two_answers_do_not_have_in_common(other: LoadedCapture, names: list[str]) -> None:
    assert find_differences(capture(logits=ONES), other) == names


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (torch.tensor([[0.0]]), torch.tensor([[-0.0]]), False),
        (torch.tensor([[float("nan")]]), torch.tensor([[float("nan")]]), True),
        (ONES, ONES.double(), False),
        (ONES, ONES[:2], False),
        (torch.zeros(0, 4), torch.zeros(0, 4), True),
        (torch.tensor(2.5), torch.tensor(2.5), True),
        (torch.tensor([True, False]), torch.tensor([True, True]), False),
        (ONES.bfloat16(), ONES.bfloat16(), True),
        (torch.arange(100_000), torch.arange(100_000), True),
        (torch.arange(100_000), torch.arange(100_000).index_fill(0, torch.tensor([99_999]), 0), False),
    ],
)
def test_bits_are_compared_and_not_numbers(one: torch.Tensor, other: torch.Tensor, same: bool, tmp_path: Path) -> None:
    assert is_same(MemorySource("a", one), MemorySource("a", other)) is same
    for name, value in (("one", one), ("other", other)):
        save_file({"a": value.contiguous()}, tmp_path / name)
    assert is_same(open_tensors(tmp_path / "one")["a"], open_tensors(tmp_path / "other")["a"]) is same
