"""Sequences of token ids held against each other, alike in the engines' processes and in the checks."""

from __future__ import annotations

from collections.abc import Sequence


def common_prefix(candidate: Sequence[int], reference: Sequence[int]) -> int:
    """Return how many ids at the beginning are equal: the position of the first mismatch, or the shorter length.

    Args:
        candidate: ids.
        reference: ids to hold against them.
    """
    for position, (ours, theirs) in enumerate(zip(candidate, reference, strict=False)):
        if ours != theirs:
            return position
    return min(len(candidate), len(reference))
