"""`specrunner golden`: the state of the goldens, and what becomes of those that wait or that no case names."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from specrunner.cli import add_command
from specrunner.cli.selection import DEFAULT_PATH, add_path_argument, load_paths
from specrunner.errors import ExitCode, UsageError
from specrunner.words import escape_controls, plural

if TYPE_CHECKING:
    from specrunner.golden.review import Waiting
    from specrunner.spec.loader import LoadedSpecs
    from specrunner.spec.model import Case

EXAMPLES = """\
examples:
  specrunner run specs/llada2 --update-goldens            make goldens for review
  specrunner golden status                                what is there, what waits, what has drifted
  specrunner golden review                                look at what waits, one after the other
  specrunner golden accept 'llada2/*' --reason "oneDNN 3.7 sums in another order"
  specrunner golden reject capital
  specrunner golden prune                                 delete the goldens that no case names
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own commands and their arguments."""
    commands = parser.add_subparsers(dest="golden_command", metavar="COMMAND", required=True)
    status = add_command(commands, "status", "the goldens that cases name, and those that none does")
    review = add_command(commands, "review", "go through the goldens that wait, one after the other")
    accept = add_command(commands, "accept", "accept the goldens that wait and fit a pattern")
    reject = add_command(commands, "reject", "delete the goldens that wait and fit a pattern")
    prune = add_command(commands, "prune", "delete the goldens that no case names")
    for command in (accept, reject):
        command.add_argument("pattern", metavar="PATTERN", help="a part of a case's id, or a pattern with *")
    accept.add_argument("--reason", required=True, metavar="TEXT", help="why the numbers changed; kept in the golden")
    accept.add_argument("--new-anchor", action="store_true", help="the change is meant: it takes the anchor's place")
    prune.add_argument("--dry-run", action="store_true", help="say what would be deleted")
    for command in (status, review):
        command.add_argument("--json", action="store_true", help="print JSON and change nothing")
    for command in (status, review, accept, reject, prune):
        add_path_argument(command)


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit status.

    Raises:
        UsageError: nothing fits the pattern, a golden is to be changed under CI, or a part of a file is to be pruned.
        GoldenError: a golden cannot be accepted or written.
        SpecError: a spec is invalid.
    """
    from specrunner.cli.run import require_numerics
    from specrunner.golden.store import refuse_under_ci

    command: str = options.golden_command
    if command in ("accept", "reject", "prune") or (command == "review" and not options.json):
        refuse_under_ci(f"`golden {command}`")
    require_numerics()
    loaded = load_paths(options.paths)
    cases = loaded.require_valid()
    if command == "status":
        return show_status(options, loaded)
    if command == "prune":
        return prune(options, loaded)
    waiting = find_waiting_cases(loaded, options.paths or [DEFAULT_PATH], cases)
    if command == "review":
        return review_waiting(waiting, as_json=options.json)
    return settle(options, waiting)


def show_status(options: argparse.Namespace, loaded: LoadedSpecs) -> int:
    """Print the state of every golden; 1 when one is damaged, stale or drifted."""
    from specrunner.golden.census import find_unreferenced, measure_bytes, take_stock

    paths = options.paths or [DEFAULT_PATH]
    entries = take_stock(loaded.cases)
    filtered = any("::" in path for path in paths)
    unreferenced = [] if filtered else find_unreferenced(paths, loaded.files, loaded.cases)
    bad = any(entry.is_bad for entry in entries)
    if options.json:
        shown = {
            "goldens": [entry.to_json() for entry in entries],
            "unreferenced": [slot.label for slot in unreferenced],
        }
        print(json.dumps(shown, indent=2))
        return ExitCode.FAILED if bad else ExitCode.PASSED
    for entry in entries:
        drift = f", {entry.drift.largest:.2g} from the anchor" if entry.drift and entry.state != "missing" else ""
        note = f": {entry.note}" if entry.note else ""
        print(f"{entry.state:8} {entry.slot.label}{drift}{note}")
        if entry.waits and entry.state != "waiting":
            print(f"{'':8} a new one waits for review")
    for slot in unreferenced:
        print(f"no case  {slot.label}: `specrunner golden prune` deletes it")
    size = sum(measure_bytes(entry.slot) for entry in entries) + sum(map(measure_bytes, unreferenced))
    print(
        f"{plural(len(entries), 'golden')}, {size / 1e6:.2f} MB; {plural(len(unreferenced), 'golden')} without a case"
    )
    return ExitCode.FAILED if bad else ExitCode.PASSED


