"""Comparing the repeats of a case with each other: whether the same question got the same answer, bit by bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from specrunner.checks.blocks import cut
from specrunner.checks.evidence import LoadedCapture
from specrunner.checks.sources import TensorSource
from specrunner.results import ALL_REPEATS, CheckResult
from specrunner.spec.tensor_names import model_order

TOKENS = "tokens"


def compare_repeats(
    repeats: Mapping[int, Mapping[str, LoadedCapture]], failed: Sequence[int], *, location: str = ""
) -> CheckResult:
    """Compare what the candidate answered in each repeat with the first.

    It is a measurement and never fails a case: each answer has gone through the case's own checks, and arithmetic that
    is not the same twice may still be within them.

    Args:
        repeats: by repeat, the candidate's own captures by role; at least two.
        failed: the repeats in which a check failed.
        location: of the case.

    Returns:
        One result that does not gate, with the repeats that failed and those whose answers differ.
    """
    (first, answers), *others = repeats.items()
    unequal = []
    for repeat, other in others:
        names = [name for role in answers for name in find_differences(answers[role], other[role])]
        if names:
            unequal.append({"repeat": repeat, "first": names[0], "differences": len(names)})
    numbers: dict[str, Any] = {
        "repeats": list(repeats),
        "failed": list(failed),
        "bitwise_equal": not unequal,
        "unequal": unequal,
    }
    message = ""
    if unequal:
        near, more = unequal[0], len(unequal) - 1
        where = f"repeat {near['repeat']} differs from repeat {first}, first at {near['first']}"
        message = f"the answers are not bitwise equal: {where}" + (f", and {more} more do" if more else "")
    return CheckResult(
        "repeats",
        "bitwise",
        not unequal,
        message,
        numbers,
        {},
        location,
        gates=False,
        against="",
        repeat=ALL_REPEATS,
    )


def find_differences(one: LoadedCapture, other: LoadedCapture) -> list[str]:
    """Look for what two captures do not have bit by bit in common.

    Args:
        one: a capture.
        other: the capture to hold against it.

    Returns:
        Names of tensors in model order, those that one side lacks among them, and then `tokens` where the ids of
        prompt or output differ.
    """
    names = sorted(one.tensors.keys() | other.tensors.keys(), key=lambda name: (model_order(name), name))
    found = [
        name
        for name in names
        if name not in one.tensors or name not in other.tensors or not is_same(one.tensors[name], other.tensors[name])
    ]
    same = _list(one.prompt_token_ids) == _list(other.prompt_token_ids)
    same = same and _list(one.output_token_ids) == _list(other.output_token_ids)
    return found if same else [*found, TOKENS]


def is_same(one: TensorSource, other: TensorSource) -> bool:
    """Tell whether two tensors have one shape, one dtype and the same bits; NaN equals its own bits, 0.0 not -0.0.

    Args:
        one: any dtype; it is read in blocks.
        other: likewise.
    """
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return all(
        torch.equal(ours.contiguous().view(torch.uint8), theirs.contiguous().view(torch.uint8))
        for ours, theirs in (block.tensors for block in cut((one, other)))
    )


def _list(ids: Sequence[int] | None) -> list[int] | None:
    return None if ids is None else [int(token) for token in ids]
