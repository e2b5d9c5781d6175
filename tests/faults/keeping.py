"""What must be as it was after a fault: the cache, the goldens, and that no process is left."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from specrunner.cache.store import CAPTURES, Store
from specrunner.sessions.captures import read_capture
from tests.waiting import wait_for
from tests.workplace import Workplace, find_processes


def check_cache(folder: Path) -> int:
    """Read every kept entry as a run would, and return their number; none may be damaged."""
    store = Store(folder / "kept")
    items = list(store.list_items())
    for item in items:
        if item.kind != CAPTURES:
            assert store.find_record(item.kind, item.path.name) is not None, f"{item.path} does not hold"
            continue
        with tempfile.TemporaryDirectory() as scratch:
            place = Path(scratch) / "capture"
            assert store.find_capture(item.path.name, place) is not None, f"{item.path} does not hold"
            read_capture(place)
    assert store.damaged == 0
    return len(items)


def digest_tree(folder: Path) -> dict[str, str]:
    """Return the digest of every file below a folder."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def wait_until_alone(place: Workplace) -> None:
    """Wait until no process of the workplace lives."""
    marker = place.environment["SPECRUNNER_TEST"]
    wait_for(lambda: not find_processes(marker), "every process is gone")
