"""A review of goldens that wait: what its reader sees, and what each answer does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from specrunner.golden.diff import Change, TensorChange
from specrunner.golden.keys import Slot
from specrunner.golden.manifest import GoldenError
from specrunner.golden.record import write_new
from specrunner.golden.review import (
    ANCHOR_QUESTION,
    QUESTION,
    Waiting,
    accept_waiting,
    describe,
    describe_change,
    read_waiting,
    review,
)
from specrunner.golden.store import State, exists, manifest_path, read_manifest
from specrunner.results import CheckResult
from specrunner.spec.model import Case
from tests.golden.builders import keep, make, make_capture, make_case


class Reviewer:
    """Gives answers in their order, and nothing after the last; notes what it was shown and asked."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []
        self.told: list[str] = []

    def ask(self, question: str) -> str:
        self.asked.append(question)
        if not self.answers:
            raise EOFError
        return self.answers.pop(0)

    def go(self, *waiting: Waiting) -> tuple[int, int, int]:
        counts = review(list(waiting), self.ask, self.told.append)
        assert list(counts) == ["accepted", "rejected", "skipped"]
        return counts["accepted"], counts["rejected"], counts["skipped"]


def wait(case: Case, scale: float = 0.0) -> Slot:
    """Put a golden up for review."""
    return write_new(make(case, make_capture(scale, rows=6, width=40))).slot


def small(case: Case, scale: float = 0.0) -> Slot:
    """Make a golden and accept it."""
    return keep(case, make_capture(scale, rows=6, width=40)).slot


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return make_case(tmp_path)


def test_a_first_golden_is_shown_whole_and_accepted(case: Case) -> None:
    slot = wait(case)
    waiting = read_waiting(slot, case)
    assert (waiting.change, waiting.drift, waiting.problem, waiting.leaves_anchor) == (None, None, "", False)
    shown = list(describe(waiting))
    assert shown[0] == f"golden {slot.label}"
    assert shown[1] == f"  case {case.node_id}"
    assert shown[2].endswith(" by hf/float32, 1 captures that agree bit by bit")
    assert shown[3:] == [
        "  there is no golden yet: this is the first",
        "    embeddings [6, 8] float32, full",
        "    logits [6, 40] float32, full",
        "    tokens [5, 6, 7, 8]",
    ]
    reviewer = Reviewer("accept", " because ")
    assert reviewer.go(waiting) == (1, 0, 0)
    assert reviewer.told == ["1 of 1", *shown]
    assert reviewer.asked == [QUESTION, "reason: "]
    assert read_manifest(slot).reason == "because"
    assert not exists(slot, State.NEW)


def test_a_golden_without_tokens_is_shown_without_them(case: Case) -> None:
    slot = write_new(make(case, replace(make_capture(rows=6, width=40), output_token_ids=None))).slot
    assert list(describe(read_waiting(slot, case)))[-1] == "    logits [6, 40] float32, full"


def test_repeats_that_agree_within_the_tolerance_say_so(case: Case) -> None:
    captures = [make_capture(scale, rows=6, width=40) for scale in (0, 1e-6)]
    waiting = read_waiting(write_new(make(case, *captures)).slot, case)
    assert "2 captures that agree within the tolerance" in list(describe(waiting))[2]
    assert (waiting.to_json()["repeats"], waiting.to_json()["agreement"]) == (2, "tolerance")


@pytest.mark.parametrize(
    ("answers", "counts", "left"),
    [
        (("s",), (0, 0, 1), True),
        (("skip",), (0, 0, 1), True),
        (("q",), (0, 0, 1), True),
        (("quit",), (0, 0, 1), True),
        ((), (0, 0, 1), True),
        (("a",), (0, 0, 1), True),  # and no reason: nobody is there any more
        (("r",), (0, 1, 0), False),
        (("reject",), (0, 1, 0), False),
        ((" a ", "x"), (1, 0, 0), False),
        (("", "yes", "a", "x"), (1, 0, 0), False),
        (("a", " ", "r"), (0, 1, 0), False),
    ],
)
def test_answers(case: Case, answers: tuple[str, ...], counts: tuple[int, int, int], left: bool) -> None:
    slot = wait(case)
    reviewer = Reviewer(*answers)
    assert reviewer.go(read_waiting(slot, case)) == counts
    assert exists(slot, State.NEW) is left
    assert exists(slot) is bool(counts[0])
    assert reviewer.told.count("answer a, r, s or q") == sum(answer in ("", "yes") for answer in answers)


def test_quitting_leaves_all_that_follow(tmp_path: Path) -> None:
    cases = [make_case(tmp_path, name) for name in ("one", "two", "three")]
    slots = [wait(case) for case in cases]
    reviewer = Reviewer("r", "q")
    assert reviewer.go(*map(read_waiting, slots, cases)) == (0, 1, 2)
    assert [exists(slot, State.NEW) for slot in slots] == [False, True, True]
    assert [line for line in reviewer.told if " of " in line] == ["1 of 3", "2 of 3"]


