"""Answers to a benchmark's questions, kept as they come, so that a run that was interrupted can go on.

A book holds what one session answered under one stamp (a `Watch` makes it), fault and way of decoding: a JSONL file in
the user's cache that only grows, one line an answer with its question's digest and a checksum. A line that is cut or
damaged counts as not there. When a run has all its evidence its books are deleted: the next run measures anew. Books
that nobody comes back to are deleted by the runs that follow, when they are old or too large together.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from specrunner.environments.interpreters import Environment
from specrunner.folders import cache_folder, hold_lock
from specrunner.requests import Request, Session
from specrunner.words import plural

Tell = Callable[[], str | None]
"""Returns a digest of everything that a loaded session's answers come from; None where it changed since the load."""

Watch = Callable[[Session, Environment, int], Tell]
"""Takes a session, its interpreter and its threads before the engine loads; a function that another process can import.
"""

LOCK = "lock"

OLDEST = 30 * 86400.0
"""Seconds after its last answer that a book is of use."""

MOST_BYTES = 1 << 30
"""What all books may take together; the one that was written last stays at any size."""

CHANGING = ("engine_arguments", "max_total_tokens")
"""Facts of a session that hold ports, paths or free memory; what matters of them is in the options and the stamp."""


class AnswerBook:
    """The kept answers of one session.

    Args:
        file: where they are, or will be.

    Attributes:
        file: the same.
        used: answers that were taken from an earlier run.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.used = 0
        self._earlier = read_lines(file)

    def find(self, question: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the answer that an earlier run got, or None. Answers of this run are not looked up."""
        answer = self._earlier.get(digest_answers(question))
        self.used += answer is not None
        return answer

    def keep(self, questions: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Any]]) -> None:
        """Append answers; those that no model gives are left out, and so is everything where it cannot be written."""
        lines = [
            format_line(digest_answers(question), answer)
            for question, answer in zip(questions, answers, strict=True)
            if is_plausible(answer)
        ]
        with suppress(OSError), hold_lock(self.file.with_name(LOCK)), self.file.open("ab+") as stream:
            if stream.seek(0, os.SEEK_END):
                stream.seek(-1, os.SEEK_END)
                if stream.read(1) != b"\n":  # whoever wrote last was killed within a line
                    lines.insert(0, b"\n")
            stream.write(b"".join(lines))


class AnswerShelf:
    """The books of one run.

    Args:
        folder: where books are; None keeps nothing and finds nothing.
        watch: stamps a session.

    Attributes:
        folder: the same.
        unfinished: whether a benchmark of the run did not come to its end, so that its books stay.
    """

    def __init__(self, folder: Path | None, watch: Watch | None = None) -> None:
        self.folder = folder
        self._watch = watch
        self.unfinished = False
        self._books: dict[str, AnswerBook] = {}
        self._lock = threading.Lock()

    def watch_for(self, requests: Iterable[Request]) -> Watch | None:
        """Return what stamps the session of these requests; None where no answer to them is kept."""
        asked = any(request.evaluation is not None for request in requests)
        return self._watch if asked and self.folder is not None else None

    def open(
        self, session: Session, facts: Mapping[str, Any], stamp: str | None, request: Request
    ) -> AnswerBook | None:
        """Open the book of a session for one benchmark.

        Returns:
            None when nothing is kept, the checkpoint has no digest, or what the session computes with has no stamp.
        """
        if self.folder is None or stamp is None or not facts.get("model_digest"):
            return None
        stated = {name: value for name, value in facts.items() if name not in CHANGING}
        decode = None if request.decode is None else asdict(request.decode)
        name = digest_answers([session.to_json(), stated, stamp, request.fault, decode])
        with self._lock:
            if name not in self._books:
                self._books[name] = AnswerBook(self.folder / f"{name}.jsonl")
            return self._books[name]

    def clear(self) -> None:
        """Delete the books of a run that came to its end; while a benchmark of it did not, they stay.

        Books that runs before have left behind go when they are too old, or too many.
        """
        if self._books and self.folder is not None:
            prune_books(self.folder, older_than=OLDEST, most_bytes=MOST_BYTES)
        if self.unfinished:
            return
        for book in self._books.values():
            with suppress(OSError), hold_lock(book.file.with_name(LOCK)):
                book.file.unlink(missing_ok=True)

    def summarize(self) -> list[str]:
        """Return a line on the answers that came from an earlier run, if there were any."""
        used = sum(book.used for book in self._books.values())
        if not used:
            return []
        some = plural(used, "answer was", "answers were")
        return [f"{some} taken from an earlier, interrupted run; --no-cache asks again"]


def answers_folder() -> Path:
    """Return where books are kept on this machine."""
    return cache_folder() / "answers"


@dataclass(frozen=True, slots=True)
class Books:
    """Some books.

    Attributes:
        count: how many.
        size: bytes that they take.
    """

    count: int
    size: int


def measure_books(folder: Path) -> Books:
    """Return the books that are kept in a folder."""
    found = list_books(folder)
    return Books(len(found), sum(size for _, size, _ in found))


def prune_books(
    folder: Path, *, older_than: float | None = None, most_bytes: int | None = None, now: float | None = None
) -> Books:
    """Delete books that no run is likely to come back to.

    A run that is under way loses at most what it had kept so far: it begins a new book with its next answer.

    Args:
        folder: where books are.
        older_than: seconds after its last answer that a book stays; 0 deletes all, None asks for no age.
        most_bytes: what the rest may take together; the oldest go first, the newest stays at any size.
        now: the time since the epoch in seconds, for tests.

    Returns:
        What was deleted.
    """
    if not folder.is_dir():
        return Books(0, 0)
    count = freed = 0
    with suppress(OSError), hold_lock(folder / LOCK):
        moment = time.time() if now is None else now
        kept = 0
        for number, (changed, size, file) in enumerate(sorted(list_books(folder), reverse=True)):
            kept += size
            too_old = older_than is not None and moment - changed >= older_than
            too_much = most_bytes is not None and number > 0 and kept > most_bytes
            if too_old or too_much:
                file.unlink(missing_ok=True)
                count, freed = count + 1, freed + size
    return Books(count, freed)


def list_books(folder: Path) -> list[tuple[float, int, Path]]:
    """Return when each book was written last, in seconds since the epoch, its bytes, and its file."""
    found = []
    for file in folder.glob("*.jsonl"):
        with suppress(OSError):
            status = file.stat()
            found.append((status.st_mtime, status.st_size, file))
    return found


def read_lines(file: Path) -> dict[str, dict[str, Any]]:
    """Return the answers of a book by their questions' digests; lines that are not whole are passed over."""
    answers: dict[str, dict[str, Any]] = {}
    try:
        written = file.read_bytes()
    except OSError:
        return answers
    for line in written.split(b"\n"):
        try:
            question, answer, check = json.loads(line)
            if check == digest_answers([question, answer]) and is_plausible(answer):
                answers[question] = answer
        except (ValueError, TypeError):
            continue
    return answers


def format_line(question: str, answer: Mapping[str, Any]) -> bytes:
    """Return a book's line."""
    return json.dumps([question, answer, digest_answers([question, answer])]).encode() + b"\n"


def is_plausible(answer: Any) -> bool:
    """Tell whether an answer is worth keeping: generated ids, or a log-likelihood below 0."""
    if not isinstance(answer, dict):
        return False
    logprob = answer.get("logprob")
    return "token_ids" in answer or (isinstance(logprob, float) and math.isfinite(logprob) and logprob < 0)


def digest_answers(value: Any) -> str:
    """Return the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
