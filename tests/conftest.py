"""What all tests share: property tests measure no time, and are the same on every run."""

from __future__ import annotations

import gc
import os
import signal

import pytest
from hypothesis import HealthCheck, settings

from specrunner.cli import OBJECTS_BETWEEN_COLLECTIONS
from tests.remembered import remembered as remembered

settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("house", settings.get_profile("explore"), derandomize=True)
settings.load_profile("house")
"""The same examples each time, since a newcomer's first run is no place for a find; `explore` draws others."""

os.environ.setdefault("SPECRUNNER_NO_CACHE", "1")
"""Tests ask engines anew; those of the cache say otherwise."""

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    """Workers share the processors: each with a thread for every one of them, they wait for one another."""

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
"""Two test processes share the cores: torch's threads sleep while they wait, as in a run (see `let_threads_sleep`)."""

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
"""The hundreds of processes that tests start must not compile all of specrunner each."""

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    """Started in the background of a script, all that tests start would ignore Ctrl-C."""

gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
"""As in a command: to collect the tests makes a great many objects and drops none."""

ORDER = 20261123
"""The seed of the order in which tests run, unless `--randomly-seed` states one: shuffled, and the same each time."""


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Fix the order before pytest-randomly draws one."""
    if getattr(config.option, "randomly_seed", None) == "default":
        config.option.randomly_seed = ORDER


def pytest_collection_finish() -> None:
    """Take what is imported by now out of garbage collection, which a tenth of the time went into otherwise."""
    gc.collect()
    gc.freeze()


collect_ignore = ["specs", "large"]
"""Specs that the pytest plugin must not take for cases: examples of the language, and what needs gigabytes."""
