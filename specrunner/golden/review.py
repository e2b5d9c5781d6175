"""Reviewing goldens that wait: what changed, case after case, and the answer to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from specrunner.errors import GoldenError
from specrunner.golden.diff import Change, TensorChange, compare_goldens
from specrunner.golden.kept import Golden, read_golden
from specrunner.golden.keys import Slot
from specrunner.golden.store import State, accept, exists, reject
from specrunner.spec.model import Case

QUESTION = "[a]ccept  [r]eject  [s]kip  [q]uit: "
ANCHOR_QUESTION = "[A]ccept as the new anchor  [r]eject  [s]kip  [q]uit: "


@dataclass(frozen=True, slots=True)
class Waiting:
    """A golden that waits for a review.

    Attributes:
        slot: its place.
        case: the case that names it, or None.
        new: the golden, or None when it is damaged.
        change: from the accepted one; None when there is none that can be read.
        drift: from the anchor; None when there is none that can be read.
        problem: why it cannot be accepted, or what is wrong with the old one; "".
    """

    slot: Slot
    case: Case | None
    new: Golden | None
    change: Change | None = None
    drift: Change | None = None
    problem: str = ""

    @property
    def leaves_anchor(self) -> bool:
        """Whether it is further from the anchor than the tolerance allows."""
        return self.drift is not None and self.drift.exceeds

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {
            "golden": self.slot.label,
            "case": self.case.node_id if self.case else None,
            "device": self.slot.device,
            "first": self.change is None and not self.problem,
            "problem": self.problem,
            "leaves_anchor": self.leaves_anchor,
            "change": None if self.change is None else self.change.to_json(),
            "drift": None if self.drift is None else self.drift.to_json(),
            "date": self.new.manifest.date if self.new else None,
            "repeats": self.new.manifest.repeats if self.new else None,
            "agreement": self.new.manifest.agreement if self.new else None,
        }


def read_waiting(slot: Slot, case: Case | None) -> Waiting:
    """Read a golden that waits, with what it would replace."""
    try:
        new = read_golden(slot, State.NEW)
    except GoldenError as error:
        return Waiting(slot, case, None, problem=error.message)
    problem = "" if case is not None else "no case names this golden"
    changes: dict[State, Change | None] = {State.ACCEPTED: None, State.ANCHOR: None}
    for state in changes:
        if exists(slot, state):
            try:
                changes[state] = compare_goldens(new, read_golden(slot, state), case)
            except GoldenError as error:
                problem = problem or f"what it replaces: {error.message}"
    return Waiting(slot, case, new, changes[State.ACCEPTED], changes[State.ANCHOR], problem)


def accept_waiting(waiting: Waiting, reason: str, *, new_anchor: bool = False) -> None:
    """Accept a golden.

    Raises:
        GoldenError: it is damaged, no case names it, no reason is given, or it leaves its anchor and is not to be the
            new one.
    """
    if waiting.new is None or waiting.case is None:
        raise GoldenError(f"{waiting.slot.label} cannot be accepted: {waiting.problem}", kind="golden-refused")
    if not reason.strip():
        raise GoldenError(f"{waiting.slot.label} cannot be accepted without a reason", kind="golden-refused")
    if waiting.leaves_anchor and not new_anchor:
        raise GoldenError(
            f"{waiting.slot.label} is further from its anchor than the case's tolerance allows",
            help="if the change is meant, accept it with --new-anchor",
            kind="golden-refused",
        )
    accept(waiting.slot, reason.strip(), reviewed=waiting.new.manifest, new_anchor=new_anchor)


def review(waiting: list[Waiting], ask: Callable[[str], str], tell: Callable[[str], None]) -> Mapping[str, int]:
    """Go through goldens one after the other.

    Args:
        waiting: what to go through.
        ask: puts a question and returns the answer; raises EOFError when nobody answers any more.
        tell: shows a line.

    Returns:
        How many were `accepted`, `rejected` and `skipped`.
    """
    counts = {"accepted": 0, "rejected": 0, "skipped": 0}
    for number, one in enumerate(waiting, 1):
        tell(f"{number} of {len(waiting)}")
        for line in describe(one):
            tell(line)
        try:
            answer = _decide(one, ask, tell)
        except EOFError:
            answer = "quit"
        if answer == "quit":
            counts["skipped"] += len(waiting) - number + 1
            break
        counts[answer] += 1
    return counts


def _decide(one: Waiting, ask: Callable[[str], str], tell: Callable[[str], None]) -> str:
    question = ANCHOR_QUESTION if one.leaves_anchor else QUESTION
    while True:
        answer = ask(question).strip()
        if answer in ("s", "skip"):
            return "skipped"
        if answer in ("q", "quit"):
            return "quit"
        if answer in ("r", "reject"):
            reject(one.slot)
            return "rejected"
        if answer in ("a", "A", "accept"):
            try:
                accept_waiting(one, ask("reason: "), new_anchor=answer == "A")
            except GoldenError as error:
                tell(f"{error.message}{f': {error.help}' if error.help else ''}")
                continue
            return "accepted"
        tell("answer a, r, s or q")


def describe(one: Waiting) -> Iterator[str]:
    """Yield the lines that a reviewer reads."""
    yield f"golden {one.slot.label}"
    if one.case is not None:
        yield f"  case {one.case.node_id}"
    if one.problem:
        yield f"  problem: {one.problem}"
    if one.new is None:
        return
    manifest = one.new.manifest
    yield (
        f"  made {manifest.date} by {manifest.engine}/{manifest.dtype}, {manifest.repeats} captures that agree "
        f"{'bit by bit' if manifest.agreement == 'bitwise' else 'within the tolerance'}"
    )
    if one.change is None:
        yield "  there is no golden yet: this is the first"
        for name, entry in manifest.tensors.items():
            yield f"    {name} {list(entry.shape)} {entry.dtype}, {entry.form}"
        if manifest.output_token_ids is not None:
            yield f"    tokens {list(manifest.output_token_ids)}"
        return
    yield from describe_change(one.change)
    if one.leaves_anchor:
        assert one.drift is not None
        yield f"  from the anchor: rel l2 {one.drift.largest:.4g}, beyond the case's tolerance"


def describe_change(change: Change) -> Iterator[str]:
    """Yield the lines that say what changed: provenance, tokens side by side, tensors in model order."""
    for name, (old, new) in change.provenance.items():
        yield f"  {name}: {old} -> {new}"
    for part in change.tokens:
        yield from _describe_tokens(part)
    for tensor in change.tensors:
        yield from _describe_tensor(tensor)


def _describe_tokens(part: Mapping[str, Any]) -> Iterator[str]:
    before, after = part["lengths"]
    name = part["name"].removesuffix("_ids").replace("_", " ")
    yield f"  {name}s: {before} became {after}, the first {part['prefix']} are the same"
    old, new = part["old"] or [], part["new"] or []
    yield "    position       old       new"
    for offset in range(max(len(old), len(new))):
        left = str(old[offset]) if offset < len(old) else "-"
        right = str(new[offset]) if offset < len(new) else "-"
        yield f"    {part['start'] + offset:8} {left:>9} {right:>9}{'' if left == right else '  <'}"


def _describe_tensor(change: TensorChange) -> Iterator[str]:
    if change.same:
        yield f"  {change.name}: the same"
        return
    if change.note:
        yield f"  {change.name}: {change.note}"
        return
    numbers = change.measurements or {}
    about = "about " if numbers.get("estimated") else ""
    verdict = "within the tolerance" if change.holds else "beyond the tolerance" if change.checks else "not judged"
    yield f"  {change.name}: rel l2 {about}{_number(numbers.get('relative_l2'))}, {verdict}"
    for check in change.checks:
        if not check.passed:
            yield f"    {check.rule}: {check.message}"
    for mover in change.movers:
        if "column" in mover:
            values = f"{_number(mover['old'])} -> {_number(mover['new'])}"
            yield f"    token {mover['token']}, column {mover['column']}: {values}"
        else:
            yield f"    token {mover['token']}: rel l2 about {_number(mover['relative_l2'])}"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
