"""Places: who may work beside whom, and in which order."""

from __future__ import annotations

import threading

from specrunner.sessions.places import Need, Place, Places
from tests.waiting import PATIENCE, wait_for

GIB = 1 << 30


def taken(places: Places, *asked: Place) -> list[bool]:
    """Ask for places in order; say who has one now."""
    for place in asked:
        places.ask(place)
    return [holds(place) for place in asked]


def holds(place: Place) -> bool:
    return place.state.name == "WORKING"


def test_turns_are_given_in_the_order_of_asking() -> None:
    places = Places(2, memory=GIB)
    first, second, third = (places.reserve(Need()) for _ in range(3))
    assert taken(places, first, second, third) == [True, True, False]
    places.leave(second)
    assert holds(third)


def test_a_session_that_does_not_fit_waits_and_a_smaller_one_goes_before_it() -> None:
    places = Places(3, memory=10)
    large, larger, small = (places.reserve(Need(memory=size)) for size in (6, 7, 4))
    assert taken(places, large, larger, small) == [True, False, True]
    assert places.is_short()
    places.leave(small)
    assert not holds(larger)
    places.leave(large)
    assert holds(larger)
    assert not places.is_short()


def test_a_session_that_never_fits_runs_alone() -> None:
    places = Places(2, memory=10)
    huge, small = places.reserve(Need(memory=100)), places.reserve(Need(memory=1))
    assert taken(places, huge, small) == [True, False]
    places.leave(huge)
    assert taken(places, huge) == [False]
    assert holds(small)
    places.leave(small)
    assert holds(huge)


def test_gpus_are_slots_of_their_own() -> None:
    places = Places(4, memory=GIB, gpus=("3", "5", "7"))
    pair, one, another, plain = (places.reserve(Need(gpus=count)) for count in (2, 1, 1, 0))
    assert taken(places, pair, one, another, plain) == [True, True, False, True]
    assert (pair.gpus, one.gpus, another.gpus, plain.gpus) == (("3", "5"), ("7",), (), ())
    places.leave(pair)
    assert another.gpus == ("3",)
    places.leave(one)
    assert taken(places, one) == [True]
    assert one.gpus == ("5",)


def test_who_needs_more_gpus_than_there_are_gets_them_all() -> None:
    places = Places(2, memory=GIB, gpus=("0", "1"))
    wide = places.reserve(Need(gpus=8))
    assert taken(places, wide) == [True]
    assert wide.gpus == ("0", "1")


def test_a_resting_session_keeps_its_gpu_and_comes_back_before_those_who_are_not_loaded() -> None:
    places = Places(1, memory=GIB, gpus=("0",))
    resting, working, waiting = (places.reserve(Need(gpus=count)) for count in (1, 0, 0))
    assert taken(places, resting, working, waiting) == [True, False, False]
    places.rest(resting)
    assert holds(working)
    assert resting.gpus == ("0",)
    resumed: list[bool] = []
    thread = threading.Thread(target=lambda: resumed.append(places.resume(resting)))
    thread.start()
    wait_for(lambda: resting.state.name == "RETURNING", "it wants its place back")
    assert not resumed
    places.leave(working)
    thread.join(PATIENCE)
    assert resumed == [True]
    assert not holds(waiting)


def test_stopping_lets_everyone_go() -> None:
    places = Places(1, memory=GIB)
    first, second = places.reserve(Need()), places.reserve(Need())
    assert places.take(first)
    threading.Timer(0.02, places.stop).start()
    assert not places.take(second)
