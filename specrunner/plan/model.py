"""The plan: which cases are judged by which captures, and what has to run for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from specrunner.requests import Evidence, Request, Session
from specrunner.results import Failure
from specrunner.spec.model import Case

REPEAT = "repeat-"
"""Roles of a case's repeated captures: `repeat-1` and so on."""


@dataclass(frozen=True, slots=True)
class PlannedCase:
    """A case with the captures it needs by role, or why it will not run.

    Roles: `candidate`, `reference`, `peer`; and of the candidate's session, when the case asks for it, `forced` (led by
    the reference) and `probe` (attention).
    """

    case: Case
    evidence: Mapping[str, Evidence]
    skip: Failure | None = None


@dataclass(frozen=True, slots=True)
class PlannedSession:
    """A session with its distinct requests, in the order in which the cases ask for them."""

    session: Session
    requests: tuple[Request, ...]


@dataclass(frozen=True, slots=True)
class Foresight:
    """What earlier runs have left of a plan, and why the rest will run.

    Attributes:
        verdicts: cases whose verdict is kept.
        sessions: by session key, (requests needed, those of them that are kept, why the others run).
    """

    verdicts: int
    sessions: Mapping[str, tuple[int, int, str]]


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a run will do."""

    cases: tuple[PlannedCase, ...]
    sessions: tuple[PlannedSession, ...]
