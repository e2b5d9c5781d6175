"""Kept entries as files: their text, the time of their last use, and what deletes, links and lists them."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

VERSION = 1
ENTRY = "entry.json"
"""The file of a capture's directory that states what is in it; a record is one such file."""


def list_folder(folder: Path, pattern: str, below: str | None = None) -> list[Path]:
    """Return the paths in a folder, or in the folders below it, whose names fit, in order.

    `Path.glob` raises when another process deletes what it is about to look into; here what is gone is not listed.

    Args:
        folder: where to look; it need not exist.
        pattern: of the names, as in `fnmatch`.
        below: a pattern of the folders in between; None looks into `folder` itself.
    """
    if below is not None:
        return [path for between in list_folder(folder, below) for path in list_folder(between, pattern)]
    try:
        return sorted(path for path in folder.iterdir() if fnmatch.fnmatch(path.name, pattern))
    except OSError:
        return []


def link(source: Path, target: Path) -> None:
    """Give a file a second name; copy it where the file system has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def read_use(path: Path, *, missing: int | None = None) -> int:
    """Return the nanoseconds since the epoch of the last use of an entry, a directory or a file.

    Args:
        path: of the entry.
        missing: what to return when it is not there; None raises.

    Raises:
        OSError: it is not there.
    """
    try:
        return (path / ENTRY if path.is_dir() else path).stat().st_mtime_ns
    except (FileNotFoundError, NotADirectoryError):
        if missing is None:
            raise
        return missing


def note_use(path: Path, used: int | None = None) -> None:
    """Note when an entry was used, in nanoseconds since the epoch; None is now. What cannot be written can be read."""
    with suppress(OSError):
        file = path / ENTRY if path.is_dir() else path
        if used is None:
            os.utime(file)
        else:
            os.utime(file, ns=(used, used))


def remove(path: Path) -> None:
    """Delete a directory or a file."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def seal(key: str, content: Mapping[str, Any]) -> str:
    """Return an entry's text: its digest in a line of its own, then the entry."""
    text = json.dumps({"version": VERSION, "key": key, **content})
    return f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def read_entry(file: Path, key: str) -> dict[str, Any] | None:
    """Return an entry whose digest, version and key hold, else None."""
    try:
        digest, text = file.read_bytes().split(b"\n", 1)
        if digest != hashlib.sha256(text).hexdigest().encode():
            return None
        entry = json.loads(text)
    except (OSError, ValueError):
        return None
    return entry if entry.get("version") == VERSION and entry.get("key") == key else None
