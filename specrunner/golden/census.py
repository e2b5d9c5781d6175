"""Taking stock: the goldens that cases name, in what state they are, and those that no case names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from specrunner.errors import GoldenError
from specrunner.golden.diff import Change, compare_goldens
from specrunner.golden.kept import Golden, read_golden
from specrunner.golden.keys import SPECS, Slot, find_root, find_slot
from specrunner.golden.staleness import digest_model, find_stale
from specrunner.golden.store import MAKE, State, exists, list_slots, manifest_path
from specrunner.spec.model import Case, Model

OK, MISSING, DAMAGED, STALE, DRIFTED, WAITING = "ok", "missing", "damaged", "stale", "drifted", "waiting"
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Entry:
    """One golden.

    Attributes:
        slot: its place.
        case: the case that names it, or None.
        state: `ok`, `missing`, `damaged`, `stale` (of another spec or checkpoint), `drifted` (beyond the tolerance from
            its anchor), `unknown` (nothing is wrong, but its checkpoint is not on this machine), or `waiting` (a first
            one waits for review).
        note: what is wrong, or "".
        waits: whether a new one waits for review.
        golden: the accepted one, when it can be read.
        drift: how the accepted one differs from its anchor, when both can be read.
    """

    slot: Slot
    case: Case | None
    state: str
    note: str = ""
    waits: bool = False
    golden: Golden | None = None
    drift: Change | None = None

    @property
    def is_bad(self) -> bool:
        """Whether a run would have no evidence from it, or a wrong one."""
        return self.state in (DAMAGED, STALE, DRIFTED)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        manifest = self.golden.manifest if self.golden else None
        return {
            "golden": self.slot.label,
            "case": self.case.node_id if self.case else None,
            "device": self.slot.device,
            "state": self.state,
            "note": self.note,
            "waits_for_review": self.waits,
            "bytes": measure_bytes(self.slot),
            "date": manifest.date if manifest else None,
            "reason": manifest.reason if manifest else None,
            "drift": None if self.drift is None else self.drift.to_json(),
        }


def take_stock(cases: Iterable[Case]) -> list[Entry]:
    """Return an entry for every golden that `cases` name, those that are missing included, in the order of cases."""
    listed: dict[Path, list[Slot]] = {}
    digest = cache(digest_model)
    entries = []
    for case in cases:
        if case.golden is None:
            continue
        place = find_slot(case, "")
        slots = listed.setdefault(place.root, list_slots(place.root))
        mine = [slot for slot in slots if (slot.suite, slot.case) == (place.suite, place.case)]
        entries += [examine(slot, case, digest) for slot in mine]
        if not mine:
            entries.append(Entry(find_slot(case, "?"), case, MISSING, MAKE))
    return entries


def examine(slot: Slot, case: Case | None, digest: Callable[[Model], str] = digest_model) -> Entry:
    """Read a golden and its anchor, and say how they stand.

    Args:
        slot: its place.
        case: the case that names it, or None; then nothing but damage is looked for.
        digest: returns a checkpoint's digest, or "" where it is not on this machine.
    """
    waits = exists(slot, State.NEW)
    if not exists(slot):
        note = "accept or reject it with `specrunner golden review`" if waits else MAKE
        return Entry(slot, case, WAITING if waits else MISSING, note, waits)
    try:
        golden = read_golden(slot)
        anchor = read_golden(slot, State.ANCHOR) if exists(slot, State.ANCHOR) else None
    except GoldenError as error:
        return Entry(slot, case, DAMAGED, error.message, waits)
    drift = compare_goldens(golden, anchor, case) if anchor else None
    state, note = _judge(golden, case, drift, digest)
    if state == OK and not anchor:
        note = "it has no anchor"
    return Entry(slot, case, state, note, waits, golden, drift)


def _judge(golden: Golden, case: Case | None, drift: Change | None, digest: Callable[[Model], str]) -> tuple[str, str]:
    """Return the state of a golden that can be read, and what is wrong with it."""
    model_digest = digest(case.model) if case is not None and golden.manifest.model_digest else ""
    if case is not None and (problem := find_stale(golden.manifest, case, model_digest)):
        return STALE, problem
    if drift is not None and drift.exceeds:
        return DRIFTED, "further from its anchor than the case's tolerance allows"
    if case is not None and golden.manifest.model_digest and not model_digest:
        return UNKNOWN, f"{case.model.label} is not on this machine, so its checkpoint may be another"
    return OK, ""


def find_unreferenced(paths: Sequence[str], files: Sequence[str], cases: Iterable[Case]) -> list[Slot]:
    """Return the goldens that belong to specs under `paths`, and that no case names.

    Args:
        paths: what was selected, directories and whole files.
        files: the spec files found there.
        cases: all cases of these files.
    """
    named = {(slot.root.resolve(), slot.suite, slot.case) for slot in _named(cases)}
    folders = [path for path in paths if Path(path).is_dir()]
    roots = [find_root(f"{Path(path).as_posix()}/x.yaml")[0] for path in folders]
    roots += [find_root(file)[0] for file in files]
    places = [Path(path).resolve() for path in paths]
    found = []
    for root in _distinct(roots):
        for slot in list_slots(root):
            if (root.resolve(), slot.suite, slot.case) not in named and _is_under(slot, places):
                found.append(slot)
    return found


def _named(cases: Iterable[Case]) -> list[Slot]:
    return [find_slot(case, "") for case in cases if case.golden is not None]


def _is_under(slot: Slot, places: Sequence[Path]) -> bool:
    """Tell whether the spec that a golden belongs to lies at or below one of `places`."""
    base = slot.root.resolve().parent
    specs = [folder / (slot.suite + ending) for folder in (base / SPECS, base) for ending in (".yaml", ".yml")]
    return any(spec.is_relative_to(place) for spec in specs for place in places)


def find_waiting(roots: Iterable[Path]) -> list[Slot]:
    """Return the goldens that wait for a review."""
    return [slot for root in _distinct(roots) for slot in list_slots(root) if exists(slot, State.NEW)]


def _distinct(roots: Iterable[Path]) -> list[Path]:
    """Return folders once each, whatever they are called: a user may name `specs` by its full path."""
    return sorted({root.resolve(): root for root in roots}.values())


def measure_bytes(slot: Slot) -> int:
    """Return what all files of a golden take on disk."""
    folder, stem = slot.stem.parent, slot.stem.name
    if not folder.is_dir():
        return 0
    return sum(file.stat().st_size for file in folder.iterdir() if file.name.startswith(stem + "."))


def match_slot(pattern: str, slot: Slot, case: Case | None) -> bool:
    """Tell whether a pattern means a golden: `*` stands for anything; without one, any part of its names will do."""
    names = [slot.label, manifest_path(slot).as_posix()]
    if case is not None:
        names += [case.name, case.id, case.node_id]
    if "*" not in pattern:
        return any(pattern in name for name in names)
    return any(_glob(pattern, name) for name in names)


def _glob(pattern: str, name: str) -> bool:
    """Match `*` alone: brackets stand in every case's id."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name) is not None
