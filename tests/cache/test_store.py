"""The store: what is found is what was kept, whatever happens to its files in between."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specrunner.cache.entries import ENTRY, seal
from specrunner.cache.store import CAPTURES, SESSIONS, VERDICTS, Store

KEY = "0123456789abcdef"
OTHER = "fedcba9876543210"


def make_capture(folder: Path, content: bytes = b"numbers") -> Path:
    folder.mkdir()
    (folder / "tensors.safetensors").write_bytes(content)
    (folder / "capture.json").write_text('{"complete": true}')
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "kept")


def entry_of(store: Store, key: str = KEY) -> Path:
    return store.folder / CAPTURES / key[:2] / key


def test_a_capture_comes_back_as_it_was(store: Store, tmp_path: Path) -> None:
    assert store.find_capture(KEY, tmp_path / "nothing") is None
    store.keep_capture(KEY, make_capture(tmp_path / "made"), {"device": "cpu"}, 1.5)
    kept = store.find_capture(KEY, tmp_path / "found")
    assert kept is not None
    assert (kept.facts, kept.seconds) == ({"device": "cpu"}, 1.5)
    files = {file.name: file.read_bytes() for file in (tmp_path / "found").iterdir()}
    assert files == {"tensors.safetensors": b"numbers", "capture.json": b'{"complete": true}'}
    assert kept.size == sum(map(len, files.values()))
    assert store.has_capture(KEY)
    assert not store.has_capture(OTHER)
    assert (store.problem, store.damaged) == ("", 0)


def test_a_capture_stays_when_the_run_deletes_its_own(store: Store, tmp_path: Path) -> None:
    made = make_capture(tmp_path / "made")
    store.keep_capture(KEY, made, {}, 0.0)
    for file in made.iterdir():
        file.unlink()
    assert store.find_capture(KEY, tmp_path / "found") is not None


@pytest.mark.parametrize("file", ["tensors.safetensors", "capture.json", ENTRY])
@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "delete"])
def test_a_damaged_entry_is_deleted_and_can_be_made_again(store: Store, tmp_path: Path, file: str, damage: str) -> None:
    store.keep_capture(KEY, make_capture(tmp_path / "made"), {}, 0.0)
    place = entry_of(store) / file
    content = place.read_bytes()
    place.unlink()
    changed = {
        "flip": content[:-2] + bytes([content[-2] ^ 1]) + content[-1:],
        "cut": content[:-1],
        "grow": content + b" ",
    }
    if damage != "delete":
        place.write_bytes(changed[damage])
    if store.has_capture(KEY):  # a run looks into nothing else
        assert store.find_capture(KEY, tmp_path / "found") is None
        assert not (tmp_path / "found").exists()
        assert not entry_of(store).exists()
    store.keep_capture(KEY, tmp_path / "made", {}, 0.0)
    assert (store.problem, store.damaged) == ("", 1)
    assert store.find_capture(KEY, tmp_path / "found") is not None


def test_what_lies_in_the_place_of_an_entry_makes_way(store: Store, tmp_path: Path) -> None:
    made = make_capture(tmp_path / "made")
    entry_of(store).parent.mkdir(parents=True)
    entry_of(store).write_text("no folder")
    store.keep_capture(KEY, made, {}, 0.0)
    assert (store.problem, store.damaged) == ("", 1)
    assert store.find_capture(KEY, tmp_path / "found") is not None
    assert [path.name for path in store.folder.iterdir()] == [CAPTURES], "no rest of it"


@given(position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_no_flipped_bit_of_any_file_comes_back(
    tmp_path_factory: pytest.TempPathFactory, position: int, bit: int
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    store = Store(folder / "kept")
    made = make_capture(folder / "made")
    store.keep_capture(KEY, made, {"device": "cpu"}, 1.0)
    files = sorted(entry_of(store).iterdir())
    sizes = [file.stat().st_size for file in files]
    position %= sum(sizes)
    for file, size in zip(files, sizes, strict=True):
        if position < size:
            content = bytearray(file.read_bytes())
            content[position] ^= 1 << bit
            file.unlink()
            file.write_bytes(content)
            break
        position -= size
    assert store.find_capture(KEY, folder / "found") is None


def test_an_entry_under_another_key_is_not_believed(store: Store, tmp_path: Path) -> None:
    store.keep_capture(KEY, make_capture(tmp_path / "made"), {}, 0.0)
    entry_of(store, OTHER).parent.mkdir(parents=True)
    entry_of(store).rename(entry_of(store, OTHER))
    assert store.find_capture(OTHER, tmp_path / "found") is None


def test_an_entry_cannot_write_outside_of_its_target(store: Store, tmp_path: Path) -> None:
    place = entry_of(store)
    place.mkdir(parents=True)
    (place / ENTRY).write_text(seal(KEY, {"files": {"../../evil": [1, ""]}, "facts": {}, "seconds": 0.0}))
    (place.parent.parent / "evil").write_text("x")
    assert store.find_capture(KEY, tmp_path / "a" / "b" / "found") is None
    assert not (tmp_path / "a" / "evil").exists()


def test_records_come_back_and_the_last_one_wins(store: Store) -> None:
    assert store.find_record(VERDICTS, KEY) is None
    store.keep_record(VERDICTS, KEY, {"verdict": "passed", "text": "\ud800 ü"})
    store.keep_record(VERDICTS, KEY, {"verdict": "xfailed"})
    assert store.find_record(VERDICTS, KEY) == {"verdict": "xfailed"}
    (file,) = (store.folder / VERDICTS).glob("*/*")
    file.write_text(file.read_text().replace("xfailed", "xpassed"))
    assert store.find_record(VERDICTS, KEY) is None
    assert store.damaged == 1
    assert not file.exists()


def test_a_store_that_cannot_be_written_says_so_and_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = Store(tmp_path / "file" / "kept")
    store.keep_capture(KEY, make_capture(tmp_path / "made"), {}, 0.0)
    assert "could not be kept" in store.problem
    store.keep_record(VERDICTS, KEY, {})
    assert store.find_capture(KEY, tmp_path / "found") is None
    assert list(store.list_items()) == []
    assert store.prune(most_bytes=0.0) == []


def test_pruning_takes_what_was_unused_longest(store: Store, tmp_path: Path) -> None:
    now = time.time()
    made = make_capture(tmp_path / "made", b"x" * 1000)
    keys = [f"{number:016x}" for number in range(5)]
    for age, key in enumerate(keys):
        store.keep_capture(key, made, {}, 0.0)
        os.utime(entry_of(store, key) / ENTRY, (now - age * 3600, now - age * 3600))
    size = next(item.size for item in store.list_items())
    assert {item.path.name for item in store.prune(most_bytes=3 * size)} == set(keys[3:])
    assert {item.path.name for item in store.prune(unused_since=now - 5000)} == {keys[2]}
    assert store.prune(most_bytes=0.0, spare_since=now - 7200) == []
    assert store.find_capture(keys[0], tmp_path / "found") is not None
    assert len(store.prune(most_bytes=0.0)) == 2
    assert list(store.list_items()) == []


def test_finding_an_entry_counts_as_its_use(store: Store, tmp_path: Path) -> None:
    store.keep_capture(KEY, make_capture(tmp_path / "made"), {}, 0.0)
    os.utime(entry_of(store) / ENTRY, (1, 1))
    assert store.find_capture(KEY, tmp_path / "found") is not None
    assert store.prune(unused_since=time.time() - 60) == []


def test_what_a_killed_process_left_is_cleared_when_it_is_old(store: Store, tmp_path: Path) -> None:
    store.keep_capture(KEY, make_capture(tmp_path / "made"), {}, 0.0)
    for name in (".new-old", ".gone-old", ".new-young"):
        (store.folder / name).mkdir()
        (store.folder / name / "x").write_text("")
    for name in (".new-old", ".gone-old"):
        os.utime(store.folder / name, (1, 1))
    store.prune()
    assert sorted(path.name for path in store.folder.glob(".*")) == [".new-young"]


def test_an_entry_that_has_lost_its_head_is_cleared_when_it_is_old(store: Store, tmp_path: Path) -> None:
    made = make_capture(tmp_path / "made")
    for key in (KEY, OTHER):
        store.keep_capture(key, made, {}, 0.0)
        (entry_of(store, key) / ENTRY).unlink()
    os.utime(entry_of(store), (1, 1))
    store.prune()
    assert (entry_of(store).exists(), entry_of(store, OTHER).exists()) == (False, True)


def use_of(store: Store) -> dict[str, float]:
    """The time of the last use of each entry, by kind."""
    return {item.kind: item.used for item in store.list_items()}


def set_use(store: Store, seconds: float) -> None:
    for item in store.list_items():
        os.utime(item.path / ENTRY if item.path.is_dir() else item.path, (seconds, seconds))


def test_copies_carry_the_time_of_last_use_and_leave_the_source_alone(store: Store, tmp_path: Path) -> None:
    store.keep_capture(KEY, make_capture(tmp_path / "made"), {}, 0.0)
    for kind in (VERDICTS, SESSIONS):
        store.keep_record(kind, KEY, {"n": 1})
    set_use(store, 1000.25)
    other = Store(tmp_path / "exported")
    assert store.copy_to(other) == (3, 0)
    assert use_of(store) == use_of(other) == dict.fromkeys((CAPTURES, VERDICTS, SESSIONS), 1000.25)
    set_use(store, 2000.5)
    store.copy_to(other)
    assert use_of(other) == dict.fromkeys((CAPTURES, VERDICTS, SESSIONS), 2000.5), "used since"
    store.keep_record(SESSIONS, KEY, {"n": 2})
    other.copy_to(store)
    assert use_of(store)[CAPTURES] == 2000.5
    set_use(other, 1000.25)
    other.copy_to(store)
    assert use_of(store)[CAPTURES] == 2000.5, "an older copy does not make it older"
    assert store.find_record(SESSIONS, KEY) == {"n": 2}, "nor takes its place"


def test_a_copy_replaces_what_does_not_hold(store: Store, tmp_path: Path) -> None:
    other = Store(tmp_path / "exported")
    for kept in (store, other):
        kept.keep_capture(KEY, make_capture(tmp_path / f"made-{kept.folder.name}"), {}, 0.0)
    (entry_of(other) / ENTRY).unlink()
    assert store.copy_to(other) == (1, 0)
    assert other.find_capture(KEY, tmp_path / "found") is not None


def test_stores_are_copied_without_what_is_damaged(store: Store, tmp_path: Path) -> None:
    made = make_capture(tmp_path / "made")
    store.keep_capture(KEY, made, {"device": "cpu"}, 2.0)
    store.keep_capture(OTHER, made, {}, 0.0)
    store.keep_record(VERDICTS, KEY, {"verdict": "passed"})
    broken = entry_of(store, OTHER) / "capture.json"
    broken.unlink()
    broken.write_text("{}")
    other = Store(tmp_path / "exported")
    assert store.copy_to(other) == (2, 1)
    kept = other.find_capture(KEY, tmp_path / "found")
    assert kept is not None
    assert kept.facts == {"device": "cpu"}
    assert other.find_record(VERDICTS, KEY) == {"verdict": "passed"}
    assert store.copy_to(other) == (0, 0), "what is there is not copied again"


def test_threads_that_keep_and_find_the_same_disagree_about_nothing(store: Store, tmp_path: Path) -> None:
    made = make_capture(tmp_path / "made", b"y" * 5000)
    wrong: list[str] = []

    def work(number: int) -> None:
        own = Store(store.folder)
        for turn in range(30):
            own.keep_capture(KEY, made, {"n": 1}, 0.0)
            target = tmp_path / f"found-{number}-{turn}"
            kept = own.find_capture(KEY, target)
            if kept is not None and (target / "tensors.safetensors").read_bytes() != b"y" * 5000:
                wrong.append("content")
            if number == 0:
                own.prune(most_bytes=0.0)
        if own.problem:
            wrong.append(own.problem)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_an_entry_is_readable_json_behind_its_digest(store: Store, tmp_path: Path) -> None:
    store.keep_capture(KEY, make_capture(tmp_path / "made"), {"device": "cpu"}, 1.0)
    _, text = (entry_of(store) / ENTRY).read_text().split("\n", 1)
    assert json.loads(text)["facts"] == {"device": "cpu"}


def test_what_is_kept_twice_leaves_nothing_behind(store: Store, tmp_path: Path) -> None:
    made = make_capture(tmp_path / "made")
    for seconds in (1.0, 2.0):
        store.keep_capture(KEY, made, {}, seconds)
    kept = store.find_capture(KEY, tmp_path / "found")
    assert kept is not None and kept.seconds == 1.0, "the first one stays"
    assert (store.problem, [path.name for path in store.folder.iterdir()]) == ("", [CAPTURES])


def test_a_capture_that_cannot_be_put_where_it_should_go_is_no_damage(store: Store, tmp_path: Path) -> None:
    store.keep_capture(KEY, make_capture(tmp_path / "made"), {}, 0.0)
    (tmp_path / "file").write_text("in the way")
    assert store.find_capture(KEY, tmp_path / "file" / "found") is None
    assert store.damaged == 0
    assert store.has_capture(KEY)


def test_a_dropped_capture_is_gone_and_another_can_take_its_place(store: Store, tmp_path: Path) -> None:
    made = make_capture(tmp_path / "made")
    store.keep_capture(KEY, made, {}, 1.0)
    store.keep_capture(OTHER, made, {}, 1.0)
    store.drop_capture(KEY)
    assert (store.has_capture(KEY), store.has_capture(OTHER), store.damaged) == (False, True, 0)
    assert [path.name for path in store.folder.iterdir()] == [CAPTURES], "no rest of it"
    store.keep_capture(KEY, made, {}, 2.0)
    assert store.has_capture(KEY)


def test_an_entry_of_another_version_is_made_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.keep_capture(KEY, make_capture(tmp_path / "made"), {}, 1.0)
    store.keep_record(VERDICTS, KEY, {"verdict": "passed"})
    monkeypatch.setattr("specrunner.cache.entries.VERSION", 999)
    assert store.find_capture(KEY, tmp_path / "found") is None
    assert store.find_record(VERDICTS, KEY) is None
    assert store.damaged == 2


def test_what_was_used_at_the_very_moment_stays(store: Store, tmp_path: Path) -> None:
    store.keep_capture(KEY, make_capture(tmp_path / "made"), {}, 0.0)
    os.utime(entry_of(store) / ENTRY, (1000, 1000))
    (item,) = store.list_items()
    assert store.prune(unused_since=1000.0) == []
    assert store.prune(most_bytes=item.size) == []
    assert store.prune(most_bytes=item.size - 1, spare_since=1000.0) == []
    assert store.prune(most_bytes=item.size - 1, spare_since=1000.5) == [item]


@pytest.mark.parametrize("kind", ["file", "vanished"])
def test_what_cannot_be_kept_is_told_with_its_reason(store: Store, tmp_path: Path, kind: str) -> None:
    made = make_capture(tmp_path / "made")
    if kind == "file":
        store.folder.write_text("in the way")
        reason = "File exists"
    else:
        made = tmp_path / "never-made"
        reason = "No such file or directory"
    store.keep_capture(KEY, made, {}, 0.0)
    assert store.problem == f"captures could not be kept in {store.folder}: {reason}"
    assert not store.has_capture(KEY)
    if kind == "vanished":
        assert list(store.folder.iterdir()) == [], "nothing unfinished is left"


def test_a_record_that_cannot_be_written_leaves_the_old_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.keep_record(VERDICTS, KEY, {"verdict": "passed"})

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refuse)
        store.keep_record(VERDICTS, KEY, {"verdict": "xfailed"})
    assert store.problem == f"verdicts could not be kept in {store.folder}: No space left on device"
    assert store.find_record(VERDICTS, KEY) == {"verdict": "passed"}
    assert [path.name for path in (store.folder / VERDICTS / KEY[:2]).iterdir()] == [KEY]


def test_where_files_have_no_second_name_they_are_copied(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    store.keep_capture(KEY, make_capture(tmp_path / "made"), {}, 0.0)
    assert store.find_capture(KEY, tmp_path / "found") is not None
    assert (tmp_path / "found" / "tensors.safetensors").read_bytes() == b"numbers"
    assert (tmp_path / "found" / "tensors.safetensors").stat().st_nlink == 1
