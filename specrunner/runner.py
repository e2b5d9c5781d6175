"""A run: plan in, events out. Captures are judged as soon as all that a case needs are there."""

from __future__ import annotations

import queue
import shutil
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from specrunner.arrangement import find_executor, find_timeouts, let_threads_sleep, order_sessions
from specrunner.cache.keeping import CacheChoice, RunCache
from specrunner.cache.watch import watch_sources
from specrunner.diagnoser import Diagnoser
from specrunner.environments.interpreters import Environment
from specrunner.errors import SKIPPING, EngineError, ExitCode, FollowedMissing
from specrunner.events import CaseFinished, Event, RunFinished, RunStarted, SessionReady
from specrunner.golden.keeper import Keeper
from specrunner.interrupts import Interrupts
from specrunner.judging import compare_repeats, find_missing_evidence, judge_repeats, settle_exit, settle_verdict
from specrunner.machine import describe_machine, share_cores
from specrunner.plan.model import Plan, PlannedCase, PlannedSession, split_role
from specrunner.reporters.base import Reporter
from specrunner.reporters.record import NOT_RUN
from specrunner.requests import Evidence
from specrunner.results import CaseResult, Failure, Verdict, select_telling
from specrunner.sessions.answers import AnswerShelf, answers_folder
from specrunner.sessions.captures import StoredCapture, locate_capture
from specrunner.sessions.executor import Answer, Deliver, Executor
from specrunner.sessions.retries import Retries
from specrunner.sessions.rooms import hold_run_folder
from specrunner.sessions.timings import Timings, timings_file

STOPPING = (Verdict.FAILED, Verdict.ERROR, Verdict.XPASSED)
"""Verdicts that make a run fail, and that `--max-fail` counts."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a run behaves.

    Attributes:
        jobs: sessions at once.
        retries: how often a request that ends in an error is asked again.
        strict: a skip is an error, and an inconclusive check fails.
        max_fail: stop after this many cases with a verdict in `STOPPING`; None is never.
        update_goldens: put goldens that are missing or differ up for review.
        command: the command line, for reports.
        diagnose: whether failing cases are looked into: the candidate, where its engine allows it, runs once more with
            each layer fed by the reference.
        executor: what runs the sessions: `local`, or `ray` on the cluster that was joined.
        keep_answers: whether a benchmark that is interrupted keeps its answers, and one that goes on takes them.
        share_imports: whether sessions on this machine share one import of their engine; on a cluster, none does.
        cache: where captures and verdicts are kept; None asks everything anew, and keeps nothing.
    """

    jobs: int = 1
    strict: bool = False
    retries: int = 0
    max_fail: int | None = None
    update_goldens: bool = False
    command: tuple[str, ...] = ()
    diagnose: bool = True
    keep_answers: bool = True
    executor: str = "local"
    share_imports: bool = True
    cache: CacheChoice | None = None


@dataclass(frozen=True, slots=True)
class _Delivery:
    """An answer on its way from a pool thread to the run's own."""

    evidence: Evidence
    answer: Answer
    facts: Mapping[str, Any]
    seconds: float


@dataclass(slots=True)
class _Waiting:
    """A case whose captures are not all there yet."""

    planned: PlannedCase
    answers: dict[str, _Delivery] = field(default_factory=dict)


