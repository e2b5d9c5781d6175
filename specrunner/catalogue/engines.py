"""The engines that specs can name: entry points of the group `specrunner.engines`, and the ones of this package."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points

GROUP = "specrunner.engines"

BUILT_IN: Mapping[str, str] = {
    "hf": "specrunner.engines.hf:HfEngine",
    "oracle": "specrunner.engines.oracle:OracleEngine",
    "vllm": "specrunner.engines.vllm:VllmEngine",
    "sglang": "specrunner.engines.sglang:SglangEngine",
}
"""Our own engines, so that a checkout works that was not installed again since one was added."""


@cache
def engine_targets() -> Mapping[str, str]:
    """Return `module:Class` of every engine, by name; nothing is imported. A plugin may replace one of ours."""
    return {**BUILT_IN, **{point.name: f"{point.module}:{point.attr}" for point in entry_points(group=GROUP)}}


def engine_names() -> tuple[str, ...]:
    """Return the names of all engines."""
    return tuple(engine_targets())
