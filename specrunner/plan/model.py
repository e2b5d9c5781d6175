"""The plan: which cases are judged by which captures, and what has to run for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from specrunner.requests import Evidence, Request, Session
from specrunner.results import Failure
from specrunner.spec.model import Case

OWN_ROLES = ("candidate", "forced", "probe")
"""Roles of what the candidate is asked: each repeat of a case asks it anew, and all share what it is held against."""

T = TypeVar("T")


def name_repeat(role: str, repeat: int) -> str:
    """Return the role of a repeat's capture, repeats counted from 1: `candidate`, `candidate#2` and so on."""
    return role if repeat == 1 else f"{role}#{repeat}"


def split_role(role: str) -> tuple[str, int]:
    """Return a role without its repeat, and the repeat."""
    plain, _, repeat = role.partition("#")
    return plain, int(repeat or 1)


def select_repeat(by_role: Mapping[str, T], repeat: int) -> dict[str, T]:
    """Return what one repeat is judged by, under plain roles: its own, and what all repeats share."""
    found = {split_role(role): value for role, value in by_role.items()}
    return {role: value for (role, number), value in found.items() if number == (repeat if role in OWN_ROLES else 1)}


@dataclass(frozen=True, slots=True)
class PlannedCase:
    """A case with the captures it needs by role, or why it will not run.

    Roles: `candidate`, `reference`, `peer`; and of the candidate's session, when the case asks for it, `forced` (led by
    the reference) and `probe` (attention). Those of the candidate (`OWN_ROLES`) come once a repeat: `candidate#2` is
    the second.

    Attributes:
        case: the case.
        evidence: by role, which session's answer to which request.
        skip: why it will not run, or None.
    """

    case: Case
    evidence: Mapping[str, Evidence]
    skip: Failure | None = None


@dataclass(frozen=True, slots=True)
class PlannedSession:
    """A session with its requests.

    Attributes:
        session: what to load.
        requests: each once, in the order in which the cases ask for them.
    """

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
    """Everything a run will do.

    Attributes:
        cases: in the order of the specs, each with its captures by role or the reason why it is skipped.
        sessions: with the requests that each serves; equal requests of several cases stand there once.
    """

    cases: tuple[PlannedCase, ...]
    sessions: tuple[PlannedSession, ...]
