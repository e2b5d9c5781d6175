"""What a run does with goldens, without an engine: what it judges, what it writes, and what it must not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest

from specrunner.engines.base import Capture
from specrunner.golden.keeper import Judgement, Keeper, find_candidate
from specrunner.golden.kept import read_golden
from specrunner.golden.keys import Slot, find_slot, name_device
from specrunner.golden.record import write_new
from specrunner.golden.store import State, accept, exists, manifest_path
from specrunner.results import CheckResult
from specrunner.sessions.captures import StoredCapture, read_capture, write_capture
from specrunner.spec.model import Benchmark, Case, Evaluation, GoldenChoice, Xfail
from tests.golden.builders import FACTS, make, make_capture, make_case

OUTPUT = [5, 6, 7, 8]
PASSED = CheckResult("logits", "sqnr", True, "", {})
WRONG = replace(PASSED, passed=False, message="far off")


class Place:
    """A folder with a case, and captures of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.case = make_case(folder)
        self.slot = find_slot(self.case, name_device("cpu"))
        self._made = 0

    def capture(self, scale: float = 1.0, output: list[int] | None = OUTPUT, **tensors: Any) -> StoredCapture:
        self._made += 1
        place = self.folder / f"capture-{self._made}"
        base = numpy.arange(1, 25, dtype=numpy.float32).reshape(6, 4)
        values = tensors or {"embeddings": base.copy(), "logits": base * numpy.float32(scale)}
        write_capture(place, Capture([1, 2, 3, 4, 5, 6], values, output))
        return read_capture(place)

    def judge(
        self, keeper: Keeper, *, case: Case | None = None, checks: Any = (PASSED,), facts: Any = None, **captures: Any
    ) -> Judgement:
        captures = captures or {"candidate": self.capture()}
        told = {"candidate": FACTS} if facts is None else facts
        return keeper.judge(case or self.case, captures, told, checks)

    def keep(self, case: Case | None = None, scale: float = 1.0, **facts: Any) -> Slot:
        """Make a golden, and accept it."""
        slot = self.slot if not facts else find_slot(self.case, name_device(facts["device"]))
        keeper = Keeper(update=True)
        self.judge(keeper, case=case, facts={"candidate": {**FACTS, **facts}}, candidate=self.capture(scale))
        accept(slot, "first")
        return slot


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def subjects(judgement: Judgement) -> list[tuple[str, str, bool]]:
    return [(check.subject, check.against, check.passed) for check in judgement[0]]


AGREES = [(name, "golden", True) for name in ("tokenization", "embeddings", "logits", "tokens")]


@pytest.mark.parametrize("update", [True, False])
def test_a_case_without_a_golden_is_left_as_it_is(place: Place, update: bool) -> None:
    for changes in ({"golden": None}, {"benchmark": Benchmark(Evaluation(("mmlu",)), "absolute")}):
        keeper = Keeper(update)
        assert place.judge(keeper, case=replace(place.case, **changes)) == ((PASSED,), None)  # type: ignore[arg-type]
    assert not exists(place.slot, State.NEW)


def test_the_golden_is_judged_beside_the_reference(place: Place) -> None:
    place.keep()
    found = place.judge(Keeper())
    assert found[1] is None
    assert subjects(found) == [("logits", "reference", True), *AGREES]
    golden = read_golden(place.slot)
    for check in found[0][1:]:
        assert check.gates
        assert check.measurements["golden"] == place.slot.label
        assert check.measurements["golden_date"] == golden.manifest.date
        assert "golden_fallback" not in check.measurements
    wrong, failure = place.judge(Keeper(), candidate=place.capture(1.5))
    assert failure is None
    assert [check.subject for check in wrong if check.fails] == ["logits"]
    assert not exists(place.slot, State.NEW), "a run does not write unless it is asked to"


def test_another_devices_golden_is_named(place: Place) -> None:
    case = replace(place.case, golden=GoldenChoice(fallback=("cuda-a",)))
    slot = place.keep(device="cuda (A)")
    checks, failure = place.judge(Keeper(), case=case)
    assert failure is None
    for check in checks[1:]:
        assert check.measurements["golden"] == slot.label
        assert check.measurements["golden_fallback"] == f"cuda-a served for {name_device('cpu')}"


def test_a_missing_golden_is_no_evidence(place: Place) -> None:
    checks, failure = place.judge(Keeper())
    assert checks == (PASSED,)
    assert failure is not None
    assert (failure.kind, failure.role) == ("golden-missing", "golden")
    assert failure.message == f"no golden for {name_device('cpu')}"
    assert "--update-goldens" in str(failure.help)


