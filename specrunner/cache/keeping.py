"""What one run finds among the kept captures and verdicts, and leaves there."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from specrunner.cache.digests import Digests
from specrunner.cache.executor import CachingExecutor, look_ahead
from specrunner.cache.stamps import Stamper
from specrunner.cache.store import Store, kept_folder
from specrunner.cache.verdicts import Verdicts, find_inputs
from specrunner.config import Settings
from specrunner.environments.interpreters import Environment
from specrunner.events import Event
from specrunner.plan.model import Foresight, Plan, PlannedCase, PlannedSession
from specrunner.requests import Evidence
from specrunner.results import CaseResult
from specrunner.sessions.executor import Deliver, Executor
from specrunner.words import plural

DIGESTS = "digests"
"""Folder, in a store's, of the digests of files."""

RECENT = 3600.0
"""Seconds for which an entry is safe from the size bound: another run may be about to use it."""


@dataclass(frozen=True, slots=True)
class CacheChoice:
    """Where a run keeps its captures and verdicts.

    Attributes:
        folder: of the store.
        most_bytes: that may stay in it when a run is over.
    """

    folder: Path
    most_bytes: float = float("inf")


def choose_cache(settings: Settings, *, fresh: bool = False) -> CacheChoice | None:
    """Return where a run under settings keeps captures and verdicts; None where none may serve.

    Args:
        settings: of the run. What another machine of a cluster computes with cannot be told from here.
        fresh: whether the run is to make its captures anew, as a golden's must be.
    """
    if settings.no_cache or fresh or settings.executor != "local":
        return None
    return CacheChoice(kept_folder(), settings.cache_limit * 1e9)


class RunCache:
    """The store as one run uses it.

    Args:
        choice: which store.
        plan: what the run needs.
        environments: by session key, the interpreter that runs it.
        threads: that a session computes with unless its options say otherwise.
        strict: whether the run is strict, which is part of what a verdict means.
    """

    def __init__(
        self, choice: CacheChoice, plan: Plan, environments: Mapping[str, Environment], threads: int, *, strict: bool
    ) -> None:
        digests = Digests(choice.folder / DIGESTS)
        self.store = Store(choice.folder)
        self.stamper = Stamper(plan, environments, threads, digests)
        self._most_bytes = choice.most_bytes
        self._verdicts = Verdicts(self.store, self.stamper, digests, strict=strict)
        self._results: list[tuple[PlannedCase, CaseResult]] = []
        self._executor: CachingExecutor | None = None

    def put_before(
        self,
        make: Callable[[Deliver], Executor],
        directory: Path,
        publish: Callable[[Event], None],
        deliver: Deliver,
    ) -> CachingExecutor:
        """Return an executor that asks the one that `make` makes only what is not kept."""
        self._executor = CachingExecutor(self.store, self.stamper, directory, publish, deliver, make)
        return self._executor

    def foresee(self, plan: Plan) -> Foresight:
        """Say what of the plan is kept, and why the rest will run; no capture is read."""
        waiting = [planned for planned in plan.cases if planned.skip is None]
        unjudged = [planned for planned in waiting if self.find_verdict(planned) is None]
        needed = {evidence for planned in unjudged for evidence in planned.evidence.values()}
        sessions = {}
        for planned in plan.sessions:
            key = planned.session.key
            requests = tuple(request for request in planned.requests if Evidence(key, request.key) in needed)
            outlook = look_ahead(self.store, self.stamper, PlannedSession(planned.session, requests))
            sessions[key] = (len(requests), len(outlook.kept), outlook.why)
        return Foresight(len(waiting) - len(unjudged), sessions)

    def find_verdict(self, planned: PlannedCase) -> CaseResult | None:
        """Return the result that an earlier run came to on the same evidence, or None."""
        return self._verdicts.find(planned)

    def mark(self, planned: PlannedCase, result: CaseResult) -> str:
        """Note a result for later; return what of it was kept: `captures`, or "".

        Its verdict was asked for before, by `find_verdict`.
        """
        self._results.append((planned, result))
        known = self._executor.kept if self._executor is not None else set()
        return "captures" if known.issuperset(planned.evidence.values()) else ""

    def close(self) -> None:
        """After the executor's shutdown: keep the verdicts, and delete what was unused longest if it is too much."""
        executor = self._executor
        if executor is None:
            return
        changed = self._verdicts.list_changed()
        for planned, result in self._results:
            trusted = all(map(executor.is_trusted, planned.evidence.values()))
            if trusted and changed.isdisjoint(find_inputs(planned.case)):
                self._verdicts.keep(planned, result)
        if executor.stored or self._results:
            self.store.prune(most_bytes=self._most_bytes, spare_since=time.time() - RECENT)

    def summarize(self) -> Sequence[str]:
        """Return a line on each thing about the store that its user should know."""
        lines = [self.store.problem] if self.store.problem else []
        if self.store.damaged:
            some = plural(self.store.damaged, "kept entry was", "kept entries were")
            lines.append(f"{some} damaged or of another version, and made again")
        return lines
