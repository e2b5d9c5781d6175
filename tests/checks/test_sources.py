"""Tensor sources hand out rows without copying."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from specrunner.checks.measure import measure
from specrunner.checks.sources import MemorySource, open_tensors

TENSORS = {
    "matrix": torch.randn(7, 5),
    "half": torch.randn(3, 4).bfloat16(),
    "deep": torch.randn(2, 3, 4),
    "vector": torch.randn(6),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 4),
    "ids": torch.tensor([[1, 2], [3, 4]]),
    "flags": torch.tensor([True, False]),
    "eight": torch.randn(4, 4).to(torch.float8_e4m3fn),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "t.safetensors")
    return tmp_path / "t.safetensors"


def test_files_hold_what_was_written(path: Path) -> None:
    sources = open_tensors(path)
    assert sources.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        for source in (sources[name], MemorySource(name, tensor)):
            assert (source.name, source.shape, source.dtype) == (name, tuple(tensor.shape), tensor.dtype)
            assert source.row_count * source.width == tensor.numel()
            rows = source.rows(0, source.row_count)
            assert rows.shape == (source.row_count, source.width)
            assert torch.equal(rows.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


def test_rows_of_axes() -> None:
    counts = {
        name: (s.row_count, s.width, s.rows_per_token)
        for name, s in ((n, MemorySource(n, t)) for n, t in TENSORS.items())
    }
    assert counts["matrix"] == (7, 5, 1)
    assert counts["deep"] == (6, 4, 3)
    assert counts["vector"] == (1, 6, 1)
    assert counts["scalar"] == (1, 1, 1)
    assert counts["empty"] == (0, 4, 1)
    hollow = MemorySource("hollow", torch.zeros(2, 0, 3))
    assert (hollow.row_count, hollow.rows_per_token) == (0, 1), "nothing is divided by no rows"


def test_rows_are_views(path: Path) -> None:
    for source in (open_tensors(path)["matrix"], MemorySource("m", TENSORS["matrix"])):
        first, second = source.rows(0, 2), source.rows(2, 4)
        assert second.data_ptr() - first.data_ptr() == 2 * 5 * 4


def test_small_floats_are_compared(path: Path) -> None:
    source = open_tensors(path)["eight"]
    assert measure(source, MemorySource("eight", TENSORS["eight"].float())).max_abs.value == 0.0


def test_numpy_and_lists_are_taken() -> None:
    assert MemorySource("x", numpy.ones((2, 3), dtype=numpy.float16)).dtype == torch.float16
    assert MemorySource("x", [[1.0, 2.0]]).shape == (1, 2)


def test_a_truncated_file_is_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(SafetensorError):
        open_tensors(path)
