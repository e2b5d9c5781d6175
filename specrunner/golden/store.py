"""The folder of goldens: reading, writing, accepting and removing, whole or not at all.

A golden is a manifest, `CASE@DEVICE.json`, that names the safetensors file beside it, `CASE@DEVICE.DIGEST.safetensors`.
Since that name follows the content, the manifest's own rename is the one moment at which a golden changes: whoever is
interrupted leaves the old golden or the new one. `.json.new` waits for a review, `.json.anchor` is the first one that
was ever accepted. Writers hold a lock on the folder.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path

from specrunner.config import is_ci
from specrunner.errors import GoldenError, UsageError
from specrunner.files import write_whole
from specrunner.folders import hold_lock
from specrunner.golden.keys import MANIFEST, Slot, parse_file
from specrunner.golden.manifest import RESTORE, Manifest

LOCK = ".lock"
TENSORS = ".safetensors"


class State(StrEnum):
    """Which of a slot's goldens is meant; the value ends its manifest's name."""

    ACCEPTED = ""
    NEW = ".new"
    ANCHOR = ".anchor"


def manifest_path(slot: Slot, state: State = State.ACCEPTED) -> Path:
    """Return where a manifest lies."""
    return slot.stem.with_name(slot.stem.name + MANIFEST + state.value)


def exists(slot: Slot, state: State = State.ACCEPTED) -> bool:
    """Tell whether there is such a golden, whole or not."""
    return manifest_path(slot, state).exists()


def read_manifest(slot: Slot, state: State = State.ACCEPTED) -> Manifest:
    """Read a manifest and make sure that its tensors are the ones it speaks of.

    Raises:
        GoldenError: there is none, or it or its tensors are damaged.
    """
    path = manifest_path(slot, state)
    try:
        manifest = Manifest.from_text(path.read_text(encoding="utf-8"), path.name)
    except FileNotFoundError:
        raise GoldenError(f"no golden {path.name}", help=MAKE, kind="golden-missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise GoldenError(f"the golden {path.name} cannot be read: {error}", help=RESTORE) from error
    if manifest.tensors_file:
        if not manifest.tensors_file.endswith(TENSORS) or set("/\\\0") & set(manifest.tensors_file):
            raise GoldenError(f"the golden {path.name} names a file elsewhere as its tensors", help=RESTORE)
        _check_tensors(path.with_name(manifest.tensors_file), manifest)
    return manifest


MAKE = "make it with `specrunner run … --update-goldens`, then `specrunner golden review`"


def _check_tensors(path: Path, manifest: Manifest) -> None:
    try:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise GoldenError(f"the golden's tensors {path.name} cannot be read: {error.strerror}", help=RESTORE) from error
    if found != manifest.tensors_sha256:
        raise GoldenError(f"the golden's tensors {path.name} do not match their digest", help=RESTORE)


def write_golden(slot: Slot, state: State, manifest: Manifest, tensors: bytes) -> Manifest:
    """Write a golden; the manifest comes last.

    Args:
        slot: its place.
        state: as what.
        manifest: without `tensors_file` and `tensors_sha256`.
        tensors: the safetensors file's content, b"" when no tensor is kept.

    Returns:
        The manifest as written.

    Raises:
        GoldenError: the folder is read-only or the disk is full; what was there before is there still.
    """
    digest = hashlib.sha256(tensors).hexdigest() if tensors else ""
    name = f"{slot.stem.name}.{digest[:12]}{TENSORS}" if tensors else ""
    manifest = replace(manifest, tensors_file=name, tensors_sha256=digest)
    with lock(slot.root), translate_errors(slot):
        if tensors and not slot.stem.with_name(name).exists():
            write_whole(slot.stem.with_name(name), tensors)
        write_whole(manifest_path(slot, state), manifest.to_text().encode())
        drop_unused_tensors(slot)
    return manifest


def accept(slot: Slot, reason: str, *, reviewed: Manifest | None = None, new_anchor: bool = False) -> Manifest:
    """Make the golden that waits the accepted one. The first one that is accepted becomes the anchor.

    Args:
        slot: the place.
        reason: why, kept in the manifest.
        reviewed: what was looked at; another one that took its place meanwhile is not accepted.
        new_anchor: whether it takes the anchor's place, too.

    Raises:
        GoldenError: nothing waits, it is damaged, or it cannot be written.
    """
    with lock(slot.root), translate_errors(slot):
        waiting = read_manifest(slot, State.NEW)
        if reviewed is not None and waiting != reviewed:
            raise GoldenError(f"another golden took the place of {slot.label}", help="review it", kind="golden-refused")
        manifest = replace(waiting, reason=reason)
        text = manifest.to_text().encode()
        if new_anchor or not exists(slot, State.ANCHOR):
            write_whole(manifest_path(slot, State.ANCHOR), text)
        write_whole(manifest_path(slot), text)
        manifest_path(slot, State.NEW).unlink(missing_ok=True)
        drop_unused_tensors(slot)
    return manifest


def reject(slot: Slot) -> None:
    """Delete the golden that waits.

    Raises:
        GoldenError: the folder is read-only.
    """
    with lock(slot.root), translate_errors(slot):
        manifest_path(slot, State.NEW).unlink(missing_ok=True)
        drop_unused_tensors(slot)


def remove(slot: Slot) -> None:
    """Delete all goldens of a slot, its anchor included; an empty folder goes, too.

    Raises:
        GoldenError: the folder is read-only.
    """
    with lock(slot.root), translate_errors(slot):
        for state in State:
            manifest_path(slot, state).unlink(missing_ok=True)
        drop_unused_tensors(slot)
        folder = slot.stem.parent
        while folder != slot.root and not any(folder.iterdir()):
            folder.rmdir()
            folder = folder.parent


def drop_unused_tensors(slot: Slot) -> None:
    """Delete the slot's tensors files that no manifest names; the caller holds the lock."""
    if not slot.stem.parent.is_dir():
        return
    used = set()
    for state in State:
        if exists(slot, state):
            try:
                text = manifest_path(slot, state).read_text(encoding="utf-8")
                used.add(Manifest.from_text(text, "").tensors_file)
            except (GoldenError, OSError, UnicodeDecodeError):
                return  # it may name any of them: a damaged manifest costs nothing but its own
    for file in slot.stem.parent.iterdir():
        if _is_ours(slot, file.name) and file.name not in used:
            file.unlink()


