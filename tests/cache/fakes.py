"""A store, a stamper and an executor without engines: what is kept can be told apart from what is asked."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy
import pytest

from specrunner.cache import stamps
from specrunner.cache.digests import Digests
from specrunner.cache.executor import CachingExecutor
from specrunner.cache.stamps import Stamp, Stamper
from specrunner.cache.store import Store
from specrunner.engines.base import Capture
from specrunner.environments.interpreters import Environment
from specrunner.events import AnswersKept
from specrunner.plan.model import Plan, PlannedCase, PlannedSession
from specrunner.requests import Evidence, Request, Session
from specrunner.sessions.captures import StoredCapture, locate_capture, read_capture, write_capture
from specrunner.sessions.executor import Answer, Deliver
from specrunner.spec.model import Model, Prompt

SESSION = Session("hf", "hf-d1", Model(path="m"), "float32", "cpu")
OTHER = replace(SESSION, dtype="float64")
FACTS = {"device": "cpu", "model_digest": "abc"}


def ask(text: str, **changes: Any) -> Request:
    return replace(Request(Prompt(text=text), ("logits",)), **changes)


def evidence(request: Request, session: Session = SESSION) -> Evidence:
    return Evidence(session.key, request.key)


@dataclass
class Engine:
    """The executor behind: it answers at once, and notes what it was asked."""

    deliver: Deliver
    directory: Path
    asked: list[str] = field(default_factory=list)
    calls: list[Any] = field(default_factory=list)
    fails: dict[str, Answer] = field(default_factory=dict)
    takes_more: bool = True

    def start(self, planned: PlannedSession, *, stays_open: bool = False) -> Future[None]:
        self.calls.append(("start", len(planned.requests), stays_open))
        for request in planned.requests:
            self.answer(planned.session.key, request)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def answer(self, session: str, request: Request) -> None:
        self.asked.append(str(request.prompt.text))
        place = locate_capture(self.directory, session, request.key)
        found: Answer
        if request.key in self.fails:
            found = self.fails[request.key]
        else:
            values = numpy.full((1, 2), len(str(request.prompt.text)), dtype=numpy.float32)
            write_capture(place, Capture([1, 2], {"logits": values}, None))
            found = read_capture(place)
        self.deliver(session, request.key, found, FACTS, 1.5)

    def add(self, session: str, request: Request) -> bool:
        self.calls.append(("add", session, request))
        return self.takes_more

    def close(self, session: str) -> None:
        self.calls.append(("close", session))

    def supply(self, evidence: Evidence) -> None:
        self.calls.append(("supply", evidence))

    def stop(self) -> None:
        self.calls.append("stop")

    def kill(self) -> None:
        self.calls.append("kill")

    def shutdown(self) -> None:
        self.calls.append("shutdown")


@dataclass
class Run:
    """One run over a kept store."""

    stamper: Stamper
    executor: CachingExecutor
    engine: Engine
    events: list[AnswersKept]
    delivered: dict[str, tuple[Answer, Any, float]]

    def start(self, *requests: Request, session: Session = SESSION, stays_open: bool = False) -> AnswersKept:
        self.executor.start(PlannedSession(session, requests), stays_open=stays_open).result(1)
        return self.events[-1]

    def value(self, request: Request) -> bytes:
        answer = self.delivered[request.key][0]
        assert isinstance(answer, StoredCapture) and answer.tensors_path is not None
        return answer.tensors_path.read_bytes()


class World:
    """A folder, and what sessions are stamped with; both can change between runs and during one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(folder / "kept")
        self.parts: dict[str, str] = {"engine": "1", "machine": "a"}
        self.own: dict[str, dict[str, str]] = {}  # by session, parts that differ from those of the others
        self.unknown = ""
        self.unreadable = False
        self._runs = 0

    def stamp(self, session: Session, *_: Any) -> Stamp:
        if self.unreadable:
            raise OSError(5, "Input/output error")
        return Stamp(session.key, {**self.parts, **self.own.get(session.key, {})}, self.unknown)

    def plan(self, *requests: Request, cases: tuple[PlannedCase, ...] = ()) -> Plan:
        return Plan(cases, (PlannedSession(SESSION, requests), PlannedSession(OTHER, requests)))

    def environments(self) -> dict[str, Environment]:
        return dict.fromkeys((SESSION.key, OTHER.key), Environment("hf", Path("python")))

    def stamper(self, *requests: Request) -> Stamper:
        return Stamper(self.plan(*requests), self.environments(), 1, Digests(None))

    def run(self, *requests: Request) -> Run:
        self._runs += 1
        directory = self.folder / f"run-{self._runs}"
        stamper, events, delivered = self.stamper(*requests), [], {}
        engines: list[Engine] = []

        def deliver(session: str, request: str, answer: Answer, facts: Any, seconds: float) -> None:
            delivered[request] = answer, facts, seconds

        def make(accept: Deliver) -> Engine:
            engines.append(Engine(accept, directory))
            return engines[0]

        executor = CachingExecutor(self.store, stamper, directory, events.append, deliver, make)  # type: ignore[arg-type]
        return Run(stamper, executor, engines[0], events, delivered)


def make_world(folder: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(folder)
    monkeypatch.setattr(stamps, "stamp_session", world.stamp)
    return world
