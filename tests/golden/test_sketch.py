"""The compact form of a tensor: what it takes."""

from __future__ import annotations

import pytest
import torch

from specrunner.checks.sources import MemorySource
from specrunner.golden.sketch import compact_bytes, sketch_tensor


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("top_k", [0, 7])
def test_its_size_is_foretold(dtype: torch.dtype, top_k: int) -> None:
    values = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    parts = sketch_tensor(MemorySource("x", values), projections=20, seed=1, top_k=top_k).to_parts().values()
    assert compact_bytes(3, 20, top_k, dtype.itemsize) == sum(part.numel() * part.element_size() for part in parts)
