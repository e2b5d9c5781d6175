"""Where specrunner keeps things on the user's machine."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


def cache_folder() -> Path:
    """Return the user's cache: `$SPECRUNNER_CACHE`, else `$XDG_CACHE_HOME/specrunner`, else `~/.cache/specrunner`."""
    if chosen := os.environ.get("SPECRUNNER_CACHE"):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "specrunner"


def join_import_path() -> str:
    """Return a PYTHONPATH by which a child of our own interpreter imports this specrunner, and what we may import."""
    return os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))


def hub_home(environ: Mapping[str, str]) -> Path:
    """Return where the Hugging Face libraries keep their files, by the rules of `huggingface_hub.constants`."""
    base = environ.get("XDG_CACHE_HOME", "~/.cache")
    return _expand(environ.get("HF_HOME", f"{base}/huggingface"))


def hub_folder(environ: Mapping[str, str]) -> Path:
    """Return where they keep what they fetch from the hub, by the same rules; it need not be there.

    Args:
        environ: the environment of the process that asks the hub.
    """
    older = environ.get("HUGGINGFACE_HUB_CACHE", str(hub_home(environ) / "hub"))
    return _expand(environ.get("HF_HUB_CACHE", older))


def _expand(path: str) -> Path:
    return Path(os.path.expandvars(Path(path).expanduser()))


@contextmanager
def hold_lock(file: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[int]:
    """Hold an exclusive lock on `file`, made with its folder when missing. It goes with the process, however it ends.

    Args:
        file: the lock file; it stays behind, empty.
        on_wait: called once when another process has the lock, before waiting for it.

    Yields:
        The lock's file descriptor; a child process that inherits it shares the lock, and holds it if we are killed.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield stream.fileno()
