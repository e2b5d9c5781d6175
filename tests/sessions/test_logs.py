"""Logs: read line by line while they grow, cut, and never with half a secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from specrunner.secrets import REDACTED, Redactor
from specrunner.sessions import logs
from specrunner.sessions.logs import Log

SECRET = "correct horse"


@pytest.fixture
def log(tmp_path: Path) -> Log:
    """A log of processes whose environment has a secret."""
    return Log(tmp_path / "worker.log", Redactor({"SOME_TOKEN": SECRET}))


def add(log: Log, data: bytes) -> None:
    with log.path.open("ab") as stream:
        stream.write(data)


def test_a_log_is_read_as_it_grows(log: Log) -> None:
    assert log.read(0) == ("", 0), "there is no file yet"
    add(log, b"one\ntwo\n")
    text, place = log.read(0)
    assert (text, place) == ("one\ntwo\n", 8)
    assert log.read(place) == ("", place)
    add(log, "drei: ä\n".encode())
    assert log.read(place) == ("drei: ä\n", 17)


def test_a_line_waits_for_its_end_so_that_a_secret_is_seen_whole(log: Log) -> None:
    add(log, b"first\ntoken: correct ho")
    text, place = log.read(0)
    assert text == "first\n"
    add(log, b"rse\n")
    assert log.read(place)[0] == f"token: {REDACTED}\n"


def test_a_progress_bar_is_read_as_it_moves(log: Log) -> None:
    add(log, b"10%\r20%\r30")
    text, place = log.read(0)
    assert text == "10%\r20%\r"
    add(log, b"%\r\n")
    assert log.read(place) == ("30%\r\n", 13)


def test_a_log_that_was_cut_is_read_from_its_beginning(log: Log) -> None:
    add(log, b"a long line before\n")
    _, place = log.read(0)
    log.path.write_bytes(b"cut\n")
    assert log.read(place) == ("cut\n", 4)


def test_a_log_that_was_cut_and_grew_is_read_from_the_next_line(log: Log) -> None:
    add(log, b"12345\n")
    _, place = log.read(0)
    log.path.write_bytes(b"token: correct horse\nnext\n")
    assert log.read(place) == ("next\n", 26), "it would begin inside of the secret's line"
    log.path.write_bytes(b"token: correct horse")
    assert log.read(place) == ("", 20)


def test_what_is_read_at_once_is_bounded(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MOST_READ", 16)
    add(log, b"one\ntwo\nthree\nfour\n")
    text, place = log.read(0)
    assert text == "one\ntwo\nthree\n"
    assert log.read(place) == ("four\n", 19)


@pytest.mark.parametrize("length", [16, 17, 31, 32, 33, 100])
def test_a_line_without_end_is_left_out(log: Log, monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    monkeypatch.setattr(logs, "MOST_READ", 16)
    add(log, b"before\n" + b"x" * (length - len(SECRET)) + SECRET.encode() + b"\nafter\n")
    texts, place = [], 0
    while (found := log.read(place))[1] != place:
        text, place = found
        texts.append(text)
    assert "".join(texts) == "before\n[a line of more than 16 bytes was left out]\nafter\n"
    assert place == log.path.stat().st_size


def test_lines_from_elsewhere_are_bounded_as_the_processes_own(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LOG_LIMIT", 1000)
    for number in range(200):
        log.append(f"line {number}\r\n")
        assert log.path.stat().st_size < 1000 + 200
    assert b"bytes of log were deleted but for this end]\n" in log.path.read_bytes()
    assert log.tail().endswith("line 198\nline 199")
    assert log.path.read_bytes().endswith(b"line 199\r\n")


def test_the_tail_is_without_secrets_and_short(log: Log) -> None:
    assert log.tail() == ""
    for number in range(60):
        add(log, f"{number} {SECRET}\n".encode())
    assert log.tail().splitlines() == [f"{number} {REDACTED}" for number in range(20, 60)]
    add(log, b"y" * 100_000)
    assert log.tail() == "y" * logs.LOG_TAIL_BYTES