def test_wrong_numbers_count_for_more_than_a_missing_golden(place: Place) -> None:
    (first, missing), failure = place.judge(Keeper(), checks=(WRONG,))
    assert failure is None
    assert first == WRONG
    assert (missing.subject, missing.rule, missing.against) == ("golden", "evidence", "golden")
    assert missing.fails and missing.message.startswith("no golden for")
    for harmless in (replace(WRONG, rule="evidence"), replace(WRONG, gates=False)):
        assert place.judge(Keeper(), checks=(harmless,))[1] is not None


def test_without_a_capture_there_is_nothing_to_hold_against_it(place: Place) -> None:
    for update in (False, True):
        checks, failure = place.judge(Keeper(update), reference=place.capture())
        assert checks == (PASSED,)
        assert failure is not None and (failure.kind, failure.role) == ("golden-missing", "golden")
        assert "no capture of the candidate" in failure.message


def test_a_led_run_speaks_for_the_candidate(place: Place) -> None:
    place.keep()
    led = place.capture(output=[5, 6, 9, 9])
    checks, _ = place.judge(Keeper(), candidate=place.capture(output=None), forced=led)
    assert [check.subject for check in checks if check.fails] == ["tokens"]
    checks, _ = place.judge(Keeper(), candidate=place.capture(), forced=led)
    assert not any(check.fails for check in checks), "its own free run comes first"
    alone, failure = place.judge(Keeper(), facts={"forced": FACTS}, forced=place.capture())
    assert failure is None
    assert subjects((alone, None)) == [("logits", "reference", True), *AGREES]


def test_who_the_candidate_is() -> None:
    own, led = make_capture(rows=6, width=8), make_capture(rows=6, width=8, output=(9,))
    silent = replace(own, output_token_ids=None)
    assert find_candidate({}) is None
    assert find_candidate({"candidate": silent}) is silent
    assert find_candidate({"forced": led}) is led
    assert find_candidate({"candidate": own, "forced": led}) is own
    merged = find_candidate({"candidate": silent, "forced": led})
    assert merged is not None
    assert (merged.tensors, merged.output_token_ids) == (silent.tensors, (9,))


# --- updating ---


def test_a_first_golden_is_put_up_for_review(place: Place) -> None:
    keeper = Keeper(update=True, reason="because")
    repeats = {"candidate#2": place.capture(), "candidate#3": place.capture()}
    checks, failure = place.judge(keeper, candidate=place.capture(), **repeats)
    assert failure is None
    assert subjects((checks, None)) == [("logits", "reference", True), ("golden", "golden", True)]
    assert (checks[1].rule, checks[1].location) == ("update", str(place.case.location))
    assert checks[1].measurements == {"golden": place.slot.label, "repeats": 3, "agreement": "bitwise"}
    assert exists(place.slot, State.NEW) and not exists(place.slot)
    assert read_golden(place.slot, State.NEW).manifest.reason == "because"
    assert keeper.summarize() == [
        "goldens: 1 written for review",
        "look at them with: specrunner golden review",
    ]


def test_only_repeats_of_the_candidate_must_agree(place: Place) -> None:
    keeper = Keeper(update=True)
    checks, failure = place.judge(keeper, candidate=place.capture(), reference=place.capture(2.0))
    assert failure is None and checks[-1].measurements["repeats"] == 1
    checks, failure = place.judge(keeper, candidate=place.capture(), **{"candidate#2": place.capture(2.0)})
    assert failure is not None and (failure.kind, failure.role) == ("golden-refused", "golden")
    assert "repeat 2 of 2 does not agree" in failure.message
    assert keeper.summarize()[0] == "goldens: 1 written for review, 1 refused"


def test_every_repeat_of_a_case_is_held_against_the_golden(place: Place) -> None:
    place.keep()
    case = replace(place.case, repeat=2)
    captures = {"candidate": place.capture(), "candidate#2": place.capture(2.0), "candidate#3": place.capture(3.0)}
    checks, failure = place.judge(Keeper(), case=case, **captures)
    assert failure is None
    told = [(check.repeat, check.passed) for check in checks if check.subject == "logits" and check.against == "golden"]
    assert told == [(1, True), (2, False)], "a third one is a golden's, and no repeat of the case"


def test_an_update_takes_the_first_repeat_and_the_others_must_agree_with_it(place: Place) -> None:
    case = replace(place.case, repeat=2)
    place.judge(Keeper(update=True), case=case, candidate=place.capture(2.0), **{"candidate#2": place.capture(2.0)})
    assert read_golden(place.slot, State.NEW).manifest.repeats == 2
    _, failure = place.judge(
        Keeper(update=True), case=case, candidate=place.capture(3.0), **{"candidate#2": place.capture()}
    )
    assert failure is not None and "repeat 2 of 2 does not agree" in failure.message


def test_what_agrees_is_not_written_again(place: Place) -> None:
    place.keep()
    keeper = Keeper(update=True)
    checks, failure = place.judge(keeper, candidate=place.capture(1 + 1e-6))
    assert failure is None
    assert subjects((checks, None)) == [("logits", "reference", True), *AGREES]
    assert all(check.gates for check in checks)
    assert not exists(place.slot, State.NEW)
    assert keeper.summarize() == ["goldens: 1 unchanged"]


