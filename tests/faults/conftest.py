"""A workplace with a cache and a temporary folder of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.remembered import prepare_cache
from tests.workplace import Workplace, find_processes, make_workplace


@pytest.fixture
def workplace(tmp_path: Path, remembered: Path) -> Iterator[Workplace]:
    """A workplace in which captures are kept; no process of it outlives the test."""
    place = make_workplace(tmp_path)
    temporary = tmp_path / "t"
    temporary.mkdir()
    cache = prepare_cache(tmp_path / "cache", remembered)
    place.environment.update(
        SPECRUNNER_NO_CACHE="0", SPECRUNNER_CACHE=str(cache), TMPDIR=str(temporary), OMP_NUM_THREADS="1"
    )
    yield place
    assert find_processes(str(tmp_path)) == [], "a process was left behind"
