"""Digests of files and directories by content, remembered by what the file system says of each file.

A file is read again when its size, its inode, or a time of it differs, or when it was changed so shortly before it was
read that its times could not tell a second change. The time of the last change of status (`ctime`) cannot be set by a
program, so a file that is swapped and given its old date back is read as well.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SETTLED_NS = 2_000_000_000
"""Nanoseconds that must lie between a file's last change and its reading for its digest to be remembered."""

SKIPPED = frozenset({"__pycache__", "node_modules"})
"""Folders that hold nothing an engine computes with; hidden ones and virtual environments are left out too."""

NOTHING = hashlib.sha256().hexdigest()
"""The digest of a place without a file."""

RECORDS = "*.dist-info/RECORD"
"""Where an installer notes the files of a package, each with its digest."""

VERSION = 2

_INCIDENTAL = re.compile(
    r"""(\.\./)+(bin|Scripts)/ | [^,]*\.pyc, | [^/]+\.dist-info/(?!entry_points\.txt,) | [^/,]+\.pth, | __editable__""",
    re.VERBOSE,
)
"""Lines of a record that say nothing of what is computed."""

Key = tuple[Path, frozenset[str]]
"""A place, and the names of folders that are left out of it."""

Found = tuple[str, str, os.stat_result]
"""A file's name below its place, its path and its status."""


class Digests:
    """Reads files once.

    Args:
        folder: where digests are remembered, one file for each directory asked for; None remembers nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._known: dict[Key, str] = {}
        self._remembered: dict[Key, Remembered] = {}

    def of(self, place: Path, skipped: frozenset[str] = frozenset()) -> str:
        """Return the SHA-256 over the names and contents of all files below a directory, or of one file.

        Args:
            place: a directory or a file; links are followed. What is not there has a digest of its own.
            skipped: names of folders to leave out, beside the usual ones.
        """
        return self._look_up((place, skipped), lambda: walk(place, skipped), digest_file)

    def of_records(self, folder: Path) -> str:
        """Return the SHA-256 over what installers noted of the packages in a folder, see `digest_record`."""
        return self._look_up((folder / RECORDS, frozenset()), lambda: walk_records(folder), digest_record)

    def _look_up(self, key: Key, find: Callable[[], Iterable[Found]], read: Callable[[str], str]) -> str:
        if key not in self._known:
            self._known[key] = self._digest(key, find(), read)
        return self._known[key]

    def forget(self) -> None:
        """Look at every file again; one that looks as it did is not read again, also where nothing can be written."""
        self._known.clear()

    def state_of(self, place: Path) -> str:
        """Return a digest of what the file system says now of all files below a directory, or of one file.

        It stays just where nothing was written in between, also where a file was changed and changed back.
        """
        return describe_states(sorted(walk(place, frozenset())))

    def _digest(self, key: Key, found: Iterable[Found], read: Callable[[str], str]) -> str:
        memory = None if self._folder is None else self._folder / f"{_short(str(key[0].absolute()))}.json"
        known = self._remembered.get(key) or read_memory(memory)
        listed = sorted(found)
        states = describe_states(listed)
        if known.states != states:
            known = self._read_changed(listed, states, known, read, memory)
        self._remembered[key] = known
        return known.total

    def _read_changed(
        self, listed: Iterable[Found], states: str, known: Remembered, read: Callable[[str], str], memory: Path | None
    ) -> Remembered:
        """Return what is known of a place once the files are read that are not as they were; it is remembered."""
        remembered = known.list_files()
        files: dict[str, list[Any]] = {}
        total = hashlib.sha256()
        changed = False
        for name, path, state in listed:
            seen = describe_state(state)
            entry = remembered.get(name)
            if entry is None or entry[:4] != seen:
                now = time.time_ns()
                entry = [*seen, read(path)]
                changed = True
                if now - max(state.st_ctime_ns, state.st_mtime_ns) < SETTLED_NS:
                    states = ""
                    total.update(f"{name}\0{entry[4]}\0".encode("utf-8", "surrogateescape"))
                    continue
            files[name] = entry
            total.update(f"{name}\0{entry[4]}\0".encode("utf-8", "surrogateescape"))
        now_known = Remembered(states, total.hexdigest(), json.dumps(files))
        if memory is not None and (changed or len(files) != len(remembered)):
            write_memory(memory, now_known)
        return now_known


@dataclass(frozen=True, slots=True)
class Remembered:
    """What is remembered of a place.

    Attributes:
        states: digest of what the file system said of all its files (`describe_states`), or "" where one of them had
            been changed so shortly before that it has to be read again.
        total: the place's digest then.
        files: as JSON, by name, what the file system said of each file, and its digest.
    """

    states: str = ""
    total: str = ""
    files: str = "{}"

    def list_files(self) -> dict[str, list[Any]]:
        """Return what `files` stands for; of a whole environment that takes longer than to look at all its files."""
        return dict(json.loads(self.files))


def describe_states(listed: Iterable[Found]) -> str:
    """Return a digest of names and states of files, in their order: equal just where no file has to be read again."""
    lines = [f"{name}\0{describe_state(state)}\n" for name, _, state in listed]
    return _short("".join(lines))


def describe_state(state: os.stat_result) -> list[int]:
    """Return what of a file's status differs when its content does."""
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]


