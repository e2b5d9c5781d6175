"""`specrunner cache` over a store whose entries were made by hand."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from specrunner.cache.entries import ENTRY
from specrunner.cache.store import CAPTURES, VERDICTS, Store, kept_folder
from specrunner.cli import main
from specrunner.cli.cache import DAY, format_bytes
from specrunner.errors import ExitCode

KEYS = [f"{number:016x}" for number in range(3)]


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Three captures of about a megabyte, unused for 0, 10 and 20 days, and a verdict."""
    monkeypatch.setenv("SPECRUNNER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    kept = Store(kept_folder())
    made = tmp_path / "made"
    made.mkdir()
    (made / "tensors.safetensors").write_bytes(b"x" * 1_000_000)
    for number, key in enumerate(KEYS):
        kept.keep_capture(key, made, {}, 0.0)
        used = time.time() - 10 * DAY * number
        os.utime(kept.folder / CAPTURES / key[:2] / key / ENTRY, (used, used))
    kept.keep_record(VERDICTS, KEYS[0], {"verdict": "passed"})
    return kept


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(["cache", *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def left(store: Store) -> list[bool]:
    return [store.has_capture(key) for key in KEYS]


def test_status_tells_what_is_kept(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "status")
    assert status == ExitCode.PASSED
    assert [line.split() for line in out.splitlines()] == [
        [str(store.folder)],
        ["3", "captures", "3.0", "MB"],
        ["1", "verdicts", *out.splitlines()[2].split()[2:]],
        ["0", "answers", "0", "B", "of", "benchmarks", "that", "were", "interrupted"],
        ["the", "longest", "unused", "for", "20.0", "days"],
    ]
    facts = json.loads(run(capsys, "status", "--json")[1])
    assert (facts["captures"]["count"], facts["verdicts"]["count"], facts["answers"]["count"]) == (3, 1, 0)
    assert facts["bytes"] == facts["captures"]["bytes"] + facts["verdicts"]["bytes"] > 3_000_000
    assert time.time() - facts["oldest_use"] == pytest.approx(20 * DAY, abs=DAY)


def test_status_of_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPECRUNNER_CACHE", str(tmp_path / "nothing"))
    _, out, _ = run(capsys, "status")
    assert len(out.splitlines()) == 4, "no age of nothing"
    assert json.loads(run(capsys, "status", "--json")[1])["oldest_use"] is None


@pytest.mark.parametrize(
    ("arguments", "stay"),
    [
        ([], [True, True, True]),
        (["--limit", "0.0021"], [True, True, False]),
        (["--unused", "15"], [True, True, False]),
        (["--unused", "5", "--limit", "1"], [True, False, False]),
        (["--all"], [False, False, False]),
        (["--limit", "0"], [False, False, False]),
    ],
)
def test_pruning(store: Store, capsys: pytest.CaptureFixture[str], arguments: list[str], stay: list[bool]) -> None:
    status, out, _ = run(capsys, "prune", *arguments)
    assert (status, left(store)) == (ExitCode.PASSED, stay)
    gone = stay.count(False) + (not any(stay))
    assert out.startswith(f"deleted {gone} entries of ")
    assert out.endswith("; 0 B stay\n" if not any(stay) else f"; {stay.count(True)}.0 MB stay\n")


def test_the_limit_of_the_settings_holds(store: Store, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.specrunner]\ncache_limit = 0.0011\n")
    assert run(capsys, "prune")[0] == ExitCode.PASSED
    assert left(store) == [True, False, False]


def test_the_limit_of_the_environment_holds(
    store: Store, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.specrunner]\ncache_limit = 10\n")
    monkeypatch.setenv("SPECRUNNER_CACHE_LIMIT", "0.0011")
    assert run(capsys, "prune")[0] == ExitCode.PASSED
    assert left(store) == [True, False, False]


@pytest.mark.parametrize("number", ["-1", "x", "nan", "inf"])
def test_what_is_no_amount_is_refused(store: Store, capsys: pytest.CaptureFixture[str], number: str) -> None:
    status, _, err = run(capsys, "prune", f"--limit={number}")
    assert status == ExitCode.USAGE
    assert f"'{number}' is not a number of 0 or more" in err
    assert left(store) == [True, True, True]


def test_what_is_used_is_taken_elsewhere(
    store: Store, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "out")
    assert run(capsys, "export", out, "--used", "15") == (ExitCode.PASSED, f"3 entries copied to {out}\n", "")
    damaged = next((Path(out) / CAPTURES).glob("*/*1/tensors.safetensors"))
    damaged.unlink()
    monkeypatch.setenv("SPECRUNNER_CACHE", str(tmp_path / "elsewhere"))
    status, told, err = run(capsys, "import", out)
    assert (status, err) == (ExitCode.PASSED, "1 damaged entries left out\n")
    assert told == f"2 entries copied to {kept_folder()}\n"
    assert left(Store(kept_folder())) == [True, False, False]
    assert left(store) == [True, True, True]


def test_what_a_ci_system_carries_along_does_not_grow_for_ever(
    store: Store, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each build starts with nothing but the directory, uses the first capture, and leaves what was used of late."""
    out = Store(tmp_path / "out")
    run(capsys, "export", str(out.folder))
    assert left(out) == [True, True, True]
    for build in range(2):
        monkeypatch.setenv("SPECRUNNER_CACHE", str(tmp_path / f"build-{build}"))
        run(capsys, "import", str(out.folder))
        own = Store(kept_folder())
        assert own.find_capture(KEYS[0], tmp_path / f"found-{build}") is not None
        set_back = time.time() - 6 * DAY
        os.utime(out.folder / CAPTURES / KEYS[0][:2] / KEYS[0] / ENTRY, (set_back, set_back))
        status, told, _ = run(capsys, "export", str(out.folder), "--used", "7")
        assert status == ExitCode.PASSED
        assert left(out) == [True, False, False]
        assert ("2 of 2.0 MB deleted there" in told) == (build == 0)
        (item,) = (item for item in out.list_items() if item.kind == CAPTURES)
        assert time.time() - item.used < DAY, "it was used by this build"


def test_an_export_is_as_small_as_is_asked(store: Store, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = Store(tmp_path / "out")
    _, told, _ = run(capsys, "export", str(out.folder), "--limit", "0.0021")
    assert left(out) == [True, True, False]
    assert told == f"4 entries copied to {out.folder}, 1 of 1.0 MB deleted there\n"
    assert left(store) == [True, True, True]


def test_where_nothing_can_be_written_or_read_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, _, err = run(capsys, "import", "nowhere")
    assert (status, err) == (ExitCode.USAGE, "error: there is no directory nowhere to import from\n")
    (tmp_path / "file").write_text("in the way")
    status, _, err = run(capsys, "export", "file")
    assert status == ExitCode.USAGE
    assert "could not be kept in file" in err


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2.5e6, "2.5 MB"), (1e9, "1.0 GB"), (1.23e13, "12300.0 GB")],
)
def test_bytes(number: float, text: str) -> None:
    assert format_bytes(number) == text
