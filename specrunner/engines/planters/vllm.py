"""All planters of `vllm`: its worker extension changes the model, on every rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from specrunner.engines.planters import sampling
from specrunner.engines.planters.patching import Planter
from specrunner.engines.planters.served import CHANGES
from specrunner.errors import FaultInapplicable


def _planter(name: str) -> Planter:
    @contextmanager
    def plant(engine: Any) -> Iterator[None]:
        llm = engine._llm
        try:
            raise_first(llm.collective_rpc("specrunner_plant", args=(name,)))
            yield
        finally:
            problems = llm.collective_rpc("specrunner_unplant")
            llm.reset_prefix_cache()
        raise_first(problems)

    return plant


def raise_first(problems: Sequence[str | None]) -> None:
    """Raise what the first rank with a problem says.

    Raises:
        FaultInapplicable: a rank has one.
    """
    for problem in problems:
        if problem is not None:
            raise FaultInapplicable(problem)


PLANTERS: dict[str, Planter] = {name: _planter(name) for name in CHANGES} | sampling.VLLM
"""Context managers by the fault's name."""
