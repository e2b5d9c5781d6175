"""What a planted fault is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

AREAS = (
    "embeddings",
    "mask",
    "rope",
    "qk_norm",
    "kv_cache",
    "routing",
    "experts",
    "shared_expert",
    "scaling",
    "norms",
    "layers",
    "dtype",
    "head",
    "sampler",
    "decoding",
)
"""Parts of an engine that a fault can sit in, in the order in which a forward and then a decode reach them."""

EVERYWHERE = "*"
"""Key of `Fault.invisible` for a reason that holds in every dtype."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A bug that can be planted in a live engine, or a legitimate way to compute the same thing.

    Attributes:
        name: how `prove --fault` calls it; a bug's name begins with its area.
        area: one of `AREAS`, or `variant` for a legitimate one.
        story: where it happened in real life, one line; for a variant, why engines may differ in it.
        engines: names of the engines that it can be planted in (`specrunner.engines.planters`).
        legitimate: the result is as right as without it, so that no check may raise an alarm.
        decodes: it sits in the decoding, so that a case without `decode` cannot see it.
        invisible: by dtype, or `EVERYWHERE`: why no comparison of results can see it.
    """

    name: str
    area: str
    story: str
    engines: tuple[str, ...] = ("hf", "oracle")
    legitimate: bool = False
    decodes: bool = False
    invisible: Mapping[str, str] = field(default_factory=dict)

    def why_invisible(self, dtype: str) -> str:
        """Return why the fault cannot be seen in a candidate of `dtype`, or "" when it can."""
        return self.invisible.get(EVERYWHERE) or self.invisible.get(dtype, "")
