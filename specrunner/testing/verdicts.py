"""Verdicts from a process of their own: cases are run together, once, and whoever asks waits for the one it needs.

The process that runs the cases writes each verdict as a line of a file. Several askers may share the folder with that
file (the workers of pytest-xdist do): the one that holds the folder's lock keeps the process, the others read along.
When it goes away before the end, the lock is free and the next asker runs what is left. So no engine is loaded twice,
and neither torch nor its warnings come into the asker's own process.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from specrunner.errors import EngineError
from specrunner.folders import join_import_path
from specrunner.reporters.record import CaseRecord

POLL_SECONDS = 0.05
"""How often a waiting asker looks for new verdicts."""

END_SECONDS = 60.0
"""How long a process that was told to end may take before it is killed."""

_LOG_LINES = 40


class Verdicts:
    """The verdicts of a fixed set of cases.

    Args:
        folder: where verdicts, log and lock live; shared by all askers of one run.
        files: the spec files, as `load_specs` takes them.
        node_ids: the cases to run, as `Case.node_id` writes them.
        settings: stated settings by name (`strict`, `jobs`), above those of the environment and pyproject.toml.
    """

    def __init__(
        self, folder: Path, files: Sequence[str], node_ids: Sequence[str], settings: Mapping[str, Any]
    ) -> None:
        self._folder = folder
        self._files = list(files)
        self._node_ids = list(node_ids)
        self._settings = dict(settings)
        self._records: dict[str, CaseRecord] = {}
        self._lines: IO[bytes] | None = None
        self._rest = b""
        self._lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def complete(self) -> bool:
        """Whether every case is known to have its verdict."""
        return self._records.keys() >= set(self._node_ids)

    def wait_for(self, node_id: str) -> CaseRecord:
        """Return a case's record as soon as there is one; start the process when nobody has.

        Raises:
            EngineError: the process ended without a verdict for this case; the message holds what it said.
        """
        while True:
            ended = self._process is not None and self._process.poll() is not None
            self._read_lines()
            if node_id in self._records:
                return self._records[node_id]
            if ended:
                raise self._describe_end()
            if self._process is None and self._take_lock():
                self._read_lines()
                if node_id not in self._records:
                    self._start()
            time.sleep(POLL_SECONDS)

    def close(self, *, finish: bool) -> None:
        """Let go of everything.

        Args:
            finish: wait for the process to run all cases; otherwise it and its engines are ended.
        """
        if self._process is not None:
            if finish:
                self._process.wait()
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            try:
                self._process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._lines is not None:
            self._lines.close()
            self._lines = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _take_lock(self) -> bool:
        """Try to become the one that keeps the process; the lock goes with us, however we end."""
        if self._lock is not None:
            return True
        handle = os.open(self._folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return False
        self._lock = handle
        return True

    def _start(self) -> None:
        request = {
            "files": self._files,
            "node_ids": [node_id for node_id in self._node_ids if node_id not in self._records],
            "settings": self._settings,
            "verdicts": str(self._folder / "verdicts.jsonl"),
        }
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "specrunner.testing.process"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": join_import_path()},
                start_new_session=True,
            )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()

    def _read_lines(self) -> None:
        """Take in the verdicts written since the last look."""
        if self._lines is None:
            try:
                self._lines = (self._folder / "verdicts.jsonl").open("rb")
            except FileNotFoundError:
                return
        *lines, self._rest = (self._rest + self._lines.read()).split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError):  # a process that was killed left half a line
                record = CaseRecord.from_json(json.loads(line))
                self._records[record.node_id] = record

    def _describe_end(self) -> EngineError:
        assert self._process is not None
        lines = (self._folder / "log").read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
        stated = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        reason = stated[-1] if stated else f"exit status {self._process.returncode}"
        return EngineError(f"the cases could not be run: {reason}", log_tail="\n".join(lines))
