"""Retries: errors are asked again, as often as it was said; wrong numbers never are."""

from __future__ import annotations

import pytest

from specrunner.errors import CapabilityMissing, CaptureIncomplete, EngineError, EngineMissing, WorkerDied
from specrunner.requests import Evidence
from specrunner.sessions.retries import Retries

HERE, THERE = Evidence("s", "a"), Evidence("s", "b")


@pytest.mark.parametrize("most", [0, 1, 3])
def test_an_error_is_asked_again_so_often(most: int) -> None:
    retries = Retries(most)
    error = CaptureIncomplete("a hook did not fire")
    assert [retries.allow(HERE, error) for _ in range(5)] == [True] * most + [False] * (5 - most)
    assert retries.failures(HERE) == (error,) * most
    assert retries.failures(THERE) == ()


@pytest.mark.parametrize(("most", "times"), [(0, 1), (1, 1), (2, 2)])
def test_what_crashed_once_is_asked_once_more_anyway(most: int, times: int) -> None:
    retries = Retries(most)
    assert [retries.allow(HERE, WorkerDied("gone")) for _ in range(3)] == [True] * times + [False] * (3 - times)


@pytest.mark.parametrize("error", [CapabilityMissing("no such dtype"), EngineMissing("not installed")])
def test_what_the_same_machine_says_again_is_not_asked_again(error: EngineError) -> None:
    assert not Retries(5).allow(HERE, error)


def test_requests_are_counted_apart() -> None:
    retries = Retries(1)
    assert retries.allow(HERE, EngineError("x"))
    assert retries.allow(THERE, EngineError("y"))
    assert not retries.allow(HERE, EngineError("x"))
