"""What a checkpoint's files contain, as short digests for reports, caches and goldens."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from specrunner.engines.checkpoint_files import TOKENIZER, list_weights

WHOLE_BYTES = 2 << 30
"""Weights up to this size in all are digested byte by byte; larger ones by samples."""

SAMPLE_BYTES = 1 << 16
SAMPLES = 64


def describe_checkpoint(folder: Path) -> dict[str, Any]:
    """Digest a checkpoint's directory.

    Returns:
        `model_digest`: SHA-256 (first 16 hex digits) over the names and contents of `config.json`, the checkpoint's own
        Python files and the weights; `tokenizer_digest` likewise over the tokenizer's files, or None without any;
        `weights_digested`: `whole`, or `sampled` when the weights are over `WHOLE_BYTES` (then size, first and last
        bytes and evenly spaced samples enter for each file, and a change between two samples stays unseen);
        `weights_bytes`: their size.
    """
    files = sorted(entry for entry in folder.iterdir() if entry.is_file())
    weights = list_weights(folder)
    size = sum(file.stat().st_size for file in weights)
    whole = size <= WHOLE_BYTES
    definition = [file for file in files if file.name == "config.json" or file.suffix == ".py"]
    tokenizer = [file for file in files if file.name in TOKENIZER]
    return {
        "model_digest": digest_files([*definition, *weights], whole),
        "tokenizer_digest": digest_files(tokenizer, True) if tokenizer else None,
        "weights_digested": "whole" if whole else "sampled",
        "weights_bytes": size,
    }


def start_describing(folder: Path) -> Future[dict[str, Any]]:
    """Begin `describe_checkpoint` in a thread, so that an engine that loads meanwhile does not wait for it."""
    threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
    described = threads.submit(describe_checkpoint, folder)
    threads.shutdown(wait=False)
    return described


def digest_files(files: list[Path], whole: bool) -> str:
    """Return the first 16 hex digits of the SHA-256 over names and contents of `files`, in their order."""
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        total.update(digest_content(file) if whole else digest_samples(file))
    return total.hexdigest()[:16]


def digest_content(file: Path) -> bytes:
    """Return the SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def digest_samples(file: Path) -> bytes:
    """Return the SHA-256 of `SAMPLES` evenly spaced pieces of a file, its first and last bytes among them."""
    digest = hashlib.sha256()
    last = max(0, file.stat().st_size - SAMPLE_BYTES)
    with file.open("rb") as stream:
        for index in range(SAMPLES):
            stream.seek(last * index // (SAMPLES - 1))
            digest.update(stream.read(SAMPLE_BYTES))
    return digest.digest()
