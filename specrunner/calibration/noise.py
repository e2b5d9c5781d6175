"""Noise by tolerance: how much of each stated limit legitimate runs use, and which limit that supports."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from specrunner.checks.statistics import weigh_against_floor
from specrunner.reporters.margins import find_margins
from specrunner.results import CaseResult
from specrunner.spec.model import Case, Location
from specrunner.spec.tensor_names import match_name

SAFETY = 1.5
"""What the 99th percentile of the noise is multiplied with.

At 1.0 the worst rate of false alarms of 37 planted bugs and held-out noise on a tiny LLaDA2 was 23 %, at 1.5 it was
0.5 % or less for every metric, with nearly the same bugs found (measured when this project was planned).
"""
QUANTILE = 0.99
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Limit:
    """One number of a spec.

    Attributes:
        location: the tolerance entry it belongs to.
        pattern: the entry's tensor pattern.
        rule: the rule's name.
        parameter: the rule's parameter; "" for a rule that allows nothing.
        stated: its value, the largest of those in use where a parameter has a matrix; 0 for such a rule.
        best: what a perfect candidate has: 0, 1, or infinity for decibels.
    """

    location: Location
    pattern: str
    rule: str
    parameter: str
    stated: float
    best: float


@dataclass(frozen=True, slots=True)
class Noise:
    """What legitimate runs used of one limit.

    Attributes:
        limit: the limit.
        shares: of each run, the largest share over the tensors of the entry; infinite for a run that broke a rule which
            allows nothing.
        groups: of each run, the prompt it was made on, so that a fit can leave prompts out.
    """

    limit: Limit
    shares: Sequence[float]
    groups: Sequence[str]

    @property
    def largest(self) -> float:
        """The largest share."""
        return max(self.shares)

    @property
    def high(self) -> float:
        """The 99th percentile of the shares: the smallest one that is not below 99 % of them."""
        return quantile(self.shares)

    @property
    def alarms(self) -> int:
        """Runs beyond the stated limit."""
        return sum(share > 1 for share in self.shares)

    @property
    def suggested(self) -> float | None:
        """The limit that the noise supports, `SAFETY` times its 99th percentile; None where no number can say it.

        A limit from below, on a cosine, a share or decibels, is above 0: what zeros pass is none.
        """
        if not self.limit.parameter or not math.isfinite(self.high) or self.high <= 0:
            return None
        value = round_outwards(scale_limit(self.limit, SAFETY * self.high), self.limit.best)
        return value if value > 0 or not self.limit.best else None

    def expect_alarms(self) -> tuple[int, float]:
        """Return how many runs a limit that was fitted without their prompt would have called wrong, and the bound.

        Each prompt in turn is left out of the fit and judged by it. The bound is the upper one of Clopper and Pearson
        at 95 %, on all runs; after no alarm it is about three divided by their number. Runs on one prompt are not
        independent, which the bound does not know.
        """
        alarms = 0
        for group in dict.fromkeys(self.groups):
            pairs = list(zip(self.shares, self.groups, strict=True))
            others = [share for share, other in pairs if other != group] or list(self.shares)
            alarms += sum(share > SAFETY * quantile(others) for share, other in pairs if other == group)
        return alarms, bound_rate(alarms, len(self.shares))


@dataclass(slots=True)
class NoiseLog:
    """Collects noise from results."""

    _limits: dict[tuple[str, str, str, str], Limit] = field(default_factory=dict)
    _shares: dict[tuple[str, str, str, str], list[tuple[float, str]]] = field(default_factory=dict)

    def add(self, case: Case, result: CaseResult, group: str) -> None:
        """Take in one legitimate run.

        Args:
            case: the case as the spec has it.
            result: what a run of it gave.
            group: the prompt it was made on.
        """
        entries = {(entry.pattern, str(entry.location)): entry for entry in case.tolerance}
        run: dict[tuple[str, str, str, str], float] = {}
        for check in result.checks:
            for (pattern, place), entry in entries.items():
                if place != check.location or not match_name(pattern, check.subject):
                    continue
                for margin in find_margins(check):
                    key = (f"{entry.location}:{entry.location.column}", pattern, check.rule, margin.measurement)
                    share = margin.share
                    if share is None:
                        share = 0.0 if check.passed else math.inf
                    run[key] = max(run.get(key, 0.0), share)
                    stated = float(margin.limit)
                    self._limits.setdefault(
                        key, Limit(entry.location, pattern, check.rule, margin.parameter, stated, margin.best)
                    )
                break
        for key, share in run.items():
            self._shares.setdefault(key, []).append((share, group))

    def noises(self) -> list[Noise]:
        """Return the noise of every limit, in the order in which the runs met them."""
        return [
            Noise(self._limits[key], [share for share, _ in pairs], [group for _, group in pairs])
            for key, pairs in self._shares.items()
        ]


def quantile(shares: Iterable[float]) -> float:
    """Return the smallest value that at least 99 % of the values do not exceed."""
    ordered = sorted(shares)
    return ordered[math.ceil(QUANTILE * len(ordered)) - 1]


def bound_rate(alarms: int, runs: int) -> float:
    """Return the largest rate of alarms that is not refuted at 95 % by so many in so many runs.

    Source: C. J. Clopper and E. S. Pearson, "The use of confidence or fiducial limits illustrated in the case of the
    binomial", Biometrika 26 (1934); after no alarm it is 1 - 0.05 ** (1 / runs), nearly three divided by the runs.
    """
    low, high = alarms / runs, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if weigh_against_floor(alarms, runs, middle) > 1 - CONFIDENCE else (low, middle)
    return high


def scale_limit(limit: Limit, factor: float) -> float:
    """Return the limit that allows `factor` times the error of the stated one."""
    if math.isinf(limit.best):
        return limit.stated - 20 * math.log10(factor)
    return limit.best + (limit.stated - limit.best) * factor


def round_outwards(value: float, best: float) -> float:
    """Round a limit to two digits of the allowed error, towards allowing more; decibels to whole ones."""
    if math.isinf(best):
        return float(math.floor(value))
    error = abs(value - best)
    if not error:
        return value
    unit = 10.0 ** (math.floor(math.log10(error)) - 1)
    rounded = math.ceil(error / unit - 1e-9) * unit
    return float(f"{best - rounded if best else rounded:.12g}")


def merge_suggestions(noises: Sequence[Noise]) -> Mapping[tuple[Location, str, str, str], float]:
    """Return one suggestion for each number of a spec: of several measurements under one limit, the most generous."""
    merged: dict[tuple[Location, str, str, str], float] = {}
    for noise in noises:
        limit, value = noise.limit, noise.suggested
        if value is None:
            continue
        key = (limit.location, limit.pattern, limit.rule, limit.parameter)
        choose = min if limit.best else max
        merged[key] = choose(merged.get(key, value), value)
    return merged