def walk(place: Path, skipped: frozenset[str]) -> Iterator[Found]:
    """Yield name, path and status of every file below a directory, the name relative to it and "" for a file itself."""
    with suppress(OSError):
        state = place.stat()
        if not stat.S_ISDIR(state.st_mode):
            yield "", str(place), state
            return
    pending = [""]
    seen: set[tuple[int, int]] = set()
    while pending:
        folder = pending.pop()
        try:
            entries = list(os.scandir(place / folder))
        except OSError:
            continue
        if folder and any(entry.name == "pyvenv.cfg" for entry in entries):
            continue
        for entry in entries:
            try:
                state = entry.stat()
            except OSError:  # a link to nowhere
                continue
            name = f"{folder}{entry.name}"
            if not stat.S_ISDIR(state.st_mode):
                if stat.S_ISREG(state.st_mode):
                    yield name, entry.path, state
                continue
            identity = state.st_dev, state.st_ino  # a link may lead back up
            if entry.name not in SKIPPED | skipped and not entry.name.startswith(".") and identity not in seen:
                seen.add(identity)
                pending.append(f"{name}/")


def walk_records(folder: Path) -> Iterator[Found]:
    """Yield name, path and status of the record of each package that is installed in a folder."""
    for path in folder.glob(RECORDS):
        with suppress(OSError):
            yield path.parent.name, str(path), path.stat()


def digest_record(path: str) -> str:
    """Return the SHA-256 over the files that a record lists and their digests; "" when it cannot be read.

    Left out is what differs where the same package is installed elsewhere or once more: scripts, which name their
    interpreter, byte code, what tells where the package came from, and the links of editable installs.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return ""
    kept = sorted(line for line in lines if not _INCIDENTAL.match(line))
    return hashlib.sha256("\n".join(kept).encode("utf-8", "surrogateescape")).hexdigest()


def digest_file(path: str | Path) -> str:
    """Return the SHA-256 of a file's content; "" when it cannot be read."""
    try:
        with Path(path).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return ""


def read_memory(memory: Path | None) -> Remembered:
    """Return what is remembered of a place; nothing when the file is missing, of another version or damaged."""
    if memory is None:
        return Remembered()
    try:
        head, files = memory.read_text(encoding="utf-8").split("\n", 1)
        data = json.loads(head)
        if data["version"] == VERSION and data["check"] == _short(f"{data['states']} {data['total']} {files}"):
            return Remembered(data["states"], data["total"], files)
    except (OSError, ValueError, TypeError, KeyError):
        pass
    return Remembered()


def write_memory(memory: Path, known: Remembered) -> None:
    """Remember; nothing is lost where it cannot be written."""
    check = _short(f"{known.states} {known.total} {known.files}")
    head = json.dumps({"version": VERSION, "check": check, "states": known.states, "total": known.total})
    partial = memory.with_name(f"{memory.name}.{os.getpid()}-{threading.get_ident()}.partial")
    with suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(f"{head}\n{known.files}", encoding="utf-8")
        partial.replace(memory)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:24]
