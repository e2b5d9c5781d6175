"""Digests of trees: every change of content is seen, and nothing is read twice."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specrunner.cache import digests
from specrunner.cache.digests import SETTLED_NS, VERSION, Digests, digest_file, walk
from tests.waiting import wait_for


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were read, by name."""
    seen: list[str] = []

    def note(path: str | Path) -> str:
        seen.append(Path(path).name)
        return digest_file(path)

    monkeypatch.setattr(digests, "digest_file", note)
    return seen


def settle(*files: Path) -> None:
    """Let `files` look as if they had been changed long ago."""
    for file in files:
        os.utime(file, (1, 1))


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust the times of files at once."""
    monkeypatch.setattr(digests, "SETTLED_NS", -(10**18))


def test_a_file_has_the_digest_of_its_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"weights")
    assert digest_file(tmp_path / "a") == hashlib.sha256(b"weights").hexdigest()
    assert digest_file(tmp_path / "b") == ""


@pytest.mark.usefixtures("settled")
def test_files_are_read_once_also_by_later_runs(tmp_path: Path, reads: list[str]) -> None:
    tree = tmp_path / "tree"
    (tree / "below").mkdir(parents=True)
    (tree / "a.py").write_text("1")
    (tree / "below" / "b.py").write_text("2")
    first = Digests(tmp_path / "memory").of(tree)
    assert sorted(reads) == ["a.py", "b.py"]
    assert Digests(tmp_path / "memory").of(tree) == first
    assert sorted(reads) == ["a.py", "b.py"], "the second run read nothing"


@pytest.mark.usefixtures("settled")
def test_memory_is_written_where_something_changed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("a", "b"):
        (tree / name).write_text("1")
    written: list[list[str]] = []
    monkeypatch.setattr(digests, "write_memory", lambda memory, known: written.append(sorted(known.list_files())))
    Digests(tmp_path / "memory").of(tree)
    assert written == [["a", "b"]]
    monkeypatch.undo()
    monkeypatch.setattr(digests, "SETTLED_NS", -(10**18))
    known = Digests(tmp_path / "memory")
    known.of(tree)
    monkeypatch.setattr(digests, "write_memory", lambda memory, known: written.append(sorted(known.list_files())))
    Digests(tmp_path / "memory").of(tree)
    assert len(written) == 1, "nothing changed"
    (tree / "b").unlink()
    known.of(tree)
    assert len(written) == 1, "what was asked once stays as it was"
    known.forget()
    known.of(tree)
    assert written[1:] == [["a"]]


@pytest.mark.usefixtures("settled")
def test_what_looks_as_it_did_is_not_read_again_where_nothing_can_be_written(tmp_path: Path, reads: list[str]) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("a", "b"):
        (tree / name).write_text("1")
    (tmp_path / "memory").write_text("in the way")
    for known in (Digests(None), Digests(tmp_path / "memory")):
        first = known.of(tree)
        known.forget()
        assert known.of(tree) == first
    assert sorted(reads) == ["a", "a", "b", "b"], "once each"
    (tree / "b").write_text("22")
    known.forget()
    assert known.of(tree) != first
    assert reads[4:] == ["b"]


@pytest.mark.usefixtures("settled")
def test_a_change_that_keeps_size_and_date_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "tree" / "weights"
    file.parent.mkdir()
    file.write_text("one")
    settle(file)
    before = Digests(tmp_path / "memory").of(file.parent)
    changed = file.stat().st_ctime_ns

    def change() -> bool:
        file.write_text("two")
        settle(file)
        return file.stat().st_ctime_ns != changed

    wait_for(change, "the kernel's clock for times of files ticks")
    assert Digests(tmp_path / "memory").of(file.parent) != before


def test_a_file_that_was_changed_just_now_is_not_remembered(tmp_path: Path, reads: list[str]) -> None:
    file = tmp_path / "tree" / "weights"
    file.parent.mkdir()
    file.write_text("one")
    for _ in range(2):
        Digests(tmp_path / "memory").of(file.parent)
    assert reads == ["weights", "weights"]


@pytest.mark.parametrize(("age", "remembered"), [(SETTLED_NS - 1, False), (SETTLED_NS, True)])
def test_a_file_is_remembered_once_it_has_settled(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch, age: int, remembered: bool
) -> None:
    file = tmp_path / "tree" / "weights"
    file.parent.mkdir()
    file.write_text("one")
    state = file.stat()
    monkeypatch.setattr(digests.time, "time_ns", lambda: max(state.st_ctime_ns, state.st_mtime_ns) + age)
    for _ in range(2):
        Digests(tmp_path / "memory").of(file.parent)
    assert reads == ["weights"] * (1 if remembered else 2)


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("damage", ["cut", "flip", "flip the total", "rubbish", "version"])
def test_damaged_memory_is_forgotten(tmp_path: Path, damage: str) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a").write_text("1")
    digest = Digests(tmp_path / "memory").of(tree)
    (memory,) = (tmp_path / "memory").iterdir()
    text = memory.read_text()
    found = digest_file(tree / "a")
    assert found in text
    assert digest in text
    damaged = {
        "cut": text[: len(text) // 2],
        "flip": text.replace(found, found[::-1]),
        "flip the total": text.replace(digest, digest[::-1]),
        "rubbish": "\x00" * 100,
        "version": text.replace(f'"version": {VERSION}', '"version": 0'),
    }
    assert damaged[damage] != text
    memory.write_text(damaged[damage])
    assert Digests(tmp_path / "memory").of(tree) == digest


@pytest.mark.usefixtures("settled")
def test_a_place_that_looks_as_it_did_is_told_from_memory_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "tree"
    (tree / "tests").mkdir(parents=True)
    for name in ("a", "b", "tests/c"):
        (tree / name).write_text(name)
    first = Digests(tmp_path / "memory").of(tree)
    with monkeypatch.context() as patch:
        patch.setattr(digests.Remembered, "list_files", lambda _: pytest.fail("every file was looked up"))
        assert Digests(tmp_path / "memory").of(tree) == first
    without = Digests(tmp_path / "memory").of(tree, frozenset({"tests"}))
    assert without == Digests(None).of(tree, frozenset({"tests"})) != first, "another choice of the same place"
    assert Digests(tmp_path / "memory").of(tree) == first
    (tree / "a").rename(tree / "d")
    assert Digests(tmp_path / "memory").of(tree) == Digests(None).of(tree) != first


def test_what_no_answer_comes_from_is_left_out(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a.py").write_text("1")
    digest = Digests(None).of(tree, frozenset({"tests"}))
    for folder in ("__pycache__", ".git", "tests", "below/__pycache__", "node_modules"):
        (tree / folder).mkdir(parents=True)
        (tree / folder / "x").write_text("2")
    (tree / "environment").mkdir()
    (tree / "environment" / "pyvenv.cfg").write_text("")
    assert Digests(None).of(tree, frozenset({"tests"})) == digest
    (tree / "below" / "b.py").write_text("3")
    assert Digests(None).of(tree, frozenset({"tests"})) != digest


def test_links_are_followed_and_may_lead_in_a_circle(tmp_path: Path) -> None:
    tree, elsewhere = tmp_path / "tree", tmp_path / "elsewhere"
    tree.mkdir()
    elsewhere.mkdir()
    (elsewhere / "a.py").write_text("1")
    (tree / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(tree)
    (tree / "nowhere").symlink_to(tmp_path / "missing")
    before = Digests(None).of(tree)
    (elsewhere / "a.py").write_text("2")
    assert Digests(None).of(tree) != before


def test_links_to_nowhere_and_folders_that_vanish_hide_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        (tmp_path / f"link-{number}").symlink_to(tmp_path / "missing")
        (tmp_path / f"folder-{number}").mkdir()
        (tmp_path / f"folder-{number}" / "file").write_text("")
        (tmp_path / f"file-{number}").write_text("")
    scan = os.scandir

    def lose_one(path: Path) -> object:
        if path.name == "folder-3":
            raise FileNotFoundError(path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", lose_one)
    below = {f"folder-{number}/file" for number in range(6) if number != 3}
    assert {name for name, _, _ in walk(tmp_path, frozenset())} == below | {f"file-{number}" for number in range(6)}


def test_a_state_tells_that_a_file_was_swapped_and_put_back(tmp_path: Path) -> None:
    file = tmp_path / "tree" / "golden"
    file.parent.mkdir()
    file.write_text("one")
    state = file.stat()
    known = Digests(None)
    content, before = known.of(file.parent), known.state_of(file.parent)
    assert known.state_of(file.parent) == before

    def swap() -> bool:
        file.write_text("two")
        file.write_text("one")
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
        return file.stat().st_ctime_ns != state.st_ctime_ns

    wait_for(swap, "the kernel's clock for times of files ticks")
    known.forget()
    assert known.of(file.parent) == content
    after = known.state_of(file.parent)
    assert after != before
    (file.parent / "more").touch()
    assert known.state_of(file.parent) != after
    assert known.state_of(tmp_path / "nothing") == known.state_of(tmp_path / "nowhere")


def test_a_place_that_cannot_be_remembered_is_still_digested(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "a").write_text("1")
    digest = Digests(tmp_path / "file" / "memory").of(tmp_path / "a")
    assert digest == Digests(None).of(tmp_path / "a") != Digests(None).of(tmp_path / "missing")


_NAMES = st.text("abc", min_size=1, max_size=3)
_TREES = st.dictionaries(_NAMES, st.binary(max_size=3), max_size=4)


@given(one=_TREES, other=_TREES)
def test_digests_are_equal_just_where_names_and_contents_are(
    tmp_path_factory: pytest.TempPathFactory, one: dict[str, bytes], other: dict[str, bytes]
) -> None:
    found = []
    for tree in (one, other):
        folder = tmp_path_factory.mktemp("tree")
        for name, content in tree.items():
            (folder / name).write_bytes(content)
        found.append(Digests(None).of(folder))
    assert (found[0] == found[1]) == (one == other)
