"""Kept captures and verdicts on disk: one directory or file an entry, named by its key.

An entry appears whole, by one rename, and states the digest of each of its files; one that does not hold is deleted
when it is found. Captures are linked, not copied, where the file system allows it, and nobody writes into either end.
Any number of processes may use one store: there is no index that they could disagree about, and an entry that another
process deletes in the meantime is a miss.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specrunner.cache.digests import digest_file
from specrunner.cache.entries import ENTRY, link, list_folder, note_use, read_entry, read_use, remove, seal
from specrunner.folders import cache_folder
from specrunner.secrets import own_redactor

CAPTURES, VERDICTS, SESSIONS = KINDS = "captures", "verdicts", "sessions"

TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
"""What a file system says when a directory is to be renamed to where something lies."""

TURNS = 5
"""How often an entry is tried to be put in its place, while other processes delete there and put back."""

LEFT_BEHIND = 24 * 3600.0
"""Seconds after which an unfinished entry belongs to a process that is gone."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A capture's entry.

    Attributes:
        facts: of the session that made it.
        seconds: that the request took.
        size: bytes of its files.
    """

    facts: Mapping[str, Any]
    seconds: float
    size: int


@dataclass(frozen=True, slots=True)
class Item:
    """What lies in the store, for those who count and delete.

    Attributes:
        path: the entry's directory or file.
        kind: `captures`, `verdicts` or `sessions`.
        size: bytes.
        used: seconds since the epoch of its last use.
    """

    path: Path
    kind: str
    size: int
    used: float


class Store:
    """A folder of kept entries.

    Args:
        folder: where they are; it need not exist.

    Attributes:
        folder: the same.
        problem: why something could not be kept, or "".
        damaged: entries that were found damaged, and deleted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problem = ""
        self.damaged = 0

    def find_capture(self, key: str, target: Path, *, uses: bool = True) -> Kept | None:
        """Put a kept capture's files into `target`, a directory that is made; None when there is none that holds.

        Args:
            key: of the capture.
            target: where its files go.
            uses: whether this counts as a use of it.
        """
        place = self._place(CAPTURES, key)
        entry = read_entry(place / ENTRY, key)
        if entry is None:
            self._drop_damaged(place)
            return None
        try:
            target.mkdir(parents=True, exist_ok=True)
            for name, (_, digest) in entry["files"].items():
                if Path(name).name != name or not (place / name).is_file():
                    raise ValueError("not the name of a file")
                link(place / name, target / name)
                if digest_file(target / name) != digest:
                    raise ValueError("another digest")
        except OSError:  # there is no room for it where it should go, which says nothing about the entry
            shutil.rmtree(target, ignore_errors=True)
            return None
        except ValueError:
            shutil.rmtree(target, ignore_errors=True)
            self._drop_damaged(place)
            return None
        if uses:
            note_use(place)
        return Kept(entry["facts"], entry["seconds"], sum(size for size, _ in entry["files"].values()))

    def has_capture(self, key: str) -> bool:
        """Tell whether there seems to be an entry; its files are not looked at."""
        return (self._place(CAPTURES, key) / ENTRY).is_file()

    def keep_capture(
        self, key: str, source: Path, facts: Mapping[str, Any], seconds: float, *, used: int | None = None
    ) -> None:
        """Keep a complete capture; where that is not possible, note why and go on.

        Args:
            key: of the capture.
            source: the directory of its files.
            facts: of the session that made it.
            seconds: that the request took.
            used: nanoseconds since the epoch of its last use; None is now.
        """
        place = self._place(CAPTURES, key)
        scratch: str | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            scratch = tempfile.mkdtemp(prefix=".new-", dir=self.folder)
            files = {}
            for file in sorted(source.iterdir()):
                link(file, Path(scratch) / file.name)
                files[file.name] = [file.stat().st_size, digest_file(file)]
            stated = own_redactor().redact_values(facts)
            text = seal(key, {"files": files, "facts": stated, "seconds": seconds})
            (Path(scratch) / ENTRY).write_text(text, encoding="utf-8")
            if used is not None:
                note_use(Path(scratch), used)
            self._put(Path(scratch), place)
        except OSError as error:
            self.problem = f"captures could not be kept in {self.folder}: {error.strerror or error}"
        finally:
            if scratch is not None:
                shutil.rmtree(scratch, ignore_errors=True)

    def _put(self, scratch: Path, place: Path) -> None:
        """Give a whole entry its place: that of one that does not hold, but not that of one that another process kept.

        Raises:
            OSError: it cannot be put there.
        """
        place.parent.mkdir(parents=True, exist_ok=True)
        for turn in range(TURNS):
            try:
                scratch.rename(place)
                return
            except OSError as error:
                if error.errno not in TAKEN or turn == TURNS - 1:
                    raise
            if read_entry(place / ENTRY, place.name) is not None:
                return
            self._drop_damaged(place)

    def drop_capture(self, key: str) -> None:
        """Delete a capture's entry."""
        self._remove(self._place(CAPTURES, key))

    def find_record(self, kind: str, key: str, *, uses: bool = True) -> dict[str, Any] | None:
        """Return a kept JSON object of `verdicts` or `sessions`; None when there is none that holds.

        Args:
            kind: which of the two.
            key: of the object.
            uses: whether this counts as a use of it.
        """
        file = self._place(kind, key)
        entry = read_entry(file, key)
        if entry is None:
            self._drop_damaged(file)
            return None
        if uses:
            note_use(file)
        return dict(entry["record"])

    def keep_record(self, kind: str, key: str, record: Mapping[str, Any], *, used: int | None = None) -> None:
        """Keep a JSON object, in the place of one of the same key; `used` as for a capture."""
        file = self._place(kind, key)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=".new-", delete=False) as stream:
                try:
                    stream.write(seal(key, {"record": record}))
                    stream.close()
                    if used is not None:
                        note_use(Path(stream.name), used)
                    Path(stream.name).replace(file)
                except BaseException:
                    Path(stream.name).unlink()
                    raise
        except OSError as error:
            self.problem = f"{kind} could not be kept in {self.folder}: {error.strerror or error}"

    def list_items(self) -> Iterator[Item]:
        """Yield every entry."""
        for kind in KINDS:
            for path in list_folder(self.folder / kind, "[0-9a-f]*", below="??"):
                try:
                    files = list(path.iterdir()) if path.is_dir() else [path]
                    size = sum(file.stat().st_size for file in files)
                    used = read_use(path) / 1e9
                except OSError:  # deleted by another process, or unfinished
                    continue
                yield Item(path, kind, size, used)

    def prune(
        self, *, most_bytes: float = float("inf"), unused_since: float = 0.0, spare_since: float = float("inf")
    ) -> list[Item]:
        """Delete what was not used since a moment, and then what was unused longest until the rest is small enough.

        Args:
            most_bytes: that may stay.
            unused_since: seconds since the epoch; older entries go.
            spare_since: seconds since the epoch; younger entries stay, whatever the size.

        Returns:
            What was deleted.
        """
        items = sorted(self.list_items(), key=lambda item: item.used)
        total = sum(item.size for item in items)
        gone = []
        for item in items:
            if item.used < unused_since or (total > most_bytes and item.used < spare_since):
                self._remove(item.path)
                total -= item.size
                gone.append(item)
        now = time.time()
        for path in self._list_unfinished():
            with suppress(OSError):
                if now - path.stat().st_mtime > LEFT_BEHIND:
                    remove(path)
        return gone

    def copy_to(self, other: Store, used_since: float = 0.0) -> tuple[int, int]:
        """Copy the entries that hold and were used since a moment into another store, which is no use of them.

        The other store notes the later time of last use of an entry that both have, and has the later record of a
        session.

        Returns:
            How many are in the other store now that were not, and how many did not hold.
        """
        copied, bad = 0, 0
        for item in self.list_items():
            key = item.path.name
            place = other._place(item.kind, key)
            try:
                used, there = read_use(item.path), read_use(place, missing=-1)
            except OSError:  # deleted by another process
                continue
            if item.used < used_since or there >= used:
                continue
            if there >= 0 and item.kind != SESSIONS:
                note_use(place, used)
                continue
            if item.kind == CAPTURES:
                with tempfile.TemporaryDirectory(prefix="specrunner-") as scratch:
                    kept = self.find_capture(key, Path(scratch) / "capture", uses=False)
                    if kept is not None:
                        other.keep_capture(key, Path(scratch) / "capture", kept.facts, kept.seconds, used=used)
            else:
                kept_record = self.find_record(item.kind, key, uses=False)
                if kept_record is not None:
                    other.keep_record(item.kind, key, kept_record, used=used)
            found = read_use(place, missing=-1) >= 0
            copied += found
            bad += not found
        return copied, bad

    def _list_unfinished(self) -> Iterator[Path]:
        """Yield what is being written or deleted, or was when its process died, and captures that lack their entry."""
        yield from list_folder(self.folder, ".new-*")
        yield from list_folder(self.folder, ".gone-*")
        for kind in KINDS:
            yield from list_folder(self.folder / kind, ".new-*", below="??")
        for path in list_folder(self.folder / CAPTURES, "[0-9a-f]*", below="??"):
            if not (path / ENTRY).exists():
                yield path

    def _place(self, kind: str, key: str) -> Path:
        return Path(f"{self.folder}/{kind}/{key[:2]}/{key}")

    def _drop_damaged(self, place: Path) -> None:
        if place.exists():
            self.damaged += 1
            self._remove(place)

    def _remove(self, path: Path) -> None:
        """Take an entry away at once, whole, and then delete it."""
        with suppress(OSError):
            gone = Path(tempfile.mkdtemp(prefix=".gone-", dir=self.folder))
            path.rename(gone / path.name)
            shutil.rmtree(gone, ignore_errors=True)


def kept_folder() -> Path:
    """Return where captures and verdicts are kept on this machine."""
    return cache_folder() / "kept"
