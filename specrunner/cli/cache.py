"""`specrunner cache`: what is kept of earlier runs, and how it is made smaller or taken elsewhere."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from specrunner.cache.store import CAPTURES, VERDICTS, Store, kept_folder
from specrunner.cli import add_command
from specrunner.config import load_settings
from specrunner.errors import ExitCode, UsageError
from specrunner.sessions.answers import answers_folder, measure_books, prune_books

EXAMPLES = """\
examples:
  specrunner cache status                        what is kept, and how much room it takes
  specrunner cache prune                         down to the size that the settings allow
  specrunner cache prune --unused 30             and what no run has used for 30 days
  specrunner cache prune --all
  specrunner cache export .cache/specrunner --used 7    for a CI system's cache
  specrunner cache import .cache/specrunner
"""

DAY = 24 * 3600.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own commands and their arguments."""
    commands = parser.add_subparsers(dest="cache_command", metavar="COMMAND", required=True)
    status = add_command(commands, "status", "count captures and verdicts, and measure them")
    status.add_argument("--json", action="store_true", help="print JSON")
    prune = add_command(commands, "prune", "delete what was unused longest")
    prune.add_argument("--limit", metavar="GB", type=_number, help="what may stay (default: the setting cache_limit)")
    prune.add_argument("--unused", metavar="DAYS", type=_number, help="delete also what no run has used for so long")
    prune.add_argument("--all", action="store_true", help="delete everything")
    export = add_command(commands, "export", "copy what is kept into a directory")
    export.add_argument(
        "--used",
        metavar="DAYS",
        type=_number,
        help="only what a run has used in this time; delete from the directory what none has",
    )
    export.add_argument(
        "--limit", metavar="GB", type=_number, help="what may be in the directory then; what was unused longest goes"
    )
    take = add_command(commands, "import", "take over what another machine has exported")
    for command in (export, take):
        what = "where to" if command is export else "what `cache export` has written"
        command.add_argument("directory", metavar="DIRECTORY", type=Path, help=what)


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return number


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit status.

    Raises:
        UsageError: there is nothing to import, or the store or the directory cannot be written.
    """
    store = Store(kept_folder())
    command: str = options.cache_command
    if command == "status":
        return show_status(store, as_json=options.json)
    if command == "prune":
        limit = 0.0 if options.all else options.limit
        if limit is None:
            limit = load_settings({}, os.environ, Path.cwd()).cache_limit
        return prune(store, limit * 1e9, float("inf") if options.unused is None else options.unused * DAY)
    other = Store(options.directory)
    if command == "export":
        since = 0.0 if options.used is None else time.time() - options.used * DAY
        return copy(store, other, since, float("inf") if options.limit is None else options.limit * 1e9)
    if not options.directory.is_dir():
        raise UsageError(f"there is no directory {options.directory} to import from")
    return copy(other, store)


def show_status(store: Store, *, as_json: bool) -> int:
    """Print how much is kept."""
    items = list(store.list_items())
    books = measure_books(answers_folder())
    kinds = {kind: [item for item in items if item.kind == kind] for kind in (CAPTURES, VERDICTS)}
    facts = {
        "folder": str(store.folder),
        "bytes": sum(item.size for item in items),
        **{kind: {"count": len(found), "bytes": sum(item.size for item in found)} for kind, found in kinds.items()},
        "answers": {"count": books.count, "bytes": books.size},
        "oldest_use": min((item.used for item in items), default=None),
    }
    if as_json:
        print(json.dumps(facts, indent=2))
        return ExitCode.PASSED
    print(store.folder)
    for kind, found in kinds.items():
        print(f"  {len(found):>7,} {kind:<9} {format_bytes(sum(item.size for item in found)):>9}")
    print(f"  {books.count:>7,} {'answers':<9} {format_bytes(books.size):>9}  of benchmarks that were interrupted")
    if items:
        days = (time.time() - min(item.used for item in items)) / DAY
        print(f"  the longest unused for {days:.1f} days")
    return ExitCode.PASSED


def prune(store: Store, most_bytes: float, unused_seconds: float) -> int:
    """Delete what is too much or too old, and say what went."""
    since = 0.0 if unused_seconds == float("inf") else time.time() - unused_seconds
    gone = store.prune(most_bytes=most_bytes, unused_since=since)
    older_than = 0.0 if not most_bytes else None if unused_seconds == float("inf") else unused_seconds
    books = prune_books(answers_folder(), older_than=older_than)
    left = sum(item.size for item in store.list_items())
    freed = format_bytes(sum(item.size for item in gone) + books.size)
    print(f"deleted {len(gone) + books.count:,} entries of {freed}; {format_bytes(left)} stay")
    return ExitCode.PASSED


def copy(source: Store, target: Store, used_since: float = 0.0, most_bytes: float = float("inf")) -> int:
    """Copy what holds from one store to another, and say how much.

    Args:
        source: where it is.
        target: where it goes, and where no older entry stays.
        used_since: seconds since the epoch of the last use of the oldest one.
        most_bytes: that the target may then hold.

    Raises:
        UsageError: the target cannot be written.
    """
    copied, bad = source.copy_to(target, used_since)
    if target.problem:
        raise UsageError(target.problem)
    gone = target.prune(most_bytes=most_bytes, unused_since=used_since)
    deleted = f", {len(gone):,} of {format_bytes(sum(item.size for item in gone))} deleted there" if gone else ""
    print(f"{copied:,} entries copied to {target.folder}{deleted}")
    if bad:
        print(f"{bad:,} damaged entries left out", file=sys.stderr)
    return ExitCode.PASSED


def format_bytes(number: float) -> str:
    """Return `123 B`, `4.5 kB`, `6.7 MB` or `8.9 GB`, powers of 1000."""
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"
