"""What a run settles about its plan before it starts: what serves the sessions, in which order, and for how long."""

from __future__ import annotations

import os
from collections.abc import Callable

from specrunner.plan.model import Plan, PlannedSession
from specrunner.sessions.executor import Executor
from specrunner.sessions.timings import Timings


def find_executor(name: str) -> Callable[..., Executor]:
    """Return what makes an executor; see `pool.Pool` for its arguments. Ray is imported only when it is named."""
    if name == "ray":
        from specrunner.sessions.ray.pool import RayPool

        return RayPool
    from specrunner.sessions.pool import Pool

    return Pool


def find_followed(plan: Plan) -> set[str]:
    """Return the sessions whose captures other requests follow."""
    follows = (request.follow for planned in plan.sessions for request in planned.requests)
    return {follow.session for follow in follows if follow is not None}


def order_sessions(plan: Plan, timings: Timings) -> list[PlannedSession]:
    """Return the sessions as they should start: those that others follow before the rest, and the longest first."""
    followed = find_followed(plan)
    return sorted(plan.sessions, key=lambda planned: (planned.session.key not in followed, -timings.estimate(planned)))


def find_timeouts(plan: Plan) -> dict[tuple[str, str], float]:
    """Return the seconds each (session, request) may take: the longest that any of its cases allows."""
    timeouts: dict[tuple[str, str], float] = {}
    for planned in plan.cases:
        for evidence in planned.evidence.values():
            key = (evidence.session, evidence.request)
            timeouts[key] = max(timeouts.get(key, 0.0), planned.case.timeout)
    return timeouts


def let_threads_sleep() -> None:
    """Have OpenMP's threads sleep while they wait, here as in the sessions, unless the caller says otherwise.

    The comparison shares the cores with the engines, and a thread that spins for its next piece of work takes them
    away. It holds for a torch that is imported afterwards.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
