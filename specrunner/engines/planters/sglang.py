"""All planters of `sglang`: the request's order names the fault to the process that holds the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from specrunner.engines.planters import sampling
from specrunner.engines.planters.patching import Planter, replaced
from specrunner.engines.planters.served import CHANGES
from specrunner.errors import FaultInapplicable


def _planter(name: str) -> Planter:
    @contextmanager
    def plant(engine: Any) -> Iterator[None]:
        if not engine.setup.keywords["disable_radix_cache"]:
            raise FaultInapplicable(
                "the radix cache would hand keys and values of the fault to later requests",
                help="leave disable_radix_cache at true",
            )
        with replaced(engine, "fault", name):
            yield

    return plant


ENDLESS = {"head-one-row-off"}
"""Faults that have the model predict its mask token: SGLang's decode then never fills the block, and never ends."""

PLANTERS: dict[str, Planter] = {name: _planter(name) for name in (*CHANGES, *sampling.SGLANG) if name not in ENDLESS}
"""Context managers by the fault's name."""
