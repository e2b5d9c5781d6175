"""The record of verdicts: what a narrowed run leaves out is not forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest

from specrunner.errors import ConfigurationError
from specrunner.reporters.ledger import LEDGER, LedgerReporter, read_ledger
from specrunner.results import Verdict
from tests.reporters.builders import make_case, make_events, make_result, play


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "specs").mkdir()
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / "specs" / name).touch()
    return tmp_path


def run(verdicts: dict[str, Verdict], *, unfinished: tuple[str, ...] = ()) -> LedgerReporter:
    """Report verdicts by `suite::name`."""

    def case_of(where: str):  # type: ignore[no-untyped-def]
        suite, _, name = where.partition("::")
        return make_case(name, suite=f"specs/{suite}", parameters=())

    reporter = LedgerReporter(LEDGER, optional=True)
    results = [make_result(case_of(where), verdict) for where, verdict in verdicts.items()]
    play(make_events(results, unfinished=[case_of(where) for where in unfinished]), reporter)
    return reporter


def known() -> dict[str, str]:
    return {
        node_id.removeprefix("specs/").replace(".yaml", "").removesuffix("[]"): str(verdict)
        for node_id, verdict in read_ledger(LEDGER).items()
    }


def test_a_later_run_speaks_for_its_own_cases_alone() -> None:
    run({"a::x": Verdict.FAILED, "a::y": Verdict.PASSED, "b::z": Verdict.SKIPPED})
    run({"a::x": Verdict.PASSED})
    assert known() == {"a::x": "passed", "a::y": "passed", "b::z": "skipped"}


def test_the_cases_of_a_file_that_is_gone_drop_out(folder: Path) -> None:
    run({"a::x": Verdict.PASSED, "b::z": Verdict.PASSED})
    (folder / "specs" / "b.yaml").unlink()
    run({"a::x": Verdict.PASSED})
    assert known() == {"a::x": "passed"}


def test_what_a_run_did_not_come_to_is_not_verified_any_more() -> None:
    run({"a::x": Verdict.PASSED, "a::y": Verdict.PASSED})
    run({"a::x": Verdict.FAILED}, unfinished=("a::y",))
    assert known() == {"a::x": "failed", "a::y": "error"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "is not a record"),
        ("[]", "is not a record"),
        ('{"version": 2}', "version 2"),
        ('{"version": 1, "verdicts": {"a": "fine"}}', "is not a record"),
        ('{"version": 1, "verdicts": []}', "is not a record"),
    ],
)
def test_a_damaged_record_is_told_to_its_reader_and_begun_anew_by_a_run(text: str, why: str) -> None:
    LEDGER.parent.mkdir()
    LEDGER.write_text(text)
    with pytest.raises(ConfigurationError, match=why):
        read_ledger(LEDGER)
    run({"a::x": Verdict.PASSED})
    assert known() == {"a::x": "passed"}


def test_without_a_run_there_is_none() -> None:
    with pytest.raises(ConfigurationError, match="there is no record of verdicts"):
        read_ledger(LEDGER)


def test_a_place_that_cannot_be_written_is_a_problem_and_no_crash() -> None:
    LEDGER.parent.write_text("a file")
    problem = run({"a::x": Verdict.PASSED}).problem
    assert problem is not None and "cannot write the record of verdicts" in problem.message
