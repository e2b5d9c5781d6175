"""Kept answers: what finds them again, what must not, and what becomes of them when a run or a file breaks."""

from __future__ import annotations

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from specrunner.errors import CaptureIncomplete
from specrunner.requests import Request, Session
from specrunner.sessions.answers import OLDEST, AnswerBook, AnswerShelf, Books, measure_books, prune_books
from specrunner.sessions.evaluator import answer_batch
from specrunner.spec.model import Decode, Evaluation, Model, Prompt

SESSION = Session("hf", "hf-1234", Model(id="org/m", revision="main"), "float32", "cpu", {"threads": 1})
FACTS = {"model_digest": "aa", "versions": {"torch": "2"}, "engine_arguments": {"port": 1}, "max_total_tokens": 7}
REQUEST = Request(Prompt(), (), Decode(8), evaluation=Evaluation(("arc_easy",)))
QUESTIONS: list[dict[str, Any]] = [
    {"context": [1, 2], "continuation": [3]},
    {"context": [1, 2], "continuation": [4]},
    {"prompt": [1, 2], "max_new_tokens": 4, "stop": ["\n"]},
]
ANSWERS: list[dict[str, Any]] = [
    {"logprob": -1.25, "greedy": False},
    {"logprob": -0.1, "greedy": True},
    {"token_ids": [5, 6]},
]