def test_a_difference_is_a_trend_of_an_update_and_a_new_golden(place: Place) -> None:
    place.keep()
    before = manifest_path(place.slot).read_bytes()
    keeper = Keeper(update=True)
    checks, failure = place.judge(keeper, candidate=place.capture(1.5))
    assert failure is None
    assert [(check.subject, check.passed) for check in checks if check.against == "golden"] == [
        *(("tokenization", True), ("embeddings", True), ("logits", False), ("tokens", True), ("golden", True))
    ]
    assert not any(check.fails for check in checks)
    assert not any(check.gates for check in checks[1:-1])
    assert exists(place.slot, State.NEW)
    assert manifest_path(place.slot).read_bytes() == before


@pytest.mark.parametrize("settings", [{"full_tokens": 64}, {"top_k": 16}, {"projections": 200}], ids=str)
def test_other_settings_make_another_golden(place: Place, settings: dict[str, int]) -> None:
    place.keep()
    keeper = Keeper(update=True)
    place.judge(keeper, case=replace(place.case, golden=GoldenChoice(**settings)))
    assert exists(place.slot, State.NEW)
    fallback = GoldenChoice(fallback=("cuda-a",))
    again = Keeper(update=True)
    place.judge(again, case=replace(place.case, golden=fallback))
    assert again.summarize() == ["goldens: 1 unchanged"], "who else may serve is no setting of it"


def test_another_devices_golden_does_not_keep_ones_own_from_being_made(place: Place) -> None:
    place.keep(device="cuda (A)")
    case = replace(place.case, golden=GoldenChoice(fallback=("cuda-a",)))
    keeper = Keeper(update=True)
    place.judge(keeper, case=case)
    assert exists(place.slot, State.NEW)
    assert keeper.summarize()[0] == "goldens: 1 written for review"


def test_a_stale_golden_is_replaced_by_an_update(place: Place) -> None:
    place.keep()
    other = {"candidate": {**FACTS, "model_digest": "f" * 16}}
    _, failure = place.judge(Keeper(), facts=other)
    assert failure is not None and failure.kind == "golden-stale"
    place.judge(Keeper(update=True), facts=other)
    assert read_golden(place.slot, State.NEW).manifest.model_digest == "f" * 16


@pytest.mark.parametrize("kind", ["fails", "xfail", "xfail of this engine"])
def test_nothing_is_written_of_a_case_that_does_not_pass(place: Place, kind: str) -> None:
    xfail = Xfail("known", ("hf",) if "engine" in kind else ())
    case = place.case if kind == "fails" else replace(place.case, xfail=xfail)
    keeper = Keeper(update=True)
    checks, failure = place.judge(keeper, case=case, checks=(WRONG if kind == "fails" else PASSED,))
    assert (len(checks), failure) == (1, None)
    assert not exists(place.slot, State.NEW)
    assert keeper.summarize() == ["goldens: 1 not written, since the case did not pass"]


def test_an_expectation_for_another_engine_keeps_nothing_from_being_written(place: Place) -> None:
    place.judge(Keeper(update=True), case=replace(place.case, xfail=Xfail("known", ("vllm",))))
    assert exists(place.slot, State.NEW)


def test_a_trend_keeps_nothing_from_being_written(place: Place) -> None:
    place.judge(Keeper(update=True), checks=(replace(WRONG, gates=False),))
    assert exists(place.slot, State.NEW)


def test_what_is_not_finite_is_refused(place: Place) -> None:
    keeper = Keeper(update=True)
    bad = place.capture(logits=numpy.array([[1.0, numpy.nan]], dtype=numpy.float32))
    checks, failure = place.judge(keeper, candidate=bad)
    assert checks == (PASSED,)
    assert failure is not None and "logits holds NaN or infinity" in failure.message
    assert failure.help == "a golden is made of sound numbers"
    assert keeper.summarize() == ["goldens: 1 refused"]


def test_a_run_that_updates_nothing_says_so() -> None:
    assert Keeper().summarize() == []
    assert Keeper(update=True).summarize() == ["goldens: no case that ran has one"]


def test_a_golden_of_a_capture_without_tensors(place: Place) -> None:
    case = replace(place.case, tensors=(), tolerance=())
    capture = place.capture()
    bare = replace(capture, tensors_path=None, tensor_names=())
    checks, failure = place.judge(Keeper(update=True), case=case, candidate=bare)
    assert failure is None and checks[-1].rule == "update"
    golden = write_new(make(case, replace(make_capture(), tensors={})))
    assert (golden.manifest.tensors_file, golden.manifest.tensors) == ("", {})
    assert read_golden(golden.slot, State.NEW).tensors == {}
