"""Captures on disk: a safetensors file beside a JSON file that is written last and marks it complete."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specrunner.errors import CaptureIncomplete

if TYPE_CHECKING:
    from specrunner.engines.base import Capture

TENSORS_FILE = "tensors.safetensors"
CAPTURE_FILE = "capture.json"
BENCHMARK_FILE = "benchmark.json"


@dataclass(frozen=True, slots=True)
class StoredCapture:
    """A complete capture on disk.

    Attributes:
        tensors_path: the safetensors file, or None when the capture holds no tensor.
        tensor_names: names in that file.
        prompt_token_ids: the ids the model saw.
        output_token_ids: the ids it generated, or None.
        facts: facts of the request.
        benchmark_path: the record of a benchmark's answers, or None.
    """

    tensors_path: Path | None
    tensor_names: tuple[str, ...]
    prompt_token_ids: tuple[int, ...]
    output_token_ids: tuple[int, ...] | None
    facts: Mapping[str, Any]
    benchmark_path: Path | None = None


def locate_capture(directory: Path, session: str, request: str) -> Path:
    """Return the folder of a capture below a run's directory, by the keys of its session and its request."""
    return directory / "captures" / session / request


def write_capture(directory: Path, capture: Capture) -> None:
    """Write a capture, its tensors brought to the CPU; the completion mark is renamed into place after all else.

    Raises:
        OSError: the disk is full or read-only.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tensors_path = directory / TENSORS_FILE
    if capture.tensors:
        _save_tensors(capture.tensors, tensors_path)
    record = {
        "complete": True,
        "tensors": sorted(capture.tensors),
        "tensors_bytes": tensors_path.stat().st_size if capture.tensors else 0,
        "prompt_token_ids": list(map(int, capture.prompt_token_ids)),
        "output_token_ids": None if capture.output_token_ids is None else list(map(int, capture.output_token_ids)),
        "facts": capture.facts,
    }
    partial = directory / f"{CAPTURE_FILE}.partial"
    partial.write_text(json.dumps(record), encoding="utf-8")
    partial.replace(directory / CAPTURE_FILE)


def bring_to_cpu(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return tensors, torch's or numpy's, contiguous and on the CPU; all are torch's where one is."""
    if any(hasattr(tensor, "detach") for tensor in tensors.values()):
        import torch

        return {
            name: (tensor if hasattr(tensor, "detach") else torch.from_numpy(tensor)).detach().cpu().contiguous()
            for name, tensor in tensors.items()
        }
    import numpy

    return {name: numpy.ascontiguousarray(array) for name, array in tensors.items()}


def count_bytes(tensors: Mapping[str, Any]) -> int:
    """Return the bytes of tensors, torch's or numpy's."""
    return sum(int(tensor.nbytes) for tensor in tensors.values())


def _save_tensors(tensors: Mapping[str, Any], path: Path) -> None:
    ready = bring_to_cpu(tensors)
    if any(hasattr(tensor, "detach") for tensor in ready.values()):
        from safetensors.torch import save_file

        save_file(ready, str(path))
    else:
        from safetensors.numpy import save_file as save_arrays

        save_arrays(ready, str(path))


def read_capture(directory: Path) -> StoredCapture:
    """Read a capture's record; the tensors stay on disk.

    Raises:
        CaptureIncomplete: the completion mark is absent or unreadable, or the tensors file is not the one it speaks of.
    """
    try:
        record = json.loads((directory / CAPTURE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CaptureIncomplete(f"the capture lacks its completion mark: {error}") from error
    try:
        return _read_record(directory, record)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CaptureIncomplete(f"the capture's record is damaged: {type(error).__name__}: {error}") from error


def _read_record(directory: Path, record: Mapping[str, Any]) -> StoredCapture:
    names = tuple(record["tensors"])
    path = directory / TENSORS_FILE if names else None
    if path is not None and (not path.exists() or path.stat().st_size != record["tensors_bytes"]):
        raise CaptureIncomplete("the capture's tensors file is missing or truncated")
    output = record["output_token_ids"]
    return StoredCapture(
        tensors_path=path,
        tensor_names=names,
        prompt_token_ids=tuple(record["prompt_token_ids"]),
        output_token_ids=None if output is None else tuple(output),
        facts=record["facts"],
        benchmark_path=directory / BENCHMARK_FILE if (directory / BENCHMARK_FILE).exists() else None,
    )


def pack_capture(directory: Path) -> dict[str, bytes]:
    """Return a capture's files by their names, to be sent elsewhere."""
    return {file.name: file.read_bytes() for file in sorted(directory.iterdir()) if file.is_file()}


def unpack_capture(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write a capture's files; the completion mark is renamed into place after everything else is on disk."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if name != CAPTURE_FILE:
            (directory / name).write_bytes(content)
    partial = directory / f"{CAPTURE_FILE}.partial"
    partial.write_bytes(files[CAPTURE_FILE])
    partial.replace(directory / CAPTURE_FILE)
