"""Sets a check's measurements beside its limits: which number each rule judges, and how far it is from the limit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specrunner.reporters.wording import format_number
from specrunner.results import CheckResult


@dataclass(frozen=True, slots=True)
class _Judged:
    """What a rule judges.

    Attributes:
        measurement: the measurement's name; `{k}` in it stands for the limit of that name.
        limit: the name of the parameter that bounds it; "" for a bound that is always `fixed`.
        best: the value of a perfect candidate: 0 is approached from above, 1 from below, infinity by decibels.
        fixed: the bound where no parameter states one.
    """

    measurement: str
    limit: str
    best: float = 0.0
    fixed: float | None = None


_JUDGED: dict[str, tuple[_Judged, ...]] = {
    "exact": (_Judged("differing", "", fixed=0),),
    "allclose": (_Judged("outside_fraction", "outliers"),),
    "ulp": (_Judged("max_ulp", "max"), _Judged("over_one_ulp", "over_one")),
    "cosine": (_Judged("min_cosine", "min", best=1.0),),
    "sqnr": (_Judged("min_sqnr", "min", best=math.inf),),
    "kl": (_Judged("mean_kl", "mean"), _Judged("p99_kl", "p99")),
    "top_k": (_Judged("mean_top_{k}_overlap", "overlap", best=1.0),),
    "log_likelihoods": (_Judged("max_abs_ll_diff", "max_abs_ll_diff"),),
    "routing": (_Judged("decisive_agreement", "decisive", best=1.0), _Judged("agreement", "all", best=1.0)),
    "near_tie": (_Judged("mismatch_count", "", fixed=0), _Judged("share", "max_share")),
    "sampler": (_Judged("violations", "", fixed=0),),
    "attention": (_Judged("mismatches", "", fixed=0),),
    "noise_floor": (_Judged("floor_needed", "k"), _Judged("floor_needed_by_token", "k")),
}

_WORST = (
    ("max_abs", "max_abs_token"),
    ("relative_l2", ""),
    ("max_relative_l2", "max_relative_l2_token"),
    ("min_cosine", "min_cosine_token"),
    ("max_kl", "max_kl_token"),
)
"""Measurements that tell the size of a difference, each with the one that names its token."""


@dataclass(frozen=True, slots=True)
class Margin:
    """A judged measurement and its limit.

    Attributes:
        measurement: its name.
        measured: its value.
        limit: the bound.
        relation: `≤` or `≥`: what has to hold between them.
        distance: in words, how far the measurement is from the limit; "" when that cannot be said.
        share: which part of what the limit allows is used, 1 at the limit; None when that cannot be said.
        parameter: the name of the rule's parameter that is the limit; "" where none states it.
        best: what a perfect candidate has: 0, 1, or infinity for decibels.
    """

    measurement: str
    measured: Any
    limit: Any
    relation: str
    distance: str
    share: float | None = None
    parameter: str = ""
    best: float = 0.0

    def __str__(self) -> str:
        measured = f"{self.measurement} {_format(self.measurement, self.measured)}"
        text = f"{measured}, must be {self.relation} {format_number(self.limit)}"
        return f"{text}: {self.distance}" if self.distance else text


def find_margins(check: CheckResult) -> list[Margin]:
    """Return every judged measurement of a check beside its limit; empty for a rule without numbers."""
    margins = []
    for judged in _JUDGED.get(check.rule, ()):
        limit = check.limits.get(judged.limit) if judged.limit else judged.fixed
        name = judged.measurement.replace("{k}", str(check.limits.get("k")))
        if name in check.measurements and limit is not None:
            measured = check.measurements[name]
            relation = "≤" if judged.best == 0.0 else "≥"
            distance = _describe_distance(measured, limit, judged.best)
            share = _find_share(measured, limit, judged.best)
            margins.append(Margin(name, measured, limit, relation, distance, share, judged.limit, judged.best))
    return margins


def describe_worst(measurements: Mapping[str, Any]) -> list[str]:
    """Return how large a difference is, measure by measure, with the token where it is largest."""
    words = []
    for name, token_name in _WORST:
        value = measurements.get(name)
        if value is not None:
            token = measurements.get(token_name)
            words.append(f"{name} {_format(name, value)}" + (f" at token {token}" if token is not None else ""))
    return words


def _format(name: str, value: Any) -> str:
    """Format a measurement; a cosine tells nothing before its sixth nine."""
    return f"{value:.9g}" if "cosine" in name and isinstance(value, float) else format_number(value)


def _describe_distance(measured: Any, limit: Any, best: float) -> str:
    if math.isinf(best) and _are_finite(measured, limit):
        return f"{abs(measured - limit):.3g} {'above' if measured >= limit else 'below'} the limit"
    share = _find_share(measured, limit, best)
    if share is None:
        return ""
    if share == 0.0:
        return "nothing of the margin used"
    return f"{share:.3g} times the limit" if share > 1 else f"{share:.2%} of the limit"


def _find_share(measured: Any, limit: Any, best: float) -> float | None:
    """Return error / allowed error; decibels are turned into the ratio of the amplitudes that they stand for."""
    if not _are_finite(measured, limit):
        return None
    if math.isinf(best):
        exponent = (float(limit) - float(measured)) / 20
        return 10.0**exponent if exponent < 300 else None
    error, allowed = abs(best - measured), abs(best - limit)
    return error / allowed if allowed and math.isfinite(error / allowed) else None


def _are_finite(*values: Any) -> bool:
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)
