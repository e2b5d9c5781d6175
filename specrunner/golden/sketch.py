"""The compact form of a tensor: a few hundred numbers a row that still bound its distance from another tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from specrunner.checks.sources import TensorSource
from specrunner.checks.vocabulary import Largest
from specrunner.golden.projections import ROWS, project


@dataclass(frozen=True, slots=True)
class Sketch:
    """A compact tensor.

    Attributes:
        shape: of the whole tensor.
        dtype: of the whole tensor, e.g. `bfloat16`.
        seed: of the projections.
        norms: [rows] float64, the L2 norm of each row.
        projections: [rows, m] float32 (float64 for a float64 tensor), see `projections`.
        top_values: [rows, k] in the tensor's dtype, the k largest of each row, largest first; None unless logits.
        top_ids: [rows, k] int32, their columns.
        logsumexp: [rows] float64, log of the sum of exp over the row.
    """

    shape: tuple[int, ...]
    dtype: str
    seed: int
    norms: torch.Tensor
    projections: torch.Tensor
    top_values: torch.Tensor | None = None
    top_ids: torch.Tensor | None = None
    logsumexp: torch.Tensor | None = None

    @property
    def rows_per_token(self) -> int:
        """Rows that belong to one index of the first axis."""
        tokens = self.shape[0] if len(self.shape) > 1 else 1
        return max(1, self.norms.numel() // max(1, tokens))

    def to_parts(self) -> dict[str, torch.Tensor]:
        """Return the tensors to store by attribute, in the shapes [rows, …] and dtypes of the attributes."""
        parts = {name: getattr(self, name) for name in _PARTS}
        return {name: part for name, part in parts.items() if part is not None}

    @classmethod
    def from_parts(cls, shape: tuple[int, ...], dtype: str, seed: int, parts: Mapping[str, torch.Tensor]) -> Sketch:
        """Rebuild a sketch from what `to_parts` gave: tensors [rows, …] by attribute."""
        return cls(shape, dtype, seed, **{name: parts[name] for name in _PARTS if name in parts})


_PARTS = ("norms", "projections", "top_values", "top_ids", "logsumexp")


def sketch_tensor(source: TensorSource, *, projections: int, seed: int, top_k: int = 0) -> Sketch:
    """Make a tensor compact.

    Args:
        source: any float dtype, finite.
        projections: numbers a row.
        seed: of the projections.
        top_k: how many of a row's largest elements to keep, with the row's logsumexp; 0 for what is no distribution.

    Returns:
        The sketch; its memory is rows * (projections * 4 + top_k * 8 + 16) bytes for a tensor below float64.
    """
    wide = source.dtype == torch.float64
    norms, values, ids, sums = [], [], [], []
    for start in range(0, source.row_count, ROWS):
        rows = source.rows(start, min(start + ROWS, source.row_count))
        for row in rows:  # one row at a time: a vocabulary in float64 is a megabyte
            exact = row.double()
            norms.append(torch.linalg.vector_norm(exact))
            if top_k:
                sums.append(torch.logsumexp(exact, -1))
        if top_k:
            columns = Largest(top_k).update(rows, 0, True)
            assert columns is not None
            values.append(rows.gather(-1, columns))
            ids.append(columns.int())
    return Sketch(
        shape=source.shape,
        dtype=str(source.dtype).removeprefix("torch."),
        seed=seed,
        norms=torch.stack(norms),
        projections=project(source, projections, seed).to(torch.float64 if wide else torch.float32),
        top_values=torch.cat(values) if top_k else None,
        top_ids=torch.cat(ids) if top_k else None,
        logsumexp=torch.stack(sums) if top_k else None,
    )


def compact_bytes(rows: int, projections: int, top_k: int, item_bytes: int) -> int:
    """Return how many bytes a sketch takes."""
    wide = 8 if item_bytes == 8 else 4
    return rows * (8 + projections * wide + (top_k * (item_bytes + 4) + 8 if top_k else 0))
