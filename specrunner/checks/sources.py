"""Tensor sources: named tensors, read a few rows at a time so that a pair may be larger than memory."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import safetensors
import torch


class TensorSource(ABC):
    """A tensor that is read in rows.

    The last axis is the vector; all leading axes are flattened into rows. A scalar is one row of one element, a
    one-dimensional tensor is one row.

    Attributes:
        name: the tensor's name.
        shape: the whole shape, as stored.
        dtype: the stored dtype.
    """

    def __init__(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.name = name
        self.shape = shape
        self.dtype = dtype

    @property
    def width(self) -> int:
        """Elements in a row."""
        return self.shape[-1] if self.shape else 1

    @property
    def row_count(self) -> int:
        """Rows: the product of all axes but the last."""
        return math.prod(self.shape[:-1])

    @property
    def rows_per_token(self) -> int:
        """Rows that belong to one index of the first axis: 1 for the layout [tokens, vector]."""
        return max(1, math.prod(self.shape[1:-1]))

    @abstractmethod
    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Return the rows from `start` up to `stop`, shape [stop - start, width], on the CPU, in the stored dtype.

        The result may be a view of the source: callers must not write to it.
        """


class MemorySource(TensorSource):
    """A tensor that is already in memory.

    Args:
        name: the tensor's name.
        value: a torch tensor (moved to the CPU if it is elsewhere), a numpy array, or nested lists of numbers.
    """

    def __init__(self, name: str, value: Any) -> None:
        tensor = torch.as_tensor(value).detach().cpu()
        super().__init__(name, tuple(tensor.shape), tensor.dtype)
        self._matrix = tensor.reshape(self.row_count, self.width)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Return a view of the rows, [stop - start, width], in the tensor's dtype."""
        return self._matrix[start:stop]


class FileSource(TensorSource):
    """A tensor in a safetensors file, mapped and not copied: pages come in as rows are read.

    Args:
        handle: an open `safetensors.safe_open(path, "pt")`, shared by the file's tensors.
        name: the tensor's name in the file.
    """

    def __init__(self, handle: Any, name: str) -> None:
        tensor = handle.get_tensor(name)
        super().__init__(name, tuple(tensor.shape), tensor.dtype)
        self._matrix: torch.Tensor = tensor.reshape(self.row_count, self.width)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Return a view of the mapped rows, [stop - start, width], in the tensor's dtype."""
        return self._matrix[start:stop]


def open_tensors(path: Path | str) -> dict[str, TensorSource]:
    """Open a safetensors file.

    Args:
        path: the file. It must not change while the sources are in use.

    Returns:
        A source for every tensor in the file, by name.

    Raises:
        OSError: the file cannot be opened.
        safetensors.SafetensorError: the file is not whole or not a safetensors file.
    """
    handle: Any = safetensors.safe_open(str(path), framework="pt")
    return {name: FileSource(handle, name) for name in list(handle.keys())}