def _is_ours(slot: Slot, name: str) -> bool:
    """Tell whether a name is one of the slot's tensors files, all of which lie beside its manifests."""
    rest = name.removeprefix(slot.stem.name + ".")
    return rest != name and rest.endswith(TENSORS) and not set("./\\\0") & set(rest.removesuffix(TENSORS))


def list_slots(root: Path) -> list[Slot]:
    """Return every slot under a folder of goldens that has a manifest in any state, sorted."""
    slots = set()
    for state in State:
        for file in root.rglob(f"*{MANIFEST}{state.value}") if root.is_dir() else ():
            slot = parse_file(root, file)
            if slot is not None:
                slots.add(slot)
    return sorted(slots)


def tensors_path(slot: Slot, manifest: Manifest) -> Path | None:
    """Return the tensors file of a manifest, or None when it keeps none."""
    return slot.stem.with_name(manifest.tensors_file) if manifest.tensors_file else None


@contextmanager
def lock(root: Path) -> Iterator[None]:
    """Hold the lock of a folder of goldens.

    Raises:
        GoldenError: the folder is read-only.
    """
    try:
        held = hold_lock(root / LOCK)
        held.__enter__()
    except OSError as error:
        raise _unwritable(root, error) from error
    try:
        yield
    finally:
        held.__exit__(None, None, None)


@contextmanager
def translate_errors(slot: Slot) -> Iterator[None]:
    """Turn a full disk or a read-only folder into an error of the user's.

    Raises:
        GoldenError: that, or the slot leads out of its folder of goldens, by its name or by a link.
    """
    if not slot.stem.parent.resolve().is_relative_to(slot.root.resolve()):
        raise GoldenError(
            f"the golden {slot.label} leads out of {slot.root}",
            help="goldens lie in folders of their own, not behind links",
            kind="golden-refused",
        )
    try:
        yield
    except OSError as error:
        raise _unwritable(slot.root, error, slot.label) from error


def _unwritable(root: Path, error: OSError, what: str = "") -> GoldenError:
    subject = f"the golden {what}" if what else "goldens"
    return GoldenError(
        f"{subject} cannot be written under {root}: {error.strerror or error}",
        help="make room or make the folder writable; what was there before is unchanged",
        kind="golden-refused",
    )


def refuse_under_ci(what: str, environ: Mapping[str, str] = os.environ) -> None:
    """Refuse to change goldens where no one looks.

    Raises:
        UsageError: the variable `CI` is set.
    """
    if is_ci(environ):
        raise UsageError(
            f"{what} does not run under CI (the variable CI is set)",
            help="goldens change on your own machine: run it there, review, and commit the folder golden",
        )
