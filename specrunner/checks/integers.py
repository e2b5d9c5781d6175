"""Equality of integer and boolean tensors."""

from __future__ import annotations

from typing import Any

import torch

from specrunner.checks.blocks import BLOCK_ELEMENTS, cut
from specrunner.checks.measurements import Difference
from specrunner.checks.sources import TensorSource


def compare_integers(
    candidate: TensorSource, reference: TensorSource, *, block_elements: int = BLOCK_ELEMENTS
) -> tuple[str, dict[str, Any]]:
    """Compare two tensors of integers, or two of booleans, of one shape and with at least one element.

    Different widths are compared as the numbers they hold.

    Args:
        candidate: any integer dtype, or bool.
        reference: the same shape and kind.
        block_elements: elements worked on at a time.

    Returns:
        What is wrong, "" when all elements are equal; and the measurements `elements`, `differing`,
        `tokens_differing` and `first_difference`.
    """
    width, rows_per_token = reference.width, reference.rows_per_token
    differing = 0
    tokens: set[int] = set()
    tokens_differing = 0
    first: Difference | None = None
    for block in cut((candidate, reference), block_elements):
        ours, theirs = block.tensors
        unequal = _unequal(ours, theirs)
        count = int(torch.count_nonzero(unequal))
        if not count:
            continue
        differing += count
        if first is None:
            place = int(unequal.view(-1).int().argmax())
            index = block.row * width + block.column + place
            values = [int(tensor.reshape(-1)[place].item()) for tensor in (ours, theirs)]
            first = Difference(index, index // (width * rows_per_token), *values)
        found = {(block.row + row) // rows_per_token for row in unequal.any(-1).nonzero().view(-1).tolist()}
        tokens_differing += len(found - tokens)
        tokens = {max(found)}
    elements = reference.row_count * width
    numbers: dict[str, Any] = {"elements": elements, "differing": differing, "tokens_differing": tokens_differing}
    if first is None:
        return "", numbers
    numbers["first_difference"] = first.to_json()
    return (
        f"{differing} of {elements} elements differ, at {tokens_differing} tokens; "
        f"first at token {first.token}: {first.candidate} against {first.reference}"
    ), numbers


def _unequal(candidate: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Compare the numbers, not the bits: the unsigned 64-bit numbers fit no common dtype with the signed."""
    if candidate.dtype == reference.dtype:
        return candidate != reference
    sides = [side.to(torch.int64) for side in (candidate, reference)]
    unequal = sides[0] != sides[1]
    if torch.uint64 in (candidate.dtype, reference.dtype):
        unequal |= sides[0] < 0  # where both are, the same bits are two numbers
    return unequal
