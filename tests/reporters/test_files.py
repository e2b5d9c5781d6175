"""Report files are whole or not there, and a place that cannot be written costs no verdict."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from specrunner.errors import ConfigurationError
from specrunner.reporters import create_reporters
from specrunner.reporters.json import JsonReporter
from tests.reporters.builders import make_events, make_result, play


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.json"
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    reporter = JsonReporter(path)
    play(make_events([make_result()]), reporter)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    assert reporter.problem is not None
    assert reporter.problem.message == f"cannot write the JSON report to {path}: no space left on device"


def test_missing_directories_are_made_before_the_run(tmp_path: Path) -> None:
    create_reporters(junit=tmp_path / "a" / "b" / "r.xml", stdout=io.StringIO(), stderr=io.StringIO())
    assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize("option", ["junit", "json"])
def test_a_place_that_cannot_be_written_is_an_error_before_the_run(tmp_path: Path, option: str) -> None:
    (tmp_path / "file").write_text("")
    bad = tmp_path / "file" / "r.xml"
    with pytest.raises(ConfigurationError, match=r"cannot write the J\w+ report to .*: (not a directory|file exists)"):
        create_reporters(**{option: bad}, stdout=io.StringIO(), stderr=io.StringIO())


def test_the_last_run_is_optional_and_its_problem_a_warning(tmp_path: Path) -> None:
    (tmp_path / ".specrunner").write_text("in the way")
    out = io.StringIO()
    reporters = create_reporters(last_run=tmp_path / ".specrunner" / "last-run.json", stdout=out, stderr=io.StringIO())
    play(make_events([make_result()]), *reporters)
    assert reporters[0].optional
    assert reporters[0].problem is not None
    assert "warning: cannot write the JSON report" in out.getvalue()
    assert out.getvalue().endswith("1 passed in 3.25 s\n")


def test_a_report_that_cannot_be_written_any_more_is_told_after_the_results(tmp_path: Path) -> None:
    out = io.StringIO()
    folder = tmp_path / "reports"
    reporters = create_reporters(junit=folder / "r.xml", stdout=out, stderr=io.StringIO())
    folder.rmdir()
    folder.write_text("in the way")
    play(make_events([make_result()]), *reporters)
    assert f"error: cannot write the JUnit report to {folder / 'r.xml'}" in out.getvalue()
    assert "1 passed" in out.getvalue()
    assert not reporters[0].optional
