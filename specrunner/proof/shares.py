"""How much of its tolerance a case used: the largest share of a limit over its checks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from specrunner.reporters.margins import find_margins
from specrunner.results import CheckResult


@dataclass(frozen=True, slots=True)
class Share:
    """What one check measured, as a share of its limit.

    Attributes:
        value: 1 is the limit itself; infinite where the rule allows no difference at all.
        subject: the tensor, or `tokens`.
        rule: the rule's name.
    """

    value: float
    subject: str
    rule: str


def share_of(check: CheckResult) -> Share | None:
    """Return the largest share of a check's limits; None for one that passes and measures no distance."""
    values = [margin.share for margin in find_margins(check) if margin.share is not None]
    if not check.passed:
        values = [value for value in values if value > 1] or [math.inf]
    return Share(max(values), check.subject, check.rule) if values else None


def largest_share(checks: Iterable[CheckResult]) -> Share | None:
    """Return the largest share over the checks that gate; a finite one before an infinite one.

    A rule that allows nothing (`exact`) says that something differs, not how much. Where another rule says how much it
    is beyond the limit, that is the better answer.
    """
    shares = [share for check in checks if check.gates and (share := share_of(check)) is not None]
    measured = [share for share in shares if math.isfinite(share.value)]
    worst = max(measured, key=lambda share: share.value, default=None)
    if worst is not None and worst.value > 1:
        return worst
    return next((share for share in shares if math.isinf(share.value)), worst)
