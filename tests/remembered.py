"""A cache that remembers the digests of the installed packages: a first run in it need not read gigabytes of them."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from specrunner.cache.digests import Digests
from specrunner.cache.keeping import DIGESTS
from specrunner.cache.sources import UNUSED, find_sources
from specrunner.engines.stamp import COMMON
from specrunner.environments.interpreters import Environment
from specrunner.folders import hold_lock


@pytest.fixture(scope="session")
def remembered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of digests that all workers of this test run share; the first one reads the packages."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    ours = Environment("hf", Path(sys.executable))
    with hold_lock(root / "digests.lock"):
        digests = Digests(root / DIGESTS)
        for place in find_sources(sorted(set(COMMON) - {"specrunner"}), ours):
            digests.of(place, UNUSED)
    return root / DIGESTS


def prepare_cache(cache: Path, remembered: Path) -> Path:
    """Put the digests into a cache that is not there yet, and return it; what is not so any more is read again."""
    shutil.copytree(remembered, cache / "kept" / DIGESTS, copy_function=os.link)
    return cache
