"""The directory of a run: made when it begins, removed when it ends, and by a later run when it could not.

So is a directory elsewhere that a session needs whose run's own has too long a name. A run that is killed cannot remove
its captures and logs. It held a lock on a file in the directory, which went with it; the next run of the same user sees
that nobody holds it, and removes the directory.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from specrunner.errors import ConfigurationError

PREFIX = "specrunner-"
OWNER = "owner.lock"


@contextmanager
def hold_run_folder(parent: Path | None = None) -> Iterator[Path]:
    """Make a directory for a run; remove it, and those beside it of runs that died.

    Args:
        parent: where; by default in `$TMPDIR` or where temporary files go.

    Yields:
        The directory.

    Raises:
        ConfigurationError: none can be made.
    """
    try:
        directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        owner = (directory / f"{OWNER}.new").open("w")
    except OSError as error:
        raise ConfigurationError(
            f"there is no room for temporary files: {(error.strerror or str(error)).lower()}",
            help="let TMPDIR name a directory that can be written",
        ) from error
    with owner:
        try:
            fcntl.flock(owner, fcntl.LOCK_EX)
            Path(owner.name).rename(directory / OWNER)  # nobody sees it unlocked
            remove_abandoned(directory.parent)
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)


def remove_abandoned(parent: Path) -> None:
    """Remove the directories of runs of ours that are gone; others' are left alone."""
    for lock in parent.glob(f"{PREFIX}*/{OWNER}"):
        with suppress(OSError):
            if lock.parent.is_symlink() or lock.lstat().st_uid != os.getuid():
                continue
            with lock.open("r") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
