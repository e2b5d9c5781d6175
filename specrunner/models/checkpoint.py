"""Safetensors checkpoints read as float64 numpy arrays, one tensor at a time and with bounded memory."""

from __future__ import annotations

import json
import mmap
import struct
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from specrunner.errors import ModelUnavailable, ModelUnsupported

STORED = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
"""Stored dtypes that numpy knows; BF16 is decoded by hand."""

LONGEST_HEADER = 100_000_000
"""Bytes of the longest header, as in the safetensors library."""


@dataclass(frozen=True, slots=True)
class Location:
    """Where a tensor's bytes are: file, stored dtype, shape, first byte and the byte after the last."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class Checkpoint:
    """The tensors of a checkpoint directory, by name.

    Args:
        directory: holds `model.safetensors`, or shards with `model.safetensors.index.json`.
        cache_bytes: how much memory the float64 copies may take; the least recently used are dropped.

    Raises:
        ModelUnavailable: there are no weights, or a file's header cannot be read.
    """

    def __init__(self, directory: Path, cache_bytes: int = 2 << 30) -> None:
        index = directory / "model.safetensors.index.json"
        try:
            shards = json.loads(index.read_text())["weight_map"].values() if index.exists() else ["model.safetensors"]
            self._maps = {directory / shard: _map_file(directory / shard) for shard in sorted(set(shards))}
            self._locations: dict[str, Location] = {}
            for file, data in self._maps.items():
                self._locations |= _read_header(file, data)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error) as error:
            raise ModelUnavailable(f"cannot read the weights in {directory}: {error}") from error
        self._cache: OrderedDict[str, np.ndarray] = OrderedDict()
        self._cache_bytes = cache_bytes

    def __contains__(self, name: str) -> bool:
        return name in self._locations

    def read(self, name: str, shape: Sequence[int | None]) -> np.ndarray:
        """Return a tensor as float64.

        Args:
            name: its name in the checkpoint.
            shape: the shape it must have; None stands for any size.

        Returns:
            A read-only array; the same object while it is in the cache.

        Raises:
            ModelUnavailable: there is no such tensor, its shape is another, or its bytes are cut off.
        """
        if name in self._cache:
            self._cache.move_to_end(name)
            return self._cache[name]
        location = self._locations.get(name)
        if location is None:
            raise ModelUnavailable(f"the checkpoint has no tensor {name}")
        wanted = [have if want is None else want for want, have in zip(shape, location.shape, strict=False)]
        if len(shape) != len(location.shape) or tuple(wanted) != location.shape:
            raise ModelUnavailable(f"{name} has the shape {list(location.shape)}, not {list(shape)}")
        try:
            array = self._decode(name, location)
        except (ValueError, TypeError, OverflowError) as error:
            raise ModelUnavailable(f"the bytes of {name} are not what {location.file.name} states: {error}") from error
        array.flags.writeable = False
        self._cache[name] = array
        while len(self._cache) > 1 and sum(a.nbytes for a in self._cache.values()) > self._cache_bytes:
            self._cache.popitem(last=False)
        return array

    def _decode(self, name: str, location: Location) -> np.ndarray:
        raw = self._maps[location.file][location.start : location.stop]
        if len(raw) != location.stop - location.start:
            raise ModelUnavailable(f"the bytes of {name} are cut off in {location.file.name}")
        if location.dtype == "BF16":  # the upper half of a float32
            wide = np.frombuffer(raw, "<u2").astype(np.uint32) << 16
            return wide.view(np.float32).astype(np.float64).reshape(location.shape)
        if location.dtype not in STORED:
            raise ModelUnsupported(f"{name} is stored as {location.dtype}, which the oracle cannot decode")
        return np.frombuffer(raw, STORED[location.dtype]).astype(np.float64).reshape(location.shape)


def _map_file(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _read_header(path: Path, data: mmap.mmap) -> dict[str, Location]:
    """Read a safetensors header: eight bytes of length, then JSON, then the tensors' bytes."""
    (length,) = struct.unpack("<Q", data[:8])
    if length > min(LONGEST_HEADER, len(data) - 8):
        raise ValueError(f"{path.name} states a header of {length} bytes")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    origin = 8 + length
    end = origin
    for start, stop in sorted(tuple(entry["data_offsets"]) for entry in header.values()):
        if origin + start != end or stop < start:
            raise ValueError(f"{path.name} has tensors that overlap, or bytes of no tensor")
        end = origin + stop
    if end != len(data):
        what = "is cut off" if end > len(data) else "holds bytes of no tensor"
        raise ValueError(f"{path.name} {what}: it has {len(data):,} bytes, and its header states {end:,}")
    return {
        name: Location(
            path, entry["dtype"], tuple(entry["shape"]), *(origin + offset for offset in entry["data_offsets"])
        )
        for name, entry in header.items()
    }
