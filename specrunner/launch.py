"""How a run follows from its settings: what stands above its cases, the cluster it joins, and its options."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from specrunner.config import Settings
from specrunner.spec.model import Case

if TYPE_CHECKING:
    from specrunner.runner import RunOptions


def apply_timeout(cases: Iterable[Case], settings: Settings) -> list[Case]:
    """Return cases with the timeout of the settings, where that stands above what a case states."""
    if not settings.overrides_cases("timeout"):
        return list(cases)
    return [replace(case, timeout=settings.timeout) for case in cases]


def apply_repeat(cases: Iterable[Case], settings: Settings) -> list[Case]:
    """Return cases with the repeats of the settings, where these stand above a case, or it states none.

    A benchmark is asked once, whatever settings say.
    """
    above = settings.overrides_cases("repeat")

    def repeat(case: Case) -> Case:
        stated = case.benchmark is not None or ("repeat" in case.marks and not above)
        return case if stated or case.repeat == settings.repeat else replace(case, repeat=settings.repeat)

    return [repeat(case) for case in cases]


def join_cluster(settings: Settings) -> None:
    """Join the cluster that serves the sessions, where settings name one.

    Raises:
        ConfigurationError: it cannot be joined.
    """
    if settings.executor == "ray":
        from specrunner.sessions.ray.cluster import connect

        connect(settings.ray_address)


def make_options(settings: Settings, command: tuple[str, ...] = (), *, update_goldens: bool = False) -> RunOptions:
    """Return the options of a run under settings.

    Args:
        settings: what was stated.
        command: the command line, for reports.
        update_goldens: whether goldens that are missing or differ are put up for review; their captures are made anew.
    """
    from specrunner.cache.keeping import choose_cache
    from specrunner.runner import RunOptions

    return RunOptions(
        jobs=settings.jobs,
        strict=settings.strict,
        retries=settings.retries,
        max_fail=settings.max_fail,
        update_goldens=update_goldens,
        command=command,
        executor=settings.executor,
        keep_answers=not settings.no_cache,
        share_imports=not settings.no_fork,
        cache=choose_cache(settings, fresh=update_goldens),
    )
