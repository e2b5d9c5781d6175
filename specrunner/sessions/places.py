"""Places on this machine: how many sessions may work at once, and which fit beside each other in memory and on GPUs.

A session needs a turn to compute, memory while its model is loaded, and GPUs of its own. One that waits for another's
capture lets others have its turn but keeps its model; when somebody lacks its memory or its GPUs, it should leave.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class Need:
    """What a session takes up.

    Attributes:
        memory: bytes of the host's memory, estimated.
        gpus: how many.
    """

    memory: int = 0
    gpus: int = 0


class _State(Enum):
    AWAY = "away"
    WAITING = "waiting"
    WORKING = "working"
    RESTING = "resting"
    RETURNING = "returning"


@dataclass(slots=True, eq=False)
class Place:
    """A session's place; `Places` alone changes it.

    Attributes:
        need: what the session takes up.
        gpus: entries of CUDA_VISIBLE_DEVICES that are the session's own while it has its place.
    """

    need: Need
    gpus: tuple[str, ...] = ()
    state: _State = _State.AWAY


class Places:
    """The places of one run, given in the order in which they were reserved, to whoever fits.

    Args:
        turns: sessions that may work at once.
        memory: bytes for the models of all of them. A session that needs more than there is runs alone.
        gpus: entries of CUDA_VISIBLE_DEVICES; a session that needs more GPUs than there are gets them all.
    """

    def __init__(self, turns: int, *, memory: int, gpus: tuple[str, ...] = ()) -> None:
        self._turns = turns
        self._memory = memory
        self._gpus = gpus
        self._places: list[Place] = []
        self._changed = threading.Condition()
        self._stopped = False

    def reserve(self, need: Need) -> Place:
        """Return a place that is not taken yet."""
        with self._changed:
            place = Place(Need(need.memory, min(need.gpus, len(self._gpus))))
            self._places.append(place)
            return place

    def ask(self, place: Place) -> None:
        """Wait for a place without blocking: it may be given from now on, before anyone calls `take`."""
        with self._changed:
            if place.state is _State.AWAY:
                self._change(place, _State.WAITING)

    def take(self, place: Place) -> bool:
        """Block until a place is given; False when the run is stopped first."""
        self.ask(place)
        return self._await_turn(place)

    def rest(self, place: Place) -> None:
        """Let others have the turn, and keep memory and GPUs."""
        with self._changed:
            self._change(place, _State.RESTING)

    def resume(self, place: Place) -> bool:
        """Block until the turn has come again; False when the run is stopped first."""
        with self._changed:
            self._change(place, _State.RETURNING)
        return self._await_turn(place)

    def leave(self, place: Place) -> None:
        """Give everything back."""
        with self._changed:
            place.gpus = ()
            self._change(place, _State.AWAY)

    def is_short(self) -> bool:
        """Tell whether somebody waits for memory or GPUs that others keep."""
        with self._changed:
            return any(place.state is _State.WAITING and not self._fits(place) for place in self._places)

    def stop(self) -> None:
        """Let everyone who waits go."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _await_turn(self, place: Place) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or place.state is _State.WORKING)
            return not self._stopped

    def _change(self, place: Place, state: _State) -> None:
        place.state = state
        # Whoever is loaded goes first: a reload costs more than a wait.
        for wanted in (_State.RETURNING, _State.WAITING):
            for other in self._places:
                if other.state is wanted and self._free_turns() and (wanted is _State.RETURNING or self._fits(other)):
                    if wanted is _State.WAITING:
                        taken = {gpu for one in self._places for gpu in one.gpus}
                        other.gpus = tuple(gpu for gpu in self._gpus if gpu not in taken)[: other.need.gpus]
                    other.state = _State.WORKING
        self._changed.notify_all()

    def _free_turns(self) -> int:
        return self._turns - sum(place.state is _State.WORKING for place in self._places)

    def _fits(self, place: Place) -> bool:
        holding = [one for one in self._places if one.state not in (_State.AWAY, _State.WAITING)]
        gpus = len(self._gpus) - sum(len(one.gpus) for one in holding)
        memory = self._memory - sum(one.need.memory for one in holding)
        return place.need.gpus <= gpus and (place.need.memory <= memory or not holding)