def open_book(
    folder: Path,
    session: Session = SESSION,
    facts: dict[str, Any] | None = None,
    stamp: str = "s",
    request: Request = REQUEST,
) -> AnswerBook:
    book = AnswerShelf(folder).open(session, FACTS if facts is None else facts, stamp, request)
    assert book is not None
    return book


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a book has been filled."""
    open_book(tmp_path).keep(QUESTIONS, ANSWERS)
    return tmp_path


def test_a_later_run_finds_what_was_answered(folder: Path) -> None:
    again = open_book(folder, facts=FACTS | {"engine_arguments": {"port": 2}, "max_total_tokens": 8})
    assert [again.find(question) for question in QUESTIONS] == ANSWERS
    assert again.used == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"session": dataclasses.replace(SESSION, engine="vllm")},
        {"session": dataclasses.replace(SESSION, environment="hf-5678")},
        {"session": dataclasses.replace(SESSION, dtype="bfloat16")},
        {"session": dataclasses.replace(SESSION, device="cuda")},
        {"session": dataclasses.replace(SESSION, options={"threads": 2})},
        {"session": dataclasses.replace(SESSION, model=Model(id="org/m", revision="other"))},
        {"facts": FACTS | {"model_digest": "bb"}},
        {"facts": FACTS | {"versions": {"torch": "3"}}},
        {"stamp": "another"},
        {"request": dataclasses.replace(REQUEST, fault="router-bias")},
        {"request": dataclasses.replace(REQUEST, decode=Decode(8, "low_confidence", 32, 0.9))},
    ],
    ids=str,
)
def test_whatever_shapes_the_answers_has_a_book_of_its_own(folder: Path, changes: dict[str, Any]) -> None:
    book = open_book(folder, **changes)
    assert [book.find(question) for question in QUESTIONS] == [None] * 3


@pytest.mark.parametrize(
    "question",
    [
        {"context": [1, 9], "continuation": [3]},
        {"context": [1], "continuation": [2, 3]},
        {"prompt": [1, 2], "max_new_tokens": 5, "stop": ["\n"]},
        {"prompt": [1, 2], "max_new_tokens": 4, "stop": []},
    ],
    ids=str,
)
def test_another_question_is_asked(folder: Path, question: dict[str, Any]) -> None:
    assert open_book(folder).find(question) is None


def test_only_sessions_whose_answers_are_kept_are_stamped(tmp_path: Path) -> None:
    def watch(*_: object) -> Any:
        raise NotImplementedError

    plain = Request(Prompt(text="a"), ("logits",))
    assert AnswerShelf(tmp_path, watch).watch_for([plain, REQUEST]) is watch
    assert AnswerShelf(tmp_path, watch).watch_for([plain]) is None
    assert AnswerShelf(None, watch).watch_for([REQUEST]) is None


def test_other_questions_of_the_same_session_share_its_book(folder: Path) -> None:
    other = dataclasses.replace(REQUEST, evaluation=Evaluation(("arc_easy",), samples=2))
    assert open_book(folder, request=other).find(QUESTIONS[0]) == ANSWERS[0]


def test_damaged_lines_are_asked_again_and_the_book_goes_on(folder: Path) -> None:
    (file,) = folder.glob("*.jsonl")
    first, second, third, rest = file.read_bytes().split(b"\n")
    assert rest == b""
    changed = first.replace(b"-1.25", b"-1.26")
    assert changed != first
    file.write_bytes(b"\n".join([changed, b"\xff\xfe", b"{}", b"7", b'["a", "b"]', second, third[:-20]]))
    book = open_book(folder)
    assert [book.find(question) for question in QUESTIONS] == [None, ANSWERS[1], None]
    book.keep([QUESTIONS[2]], [ANSWERS[2]])
    again = open_book(folder)
    assert [again.find(question) for question in QUESTIONS] == [None, *ANSWERS[1:]]


def test_what_no_model_answers_is_not_kept(tmp_path: Path) -> None:
    wrong = [float("nan"), float("-inf"), 0.0, 0.5]
    questions = [{"context": [index], "continuation": [1]} for index, _ in enumerate(wrong)]
    open_book(tmp_path).keep(questions, [{"logprob": value, "greedy": False} for value in wrong])
    book = open_book(tmp_path)
    assert [book.find(question) for question in questions] == [None] * 4


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path) -> None:
    asked: list[Any] = []

    def ask(questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(questions)
        return [ANSWERS[QUESTIONS.index(question)] for question in questions]

    book = open_book(tmp_path)
    assert answer_batch(QUESTIONS[:1], book, ask) == (ANSWERS[:1], 0)
    assert answer_batch(QUESTIONS[:1], book, ask) == (ANSWERS[:1], 0), "a run does not take its own answers"
    with pytest.raises(KeyboardInterrupt):
        answer_batch(QUESTIONS[1:], book, ask)

    asked.clear()
    assert answer_batch(QUESTIONS[::-1], open_book(tmp_path), ask) == (ANSWERS[::-1], 1)
    assert asked == [[QUESTIONS[2], QUESTIONS[1]]]
    assert answer_batch(QUESTIONS, open_book(tmp_path), ask) == (ANSWERS, 3)
    assert len(asked) == 1
    with pytest.raises(CaptureIncomplete, match="0 answers to 1 questions"):
        answer_batch([{"prompt": [9]}], open_book(tmp_path), lambda questions: [])


def test_two_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    def write(writer: int) -> None:
        book = open_book(tmp_path)
        for number in range(30):
            book.keep([{"prompt": [writer, number]}], [{"token_ids": [writer] * 2000}])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    book = open_book(tmp_path)
    for writer in range(4):
        for number in range(30):
            assert book.find({"prompt": [writer, number]}) == {"token_ids": [writer] * 2000}


def test_books_go_when_a_run_has_come_to_its_end(folder: Path) -> None:
    shelf = AnswerShelf(folder)
    book = shelf.open(SESSION, FACTS, "s", REQUEST)
    assert book is not None and shelf.open(SESSION, FACTS, "s", REQUEST) is book
    assert shelf.summarize() == []
    assert book.find(QUESTIONS[0]) is not None
    assert shelf.summarize() == ["1 answer was taken from an earlier, interrupted run; --no-cache asks again"]
    shelf.unfinished = True
    shelf.clear()
    assert book.file.exists()
    shelf.unfinished = False
    shelf.clear()
    assert not book.file.exists()


def test_nothing_is_kept_where_nothing_can_be(tmp_path: Path) -> None:
    assert AnswerShelf(None).open(SESSION, FACTS, "s", REQUEST) is None
    assert AnswerShelf(tmp_path).open(SESSION, {"versions": {}}, "s", REQUEST) is None
    assert AnswerShelf(tmp_path).open(SESSION, FACTS, None, REQUEST) is None
    (tmp_path / "file").write_text("", encoding="utf-8")
    book = open_book(tmp_path / "file")
    book.keep(QUESTIONS, ANSWERS)
    assert answer_batch(QUESTIONS, book, lambda questions: ANSWERS) == (ANSWERS, 0)
    assert answer_batch(QUESTIONS, None, lambda questions: ANSWERS) == (ANSWERS, 0)
    assert list(tmp_path.glob("**/*.jsonl")) == []


NOW = 1_800_000_000.0


def write_books(folder: Path, *ages_and_sizes: tuple[float, int]) -> list[Path]:
    """Write files in the place of books, `b0.jsonl` first, by their age in seconds and their bytes."""
    files = []
    for number, (age, size) in enumerate(ages_and_sizes):
        file = folder / f"b{number}.jsonl"
        file.write_bytes(b"x" * size)
        os.utime(file, (NOW - age, NOW - age))
        files.append(file)
    return files


@pytest.mark.parametrize(
    ("older_than", "most_bytes", "left"),
    [
        (None, None, [0, 1, 2, 3]),
        (50.0, None, [0, 1]),
        (10.0, None, [0]),
        (0.0, None, []),
        (None, 60, [0, 1, 2]),
        (None, 59, [0, 1]),
        (None, 30, [0, 1]),
        (None, 0, [0]),
        (50.0, 10, [0]),
    ],
)
def test_books_go_by_age_and_by_size(
    tmp_path: Path, older_than: float | None, most_bytes: int | None, left: list[int]
) -> None:
    sizes = (10, 20, 30, 5)
    files = write_books(tmp_path, *zip((1, 10, 50, 90), sizes, strict=True))
    (tmp_path / "note.txt").write_text("not a book", encoding="utf-8")
    assert measure_books(tmp_path) == Books(4, 65)
    gone = prune_books(tmp_path, older_than=older_than, most_bytes=most_bytes, now=NOW)
    assert [number for number, file in enumerate(files) if file.exists()] == left
    assert gone == Books(4 - len(left), 65 - sum(sizes[number] for number in left))
    assert measure_books(tmp_path) == Books(len(left), 65 - gone.size)
    assert (tmp_path / "note.txt").exists()


def test_where_no_books_are_none_are_made(tmp_path: Path) -> None:
    assert measure_books(tmp_path / "none") == prune_books(tmp_path / "none", older_than=0) == Books(0, 0)
    assert not (tmp_path / "none").exists()


def test_a_run_clears_away_what_others_left_long_ago(folder: Path) -> None:
    old, young = folder / "old.jsonl", folder / "young.jsonl"
    for file in (old, young):
        file.write_bytes(b"x")
    os.utime(old, (1.0, 1.0))
    assert OLDEST > 86400
    shelf = AnswerShelf(folder)
    shelf.clear()
    assert old.exists(), "a run without benchmarks leaves them alone"
    book = shelf.open(SESSION, FACTS, "s", REQUEST)
    shelf.unfinished = True
    shelf.clear()
    assert book is not None and book.file.exists() and young.exists() and not old.exists()
