"""Shards: a selection of cases divided over machines that know nothing of each other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from specrunner.errors import UsageError
from specrunner.requests import digest_of
from specrunner.spec.model import Case


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several parts.

    Attributes:
        number: which, from 1.
        count: of how many.
    """

    number: int
    count: int

    def select(self, cases: Sequence[Case]) -> list[Case]:
        """Return the part's cases, in their order.

        Each case is in exactly one of the `count` parts. Cases whose candidate is the same engine with the same model
        stay together, so that no model is loaded on two machines for them; which part a group is in depends on nothing
        but the group.
        """
        return [case for case in cases if int(name_group(case), 16) % self.count == self.number - 1]


def name_group(case: Case) -> str:
    """Return the digest of what the candidates of cases must share to share a session.

    Of the model only the name counts: where its directory lies, and the revision that a variable of the environment
    gives, may differ from machine to machine.
    """
    return digest_of([asdict(case.candidate), case.model.label])


def parse_shard(text: str) -> Shard:
    """Read `2/4`.

    Raises:
        UsageError: it is not of this form, or there is no such part.
    """
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--shard {text!r} is not a part of a whole", help="write e.g. --shard 2/4")
    return Shard(int(match[1]), int(match[2]))
