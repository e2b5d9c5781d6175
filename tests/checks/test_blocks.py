"""Cutting: the blocks of a tensor, put together again, are the tensor, and none is larger than asked for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from specrunner.checks import blocks
from specrunner.checks.sources import MemorySource


class Counted(MemorySource):
    """Notes how many elements are asked for at once."""

    most = 0

    def rows(self, start: int, stop: int) -> torch.Tensor:
        found = super().rows(start, stop)
        self.most = max(self.most, found.numel())
        return found


@given(st.integers(0, 9), st.integers(0, 9), st.integers(1, 40), st.sampled_from([1, 8, 16, 1 << 22]))
@example(9, 2, 6, 16)  # a slab of eight rows would end within a block of three
def test_blocks_make_up_the_tensors(rows: int, width: int, most: int, slab: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "SLAB_ELEMENTS", slab)
        sides = [torch.arange(rows * width).view(rows, width) * sign for sign in (1, -1)]
        sources = [Counted("x", side) for side in sides]
        made = torch.zeros(2, rows, width, dtype=torch.int64)
        seen: list[tuple[int, int]] = []
        for block in blocks.cut(tuple(sources), most):
            assert len({piece.shape for piece in block.tensors}) == 1
            height, wide = block.tensors[0].shape
            assert 0 < block.tensors[0].numel() <= most
            assert all(piece.is_contiguous() for piece in block.tensors)
            assert block.completes == (block.column + wide == width)
            assert height == 1 or (block.column == 0 and wide == width), "a piece of a row stands alone"
            for side, piece in enumerate(block.tensors):
                made[side, block.row : block.row + height, block.column : block.column + wide] += piece
            seen.append((block.row, block.column))
        assert torch.equal(made, torch.stack(sides))
        assert seen == sorted(set(seen))
        if 0 < width <= most:
            assert len(seen) == -(-rows // (most // width)), "a slab ends where a block does"
        # A slab holds whole blocks, and one block at least.
        assert all(source.most <= max(slab, most, width) for source in sources)


def test_rows_go_together_as_far_as_a_block_holds_them() -> None:
    source = MemorySource("x", torch.zeros(10, 4))
    assert [block.tensors[0].shape[0] for block in blocks.cut((source,), 13)] == [3, 3, 3, 1]
    assert [block.tensors[0].shape[0] for block in blocks.cut((source,), 40)] == [10]
    assert [block.tensors[0].shape[1] for block in blocks.cut((MemorySource("x", torch.zeros(1, 10)),), 4)] == [4, 4, 2]