def prune(options: argparse.Namespace, loaded: LoadedSpecs) -> int:
    """Delete the goldens that no case names."""
    from specrunner.golden.census import find_unreferenced
    from specrunner.golden.store import remove

    paths = options.paths or [DEFAULT_PATH]
    part = next((path for path in paths if "::" in path), None)
    if part is not None:
        raise UsageError(
            f"prune works on whole specs, not on {part}", help="name spec files or directories: a part cannot tell"
        )
    unreferenced = find_unreferenced(paths, loaded.files, loaded.cases)
    for slot in unreferenced:
        print(f"{'would delete' if options.dry_run else 'deleted'} {slot.label}")
        if not options.dry_run:
            remove(slot)
    if not unreferenced:
        print("every golden is named by a case")
    return ExitCode.PASSED


def find_waiting_cases(loaded: LoadedSpecs, paths: Sequence[str], cases: Sequence[Case]) -> list[Waiting]:
    """Return what waits for a review in the specs that were named, with its cases."""
    from specrunner.golden.census import find_unreferenced, find_waiting
    from specrunner.golden.keys import find_root, find_slot
    from specrunner.golden.review import read_waiting

    by_place = {}
    for case in cases:
        if case.golden is not None:
            place = find_slot(case, "")
            by_place[place.root, place.suite, place.case] = case
    whole = [path for path in paths if "::" not in path]
    unreferenced = set(find_unreferenced(whole, loaded.files, cases)) if whole else set()
    waiting = []
    for slot in find_waiting(find_root(file)[0] for file in loaded.files):
        owner = by_place.get((slot.root, slot.suite, slot.case))
        if owner is not None or slot in unreferenced:
            waiting.append(read_waiting(slot, owner))
    return waiting


def review_waiting(waiting: list[Waiting], *, as_json: bool) -> int:
    """Print what waits as JSON, or go through it."""
    from specrunner.golden.review import review

    if as_json:
        print(json.dumps([one.to_json() for one in waiting], indent=2))
        return ExitCode.PASSED
    if not waiting:
        print("no golden waits for a review")
        return ExitCode.PASSED
    counts = review(waiting, input, lambda line: print(escape_controls(line), flush=True))
    print(", ".join(f"{number} {name}" for name, number in counts.items()))
    return ExitCode.PASSED


def settle(options: argparse.Namespace, waiting: Sequence[Waiting]) -> int:
    """Accept or reject what fits the pattern; all of it is tried, and the first refusal decides the exit status."""
    from specrunner.errors import GoldenError
    from specrunner.golden.census import match_slot
    from specrunner.golden.review import accept_waiting
    from specrunner.golden.store import reject

    chosen = [one for one in waiting if match_slot(options.pattern, one.slot, one.case)]
    if not chosen:
        names = ", ".join(one.slot.label for one in waiting[:5])
        raise UsageError(
            f"no golden that waits fits {options.pattern!r}",
            help=f"these wait: {names}" if names else "none waits; make them with `specrunner run … --update-goldens`",
        )
    refused = 0
    for one in chosen:
        try:
            if options.golden_command == "accept":
                accept_waiting(one, options.reason, new_anchor=options.new_anchor)
            else:
                reject(one.slot)
        except GoldenError as error:
            refused += 1
            print(f"error: {error.message}", file=sys.stderr)
            if error.help:
                print(f"  help: {error.help}", file=sys.stderr)
            continue
        print(f"{options.golden_command}ed {escape_controls(one.slot.label)}")
    return ExitCode.USAGE if refused else ExitCode.PASSED
