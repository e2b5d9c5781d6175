"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import tempfile
from pathlib import Path

from specrunner.errors import ConfigurationError


def write_whole(path: Path, data: bytes) -> None:
    """Put a file holding `data` at `path`, in a folder that is made when missing.

    A reader sees the old file or the new one, never half of one; the new one is on disk before it takes the place. It
    may be read by whom the old one's mode allows, or the umask where there was none.

    Raises:
        OSError: the folder is read-only, or the disk is full; the old file is still there, and nothing beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        with temporary.open("xb") as stream:
            with contextlib.suppress(FileNotFoundError):
                os.fchmod(stream.fileno(), path.stat().st_mode & 0o7777)
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_directory(path.parent)


def write_atomically(path: Path, data: bytes) -> None:
    """Write `path` whole, whatever its user has put there.

    What is there but is no file (a pipe, `/dev/stdout`) is written to as it is; a link is followed.

    Raises:
        OSError: it could not be written; the old file is then still there.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        path.write_bytes(data)
    else:
        write_whole(path, data)


def prepare_path(path: Path, what: str) -> None:
    """Make sure, before anything runs, that a file can be put at `path`; its directory is made.

    Args:
        path: where the file will go.
        what: its name in the message.

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
        raise cannot_write(path, what, error) from error


def cannot_write(path: Path, what: str, error: OSError) -> ConfigurationError:
    """Return the error to raise or to tell when a file of the user's cannot be written."""
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
