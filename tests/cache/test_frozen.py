"""Values that have been made do not change, so that what is keyed by them stays what it was."""

from __future__ import annotations

import specrunner.cache
from tests.frozen import check_frozen


def test_dataclasses_are_frozen_and_slotted() -> None:
    check_frozen(specrunner.cache, set(), caching=frozenset({"Stamp"}))
