"""Goldens in memory: a manifest with its tensors, made from a capture or read from the store."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from specrunner.checks.sources import MemorySource, TensorSource
from specrunner.errors import GoldenError
from specrunner.golden.keys import Slot
from specrunner.golden.manifest import RESTORE, Manifest, TensorEntry
from specrunner.golden.sketch import Sketch, compact_bytes, sketch_tensor
from specrunner.golden.store import State, read_manifest, tensors_path
from specrunner.spec.model import GoldenChoice
from specrunner.spec.tensor_names import PASSES

SMALL_BYTES = 4096
"""A tensor up to this size is kept in full whatever the settings are."""

LARGEST_BYTES = 64 << 20
"""A golden is never larger: it has to live in version control."""

FULL, COMPACT = "full", "compact"


@dataclass(frozen=True, slots=True)
class KeptTensor:
    """One tensor of a golden: `source` when it is kept in full, else `sketch`."""

    entry: TensorEntry
    source: TensorSource | None = None
    sketch: Sketch | None = None

    def parts(self) -> dict[str, torch.Tensor]:
        """Return what is stored of it: `values` in its own shape [tokens, …] and dtype, or the parts of its sketch."""
        if self.sketch is not None:
            return self.sketch.to_parts()
        assert self.source is not None
        return {"values": self.source.rows(0, self.source.row_count).reshape(self.source.shape)}


@dataclass(frozen=True, slots=True)
class Golden:
    """A golden with its tensors."""

    slot: Slot
    manifest: Manifest
    tensors: Mapping[str, KeptTensor]


def keep_tensor(name: str, source: TensorSource, choice: GoldenChoice, seed: int) -> KeptTensor:
    """Decide a tensor's form and make it.

    Args:
        name: the tensor's name; only logits keep their largest elements.
        source: finite.
        choice: the case's settings.
        seed: of the projections.

    Raises:
        GoldenError: it holds NaN or infinity, or no element.
    """
    content, finite = _digest_rows(source)
    if not finite:
        raise GoldenError(
            f"{name} holds NaN or infinity", kind="golden-refused", help="a golden is made of sound numbers"
        )
    dtype = str(source.dtype).removeprefix("torch.")
    size, tokens = source.row_count * source.width * source.dtype.itemsize, source.shape[0] if source.shape else 1
    top_k = min(choice.top_k, source.width) if is_distribution(name) else 0
    compact = compact_bytes(source.row_count, choice.projections, top_k, source.dtype.itemsize)
    if not size:
        raise GoldenError(f"{name} holds no element", kind="golden-refused")
    full = tokens <= choice.full_tokens or size <= max(SMALL_BYTES, compact) or not source.dtype.is_floating_point
    sketch = None
    if not full:
        sketch = sketch_tensor(source, projections=choice.projections, seed=seed, top_k=top_k)
    kept = KeptTensor(TensorEntry("", source.shape, dtype, content, {}), source if full else None, sketch)
    parts = {part: _digest_tensor(value) for part, value in kept.parts().items()}
    entry = TensorEntry(FULL if full else COMPACT, source.shape, dtype, content, parts)
    return KeptTensor(entry, kept.source, sketch)


def is_distribution(name: str) -> bool:
    """Tell whether a tensor's rows are logits over the vocabulary."""
    return name == "logits" or (name.startswith(PASSES) and name.endswith(".logits"))


def pack_tensors(tensors: Mapping[str, KeptTensor]) -> bytes:
    """Return the content of the safetensors file that keeps `tensors`; b"" for none.

    Raises:
        GoldenError: it would be larger than `LARGEST_BYTES`.
    """
    flat = {
        f"{name}:{part}": value.contiguous() for name, kept in tensors.items() for part, value in kept.parts().items()
    }
    size = sum(value.numel() * value.element_size() for value in flat.values())
    if size > LARGEST_BYTES:
        raise GoldenError(
            f"it would take {size / 1e6:.0f} MB, more than {LARGEST_BYTES / 1e6:.0f} MB",
            help="lower golden.full_tokens, or keep fewer tensors",
            kind="golden-refused",
        )
    content: bytes = save(flat) if flat else b""
    return content


def read_golden(slot: Slot, state: State = State.ACCEPTED) -> Golden:
    """Read a golden and verify every digest.

    Raises:
        GoldenError: there is none, or it is damaged.
    """
    manifest = read_manifest(slot, state)
    path = tensors_path(slot, manifest)
    try:
        stored = load(path.read_bytes()) if path else {}
    except (OSError, SafetensorError) as error:
        raise GoldenError(f"the golden's tensors {path} cannot be read: {error}", help=RESTORE) from error
    tensors = {}
    for name, entry in manifest.tensors.items():
        parts = {}
        for part, digest in entry.parts.items():
            value = stored.get(f"{name}:{part}")
            if value is None or _digest_tensor(value) != digest:
                raise GoldenError(f"the golden's tensor {name} does not match its digest", help=RESTORE)
            parts[part] = value
        if entry.form == FULL:
            tensors[name] = KeptTensor(entry, MemorySource(name, parts["values"]))
        else:
            tensors[name] = KeptTensor(entry, sketch=Sketch.from_parts(entry.shape, entry.dtype, manifest.seed, parts))
    return Golden(slot, manifest, tensors)


def digest_content(source: TensorSource) -> str:
    """Return the SHA-256 of a tensor's little-endian bytes, row by row, -0.0 taken for 0.0."""
    return _digest_rows(source)[0]


def _digest_rows(source: TensorSource, step: int = 64) -> tuple[str, bool]:
    digest, finite = hashlib.sha256(), True
    for start in range(0, source.row_count, step):
        rows = source.rows(start, min(start + step, source.row_count))
        if rows.dtype.is_floating_point:
            finite = finite and bool(torch.isfinite(rows).all())
            rows = rows + 0.0
        digest.update(_bytes_of(rows))
    return digest.hexdigest(), finite


def _digest_tensor(value: torch.Tensor) -> str:
    return hashlib.sha256(_bytes_of(value)).hexdigest()


def _bytes_of(value: torch.Tensor) -> bytes:
    return value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
