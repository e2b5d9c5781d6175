"""Engines in a process that was forked off one that had imported them.

Libraries note some things when they are imported, and would note otherwise since; and what an engine starts for itself
can be forked in turn.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FORKED_VARIABLE = "SPECRUNNER_FORKED"
"""Environment variable that tells a worker that it was forked."""


@contextmanager
def fork_children() -> Iterator[None]:
    """In a process that was forked, have `multiprocessing` fork its processes, too, whatever an engine asks for.

    Those that it spawns would import the engine again. It must be left before a thread may hold a lock that they need.
    """
    if FORKED_VARIABLE not in os.environ:
        yield
        return
    chosen, choose = multiprocessing.get_start_method(allow_none=True), multiprocessing.set_start_method
    choose("fork", force=True)
    multiprocessing.set_start_method = lambda method, force=False: None
    try:
        yield
    finally:
        multiprocessing.set_start_method = choose
        choose(chosen, force=True)


def settle_titles() -> None:
    """Let processes that are forked later give themselves titles, as those of engines do for `ps`.

    The package setproctitle looks for the place of a title when it is first used, in an environment that nobody has
    changed since the process was started. Left to itself it takes the environment's place, too, and the mark with it.
    """
    package = sys.modules.get("setproctitle")
    if package is not None:
        os.environ["SPT_NOENV"] = "1"
        package.getproctitle()
        del os.environ["SPT_NOENV"]


def renew_import_state() -> None:
    """Let libraries that are imported already obey the environment of this process.

    Transformers notes when it is imported where a checkpoint's code is copied to: one session must not find another's.
    """
    dynamic = sys.modules.get("transformers.dynamic_module_utils")
    if dynamic is not None:
        home = os.environ.get("HF_HOME")
        modules = os.environ.get("HF_MODULES_CACHE") or (home and str(Path(home) / "modules"))
        if modules:
            dynamic.HF_MODULES_CACHE = modules  # type: ignore[attr-defined]
