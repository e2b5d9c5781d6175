"""Entries as files: what is listed while others delete, and when an entry was used."""

from __future__ import annotations

from pathlib import Path

import pytest

from specrunner.cache.entries import ENTRY, list_folder, note_use, read_use


def test_folders_that_others_delete_are_listed_as_empty(tmp_path: Path) -> None:
    for name in ("ab/1", "ab/2", "cd/3", "x/4", ".hidden/5"):
        (tmp_path / name).mkdir(parents=True)
    assert list_folder(tmp_path, "a*") == [tmp_path / "ab"]
    assert list_folder(tmp_path, "*", below="??") == [tmp_path / "ab/1", tmp_path / "ab/2", tmp_path / "cd/3"]
    assert list_folder(tmp_path / "nowhere", "*") == []


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_the_use_of_an_entry_is_noted_to_the_nanosecond(tmp_path: Path, kind: str) -> None:
    entry = tmp_path / "entry"
    if kind == "directory":
        entry.mkdir()
        (entry / ENTRY).touch()
    else:
        entry.touch()
    note_use(entry, 1_700_000_000_123_456_789)
    assert read_use(entry) == 1_700_000_000_123_456_789
    note_use(entry)
    assert read_use(entry) > 1_700_000_000_123_456_789


def test_what_is_not_there_was_never_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "headless").mkdir()
    for place in (tmp_path / "nothing", tmp_path / "file" / "below", tmp_path / "headless"):
        note_use(place)
        assert read_use(place, missing=-1) == -1
        with pytest.raises(OSError):
            read_use(place)
