"""What a signal does to a run, by when it comes."""

from __future__ import annotations

import signal

import pytest

from specrunner.interrupts import Interrupts


def test_a_signal_gives_up_the_preparation() -> None:
    obeyed: list[int] = []
    interrupts = Interrupts(lambda: obeyed.append(1))
    reached = []
    with interrupts.handled():
        with pytest.raises(KeyboardInterrupt), interrupts.preparation():
            signal.raise_signal(signal.SIGINT)
            reached.append("the rest")
        assert (interrupts.count, interrupts.preparing, obeyed, reached) == (1, False, [], [])
        signal.raise_signal(signal.SIGINT)
    assert (interrupts.count, interrupts.at_once, obeyed) == (2, True, [1])


def test_a_preparation_after_a_signal_does_not_begin() -> None:
    obeyed: list[int] = []
    interrupts = Interrupts(lambda: obeyed.append(1))
    with interrupts.handled():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt), interrupts.preparation():
            pytest.fail("prepared")
    assert (interrupts.at_once, interrupts.preparing, obeyed) == (True, False, [1])


def test_an_ignored_signal_stays_ignored() -> None:
    """As with `nohup`, and as shells start what a script puts into the background."""
    interrupts = Interrupts(lambda: pytest.fail("obeyed"))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts.handled():
            signal.raise_signal(signal.SIGINT)
            assert interrupts.count == 0
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("error", [None, ValueError])
def test_a_signal_after_the_preparation_is_obeyed(error: type[Exception] | None) -> None:
    obeyed: list[int] = []
    interrupts = Interrupts(lambda: obeyed.append(1))
    with interrupts.handled():
        try:
            with interrupts.preparation():
                if error is not None:
                    raise error
        except ValueError:
            pass
        signal.raise_signal(signal.SIGINT)
    assert (interrupts.count, interrupts.at_once, obeyed) == (1, False, [1])
