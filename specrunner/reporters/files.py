"""Reports written to files: whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import tempfile
from abc import abstractmethod
from pathlib import Path

from specrunner.errors import ConfigurationError
from specrunner.events import Event, RunFinished
from specrunner.reporters.base import Reporter
from specrunner.reporters.collector import RunCollector


def prepare_path(path: Path, what: str) -> None:
    """Make sure, before anything runs, that a file can be put at `path`; its directory is made.

    Args:
        path: where the report will go.
        what: the report's name in the message.

    Raises:
        ConfigurationError: it cannot, and why.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if path.exists() and not path.is_file():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise _cannot_write(path, what, error) from error


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by a file holding `data`: a reader sees the old file or the new one, never half of one.

    What is there but is no file (a pipe, `/dev/stdout`) is written to as it is; a link is followed.

    Raises:
        OSError: it could not be written; the old file is then still there.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_directory(path.parent)


class FileReporter(Reporter):
    """Gathers the run and writes one file when it ends, however it ends.

    Args:
        path: where to write; its directory is made.
        optional: see `Reporter`.
    """

    what = "report"

    def __init__(self, path: Path, *, optional: bool = False) -> None:
        self.path = path
        self.optional = optional
        self.collector = RunCollector()
        self._written = False

    def handle(self, event: Event) -> None:
        """Take one event in; the last one writes the file."""
        self.collector.handle(event)
        if isinstance(event, RunFinished):
            self._write()

    def close(self) -> None:
        """Write what there is if the run broke off."""
        if self.collector.started is not None and not self._written:
            self._write()

    @abstractmethod
    def render(self) -> bytes:
        """Return the file's content."""

    def _write(self) -> None:
        self._written = True
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, self.render())
        except OSError as error:
            self.problem = _cannot_write(self.path, self.what, error)


def _cannot_write(path: Path, what: str, error: OSError) -> ConfigurationError:
    reason = (error.strerror or str(error)).lower()
    return ConfigurationError(f"cannot write the {what} to {path}: {reason}", help="name a file that can be written")


def _sync_directory(directory: Path) -> None:
    """Make the rename durable where the system lets a directory be synced."""
    with contextlib.suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