def test_what_leaves_its_anchor_is_accepted_as_the_new_one_or_not_at_all(case: Case) -> None:
    slot = small(case)
    wait(case, 1e-2)
    waiting = read_waiting(slot, case)
    assert waiting.leaves_anchor
    assert waiting.to_json()["leaves_anchor"] is True
    last = list(describe(waiting))[-1]
    assert last.startswith("  from the anchor: rel l2 0.01") and last.endswith(", beyond the case's tolerance")
    reviewer = Reviewer("a", "meant", "A", "a new kernel")
    assert reviewer.go(waiting) == (1, 0, 0)
    assert reviewer.asked == [ANCHOR_QUESTION, "reason: ", ANCHOR_QUESTION, "reason: "]
    assert reviewer.told[-1] == (
        f"{slot.label} is further from its anchor than the case's tolerance allows: "
        "if the change is meant, accept it with --new-anchor"
    )
    assert read_manifest(slot, State.ANCHOR).reason == read_manifest(slot).reason == "a new kernel"


def test_what_no_case_names_cannot_be_accepted(case: Case) -> None:
    slot = wait(case)
    waiting = read_waiting(slot, None)
    assert waiting.problem == "no case names this golden"
    assert list(describe(waiting))[1] == "  problem: no case names this golden"
    shown = waiting.to_json()
    assert (shown["case"], shown["first"], shown["problem"]) == (None, False, "no case names this golden")
    with pytest.raises(GoldenError, match="cannot be accepted: no case names this golden") as caught:
        accept_waiting(waiting, "x")
    assert caught.value.kind == "golden-refused"


def test_a_damaged_one_can_only_be_rejected(case: Case) -> None:
    slot = wait(case)
    manifest_path(slot, State.NEW).write_text("{")
    waiting = read_waiting(slot, case)
    assert list(describe(waiting)) == [
        f"golden {slot.label}",
        f"  case {case.node_id}",
        f"  problem: {waiting.problem}",
    ]
    assert "is not whole" in waiting.problem
    shown = waiting.to_json()
    assert (shown["date"], shown["repeats"], shown["agreement"], shown["change"]) == (None, None, None, None)
    reviewer = Reviewer("a", "x", "r")
    assert reviewer.go(waiting) == (0, 1, 0)
    assert not exists(slot, State.NEW)


def test_a_damaged_predecessor_is_told_and_can_be_replaced(case: Case) -> None:
    slot = small(case)
    wait(case, 1e-6)
    manifest_path(slot).write_text("{")
    waiting = read_waiting(slot, case)
    assert waiting.problem.startswith("what it replaces: the golden ")
    assert waiting.change is None and waiting.drift is not None
    assert not waiting.to_json()["first"]
    accept_waiting(waiting, "again")
    assert read_manifest(slot).reason == "again"


def failed(message: str) -> CheckResult:
    return CheckResult("logits", "sqnr", False, message, {})


PASSED = CheckResult("logits", "sqnr", True, "", {})


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        (TensorChange("x", True), ["  x: the same"]),
        (TensorChange("x", False, note="kept no more"), ["  x: kept no more"]),
        (TensorChange("x", False, measurements={"relative_l2": 0.123456}), ["  x: rel l2 0.1235, not judged"]),
        (TensorChange("x", False, measurements={"relative_l2": "inf"}), ["  x: rel l2 inf, not judged"]),
        (
            TensorChange("x", False, measurements={"relative_l2": 0.5, "estimated": True}, checks=(PASSED,)),
            ["  x: rel l2 about 0.5, within the tolerance"],
        ),
        (
            TensorChange("x", False, measurements={"relative_l2": 0.5}, checks=(PASSED, failed("too far"))),
            ["  x: rel l2 0.5, beyond the tolerance", "    sqnr: too far"],
        ),
        (
            TensorChange(
                "x",
                False,
                measurements={"relative_l2": 0.5},
                movers=({"token": 3, "column": 4, "old": 1.0, "new": 2.25}, {"token": 5, "relative_l2": 0.25}),
            ),
            ["  x: rel l2 0.5, not judged", "    token 3, column 4: 1 -> 2.25", "    token 5: rel l2 about 0.25"],
        ),
    ],
)
def test_a_tensors_lines(change: TensorChange, lines: list[str]) -> None:
    assert list(describe_change(Change({}, (change,), ()))) == lines


def test_tokens_stand_side_by_side_as_far_as_there_are_any() -> None:
    part = {"name": "output_token_ids", "prefix": 3, "start": 2, "lengths": (5, 4), "old": [7, 8, 9], "new": [7, 10]}
    assert list(describe_change(Change({}, (), (part,)))) == [
        "  output tokens: 5 became 4, the first 3 are the same",
        "    position       old       new",
        "           2         7         7",
        "           3         8        10  <",
        "           4         9         -  <",
    ]
    gone = {"name": "prompt_token_ids", "prefix": 0, "start": 0, "lengths": (0, 1), "old": None, "new": [1]}
    assert list(describe_change(Change({}, (), (gone,))))[2:] == ["           0         -         1  <"]