class Run:
    """One run over a plan.

    Args:
        plan: what to run.
        environments: by session key, the interpreter to use.
        reporters: read every event, in the run's own thread.
        options: how to behave.
    """

    def __init__(
        self,
        plan: Plan,
        environments: Mapping[str, Environment],
        reporters: Sequence[Reporter],
        options: RunOptions,
    ) -> None:
        self._plan = plan
        self._environments = environments
        self._reporters = reporters
        self._options = options
        self._messages: queue.SimpleQueue[Event | _Delivery] = queue.SimpleQueue()
        self._verdicts: Counter[Verdict] = Counter()
        self._sessions: dict[str, dict[str, Any]] = {}
        self._waiting: dict[int, _Waiting] = {}
        self._finished: set[str] = set()
        self._broken = False
        self._users: defaultdict[Evidence, list[tuple[int, str]]] = defaultdict(list)
        self._needed: Counter[Evidence] = Counter()
        self._charged: set[Evidence] = set()
        self._timeouts = find_timeouts(plan)
        self._interrupts = Interrupts(self._obey_interrupts)
        self._executor: Executor | None = None
        self.goldens = Keeper(options.update_goldens)
        self.answers = AnswerShelf(answers_folder() if options.keep_answers else None, watch_sources)
        self.cache: RunCache | None = None
        self._timings = Timings(timings_file())
        self._retries = Retries(options.retries)

    def execute(self) -> ExitCode:
        """Run everything and return the exit status.

        Raises:
            ConfigurationError: there is no place for the run's directory.
        """
        let_threads_sleep()
        with self._interrupts.handled():
            return self._execute()

    def _execute(self) -> ExitCode:
        started = time.monotonic()
        self._publish(RunStarted(self._plan, self._options.command, time.time(), describe_machine()))
        with hold_run_folder() as directory:
            diagnoser = self._run_sessions(directory)
        for result in diagnoser.take_open() if diagnoser else ():
            self._finish_case(result)
        if self.cache is not None:
            self.cache.close()
        if not self._interrupts.count and not self._waiting:
            self.answers.clear()
        self._close_unfinished()
        exit_code = self._exit_code()
        seconds = time.monotonic() - started
        self._publish(RunFinished(seconds, self._interrupts.count > 0, int(exit_code), self._sessions))
        return exit_code

    def _run_sessions(self, directory: Path) -> Diagnoser | None:
        """Have everything answered and judged; an interrupt before the first engine starts gives up the preparation."""
        diagnoser: Diagnoser | None = None
        futures: list[Future[None]] = []
        pool: Executor | None = None
        try:
            try:
                with self._interrupts.preparation():
                    pool = self._executor = self._make_executor(directory)
                    self._admit_cases()
                    rest = Plan((), ()) if self._has_enough() else self._find_rest()
                    diagnoser = Diagnoser(rest, pool, self._timeouts) if self._options.diagnose else None
                    for planned in order_sessions(rest, self._timings):
                        stays_open = bool(diagnoser and diagnoser.may_ask(planned.session.key))
                        futures.append(pool.start(planned, stays_open=stays_open))
            except KeyboardInterrupt:
                self._interrupts.at_once = True
                self._obey_interrupts()
            while not all(future.done() for future in futures) or not self._messages.empty():
                assert pool is not None
                self._handle_next(pool, diagnoser, directory)
        except BaseException:
            if pool is not None:
                pool.kill()
            raise
        finally:
            if pool is not None:
                pool.shutdown()
        return diagnoser

    def _make_executor(self, directory: Path) -> Executor:
        """Return what answers requests: the pool, behind the cache where there is one."""

        def make(deliver: Deliver) -> Executor:
            return find_executor(self._options.executor)(
                directory,
                jobs=self._options.jobs,
                environments=self._environments,
                timeouts=self._timeouts,
                publish=self._messages.put,
                deliver=deliver,
                shelf=self.answers,
                timings=self._timings,
                retries=self._retries,
                share_imports=self._options.share_imports,
            )

        def deliver(session: str, request: str, answer: Answer, facts: Mapping[str, Any], seconds: float) -> None:
            self._messages.put(_Delivery(Evidence(session, request), answer, facts, seconds))

        options = self._options
        if options.cache is None:
            return make(deliver)
        threads = share_cores(options.jobs)
        self.cache = RunCache(options.cache, self._plan, self._environments, threads, strict=options.strict)
        return self.cache.put_before(make, directory, self._messages.put, deliver)

    def _obey_interrupts(self) -> None:
        if self._executor is not None:
            self._executor.stop()
            if self._interrupts.at_once:
                self._executor.kill()

    def _publish(self, event: Event) -> None:
        for reporter in self._reporters:
            reporter.handle(event)

    def _admit_cases(self) -> None:
        """Note which cases wait for which captures; finish those that will not run, or need not."""
        for index, planned in enumerate(self._plan.cases):
            if planned.skip is not None:
                skips = planned.skip.kind in SKIPPING and not self._options.strict
                verdict = Verdict.SKIPPED if skips else Verdict.ERROR
                self._finish_case(CaseResult(planned.case, verdict, failure=planned.skip))
                continue
            kept = self.cache.find_verdict(planned) if self.cache is not None else None
            if kept is not None:
                self._finish_case(kept)
                continue
            self._waiting[index] = _Waiting(planned)
            for role, evidence in planned.evidence.items():
                self._users[evidence].append((index, role))
                self._needed[evidence] += 1

    def _has_enough(self) -> bool:
        """Tell whether as many cases as `--max-fail` allows have made the run fail."""
        limit = self._options.max_fail
        return limit is not None and sum(self._verdicts[verdict] for verdict in STOPPING) >= limit

    def _find_rest(self) -> Plan:
        """Return the part of the plan that the waiting cases need."""
        cases = tuple(waiting.planned for waiting in self._waiting.values())
        sessions = []
        for planned in self._plan.sessions:
            key = planned.session.key
            requests = tuple(request for request in planned.requests if self._needed[Evidence(key, request.key)])
            if requests:
                sessions.append(PlannedSession(planned.session, requests))
        return Plan(cases, tuple(sessions))

    def _handle_next(self, pool: Executor, diagnoser: Diagnoser | None, directory: Path) -> None:
        try:
            message = self._messages.get(timeout=0.1)
        except queue.Empty:
            return
        if isinstance(message, _Delivery):
            self._accept(message, diagnoser, directory)
            if self._has_enough():
                pool.stop()
            return
        if isinstance(message, SessionReady):
            self._sessions[message.session] = {
                "label": message.label,
                "load_seconds": round(message.seconds, 3),
                "facts": dict(message.facts),
                "requests": sum(
                    len(planned.requests) for planned in self._plan.sessions if planned.session.key == message.session
                ),
            }
        self._publish(message)

    def _accept(self, delivery: _Delivery, diagnoser: Diagnoser | None, directory: Path) -> None:
        """Hand a capture to the cases that wait for it; judge those that now have everything."""
        diagnosed = diagnoser.accept(delivery.evidence, delivery.answer) if diagnoser else None
        if diagnosed is not None:
            self._close_case(*diagnosed, diagnoser, directory)
        for index, role in self._users.pop(delivery.evidence, ()):
            waiting = self._waiting[index]
            waiting.answers[role] = delivery
            if len(waiting.answers) == len(waiting.planned.evidence):
                del self._waiting[index]
                result = self._judge(waiting)
                reference = waiting.answers.get("reference")
                if diagnoser is None or not diagnoser.start(
                    waiting.planned, result, reference.answer if reference else None
                ):
                    self._close_case(waiting.planned, result, diagnoser, directory)

    def _close_case(
        self, planned: PlannedCase, result: CaseResult, diagnoser: Diagnoser | None, directory: Path
    ) -> None:
        """Publish a case's result and let go of its captures."""
        self._finish_case(replace(result, kept=self.cache.mark(planned, result)) if self.cache is not None else result)
        self._release(planned, directory)
        if diagnoser is not None:
            diagnoser.close(planned)

    def _release(self, planned: PlannedCase, directory: Path) -> None:
        """Delete captures that no waiting case needs any more."""
        for evidence in planned.evidence.values():
            self._needed[evidence] -= 1
            if not self._needed[evidence]:
                shutil.rmtree(locate_capture(directory, evidence.session, evidence.request), ignore_errors=True)

    def _judge(self, waiting: _Waiting) -> CaseResult:
        """Settle a case's verdict; a bug of ours costs this case its evidence, and no other case its verdict."""
        try:
            return self._compare(waiting)
        except Exception as error:  # noqa: BLE001 - whatever it is
            self._broken = True
            message = f"the case could not be judged: {type(error).__name__}: {error}".partition("\n")[0]
            advice = "this is a bug of specrunner's own; please report it with the lines below"
            failure = Failure("bug", message, advice, traceback.format_exc())
            return CaseResult(waiting.planned.case, Verdict.ERROR, failure=failure)

    def _compare(self, waiting: _Waiting) -> CaseResult:
        """Compare a case's captures and settle its verdict."""
        case = waiting.planned.case
        started = time.monotonic()
        facts = {role: dict(delivery.facts) for role, delivery in waiting.answers.items()}
        failure: Failure | None = None
        captures: dict[str, StoredCapture] = {}
        seconds = 0.0
        attempts: list[Failure] = []
        for role, delivery in sorted(waiting.answers.items(), key=_rank_answer):
            attempts += (Failure.of(error, role) for error in self._retries.failures(delivery.evidence))
            if delivery.evidence not in self._charged:
                self._charged.add(delivery.evidence)
                seconds += delivery.seconds
            if isinstance(delivery.answer, EngineError):
                failure = failure or Failure.of(delivery.answer, role)
                self.answers.unfinished |= case.benchmark is not None
            else:
                captures[role] = delivery.answer
                facts[role] |= {"request": dict(delivery.answer.facts)}
        checks = judge_repeats(waiting.planned, captures, facts, strict=self._options.strict)
        if failure is None:
            checks, failure = self.goldens.judge(case, captures, facts, checks)
            failure = failure or find_missing_evidence(checks)
        verdict = settle_verdict(waiting.planned, checks, failure)
        checks = (*checks, *compare_repeats(waiting.planned, captures, checks))
        diagnosis = None
        if verdict in (Verdict.FAILED, Verdict.XFAILED):
            from specrunner.checks.localisation import diagnose

            diagnosis = diagnose(select_telling(checks))
        seconds += time.monotonic() - started
        ours = next((facts[role] for role in ("candidate", "forced", "probe") if role in facts), {})
        theirs = facts.get("reference", {})
        return CaseResult(case, verdict, checks, failure, seconds, ours, theirs, diagnosis, attempts=tuple(attempts))

    def _finish_case(self, result: CaseResult) -> None:
        self._verdicts[result.verdict] += 1
        self._finished.add(result.case.node_id)
        self._publish(CaseFinished(result))

    def summarize_cache(self) -> Sequence[str]:
        """Return what the user should know about the cache."""
        return self.cache.summarize() if self.cache is not None else ()

    def _close_unfinished(self) -> None:
        """Give every case that was not reached its verdict: no evidence."""
        why = "interrupted" if self._interrupts.count else "stopped after the failures that --max-fail allows"
        failure = Failure(NOT_RUN, f"not run: {why}")
        for planned in self._plan.cases:
            if planned.case.node_id not in self._finished:
                self._finish_case(CaseResult(planned.case, Verdict.ERROR, failure=failure))
        self._waiting.clear()

    def _exit_code(self) -> ExitCode:
        if self._interrupts.count:
            return ExitCode.INTERRUPTED
        if self._broken:
            return ExitCode.BUG
        return settle_exit(self._verdicts)


def _rank(role: str) -> tuple[int, int]:
    """Order roles by whose failure is told: the candidate's own before what others cost it."""
    order = ("candidate", "reference", "peer", "probe", "forced")
    plain, repeat = split_role(role)
    return order.index(plain), repeat


def _rank_answer(item: tuple[str, _Delivery]) -> tuple[bool, tuple[int, int]]:
    """Order answers by role, those that were not tried because of another behind it."""
    return isinstance(item[1].answer, FollowedMissing), _rank(item[0])
