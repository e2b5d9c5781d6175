"""Cutting a pair of tensors into blocks small enough for a processor's cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from specrunner.checks.sources import TensorSource

BLOCK_ELEMENTS = 49_152
"""Elements in a block: many beside what a call of torch costs, few enough for the buffers to stay in the cache."""

SLAB_ELEMENTS = 1 << 22
"""Elements that a source is asked for at once."""


@dataclass(frozen=True, slots=True)
class Block:
    """Equal pieces of the compared tensors: whole rows, or a piece of a single row that is wider than a block.

    Attributes:
        row: the first row's index.
        column: the first column's index; 0 unless the block is a piece of a row.
        completes: whether the block holds the end of its rows.
        tensors: the pieces in stored dtypes, [rows, columns] and contiguous: candidate, reference and perhaps a peer.
    """

    row: int
    column: int
    completes: bool
    tensors: tuple[torch.Tensor, ...]


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Have torch compute on the caller's thread alone.

    The other processors belong to the engines, which work meanwhile; a second thread would also wait for its next block
    by spinning, and gains little on a block.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cut(sources: tuple[TensorSource, ...], block_elements: int = BLOCK_ELEMENTS) -> Iterator[Block]:
    """Cut sources into blocks.

    Args:
        sources: of one and the same shape, any dtypes.
        block_elements: elements of a block at most.

    Yields:
        The blocks in order: whole rows where they fit, else a wide row in pieces from left to right; none where there
        is no element.
    """
    row_count, width = sources[0].row_count, sources[0].width
    if not row_count or not width:
        return
    step = max(1, block_elements // width)
    slab = max(step, SLAB_ELEMENTS // width // step * step)
    for slab_row in range(0, row_count, slab):
        pieces = tuple(source.rows(slab_row, min(slab_row + slab, row_count)).contiguous() for source in sources)
        for offset in range(0, pieces[0].shape[0], step):
            if width <= block_elements:
                yield Block(slab_row + offset, 0, True, tuple(piece[offset : offset + step] for piece in pieces))
                continue
            for column in range(0, width, block_elements):
                stop = min(column + block_elements, width)
                yield Block(
                    slab_row + offset,
                    column,
                    stop == width,
                    tuple(piece[offset : offset + 1, column:stop] for piece in pieces),
                )
