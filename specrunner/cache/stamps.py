"""Everything that a session's answers come from, in named parts: two runs with equal parts get equal answers."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import specrunner
from specrunner.cache.digests import Digests
from specrunner.cache.machine import describe_gpus, describe_hardware
from specrunner.cache.sources import UNUSED, stamp_code, stamp_options, stamp_packages
from specrunner.catalogue.tasks import DATA_PACKAGE
from specrunner.config import find_name_maps
from specrunner.engines.registry import find_engine
from specrunner.engines.stamp import COMMON, find_places, select_variables
from specrunner.engines.trust import ADAPTER_CONFIG, read_base
from specrunner.environments.interpreters import Environment
from specrunner.errors import ModelUnsupported
from specrunner.plan.model import Plan
from specrunner.requests import Evidence, Request, Session, digest_of
from specrunner.sessions.sizes import find_checkpoint

PART_NAMES = {
    "model": "the model's files",
    "options": "files that options or an adapter name",
    "environment": "the environment's packages",
    "engine": "the engine's code",
    "specrunner": "specrunner",
    "names": "the project's name maps",
    "machine": "the machine",
    "threads": "the number of threads",
    "variables": "the environment variables",
}
"""Parts of a stamp, in the order in which they are told, with their names for people."""

LIBRARIES = ("lm_eval", "datasets", "transformers", "tokenizers", "sentencepiece", "tiktoken", "jinja2")
"""What builds the prompts and the scores of a benchmark under our own interpreter, and what renders and tokenises."""


@dataclass(frozen=True)
class Stamp:
    """What a session's answers come from.

    Attributes:
        identity: the session as people see it: engine, model, dtype, device and options.
        parts: by the names in `PART_NAMES`, a digest or a short text; of `options`, a digest for each file.
        unknown: what cannot be told before the engine has loaded, so that nothing is kept; "" when all can.
    """

    identity: str
    parts: Mapping[str, str]
    unknown: str = ""

    @cached_property
    def key(self) -> str:
        """Digest of all of it."""
        return digest_of([self.identity, dict(self.parts)])

    def find_changes(self, earlier: Mapping[str, str]) -> list[str]:
        """Name the parts that differ from those of an earlier run."""
        return [name for part, name in PART_NAMES.items() if earlier.get(part) != self.parts.get(part)]

    def confirms(self, earlier: Stamp) -> bool:
        """Tell whether what an earlier stamp of the session states still holds.

        What was not there then may have come since, be it the model or a file that its options name, and nothing else.
        """
        if self.unknown or not earlier.unknown:
            return not self.unknown and self.key == earlier.key
        fixed = PART_NAMES.keys() - {"model", "options"}
        return (
            all(self.parts.get(part) == earlier.parts.get(part) for part in fixed)
            and earlier.parts.get("model", "") in ("", self.parts.get("model", ""))
            and set(earlier.parts.get("options", "").split()) <= set(self.parts.get("options", "").split())
        )


class Stamper:
    """Stamps the sessions of one plan, and gives each request its key.

    Args:
        plan: whose sessions and requests they are.
        environments: by session key, the interpreter that runs it.
        threads: that a session computes with unless its options say otherwise.
        digests: of files.
    """

    def __init__(self, plan: Plan, environments: Mapping[str, Environment], threads: int, digests: Digests) -> None:
        self._sessions = {planned.session.key: planned.session for planned in plan.sessions}
        self._requests = {
            Evidence(planned.session.key, request.key): request
            for planned in plan.sessions
            for request in planned.requests
        }
        self._environments = environments
        self._threads = threads
        self._digests = digests
        self._stamps: dict[str, Stamp] = {}
        self._keys: dict[Evidence, str | None] = {}

    def stamp(self, session: str) -> Stamp:
        """Return the stamp of a session."""
        if session not in self._stamps:
            self._stamps[session] = stamp_session(
                self._sessions[session], self._environments[session], self._threads, self._digests
            )
        return self._stamps[session]

    def refresh(self, session: str) -> bool:
        """Stamp a session once more, by its files as they are now.

        Returns:
            Whether its answers come from what its stamp says. A session that could not be stamped before its engine
            had loaded gets its stamp, and its requests their keys, here.
        """
        before = self.stamp(session)
        self._digests.forget()
        now = stamp_session(self._sessions[session], self._environments[session], self._threads, self._digests)
        confirmed = now.confirms(before)
        if confirmed and before.unknown:
            self._stamps[session] = now
            self._keys = {evidence: key for evidence, key in self._keys.items() if key is not None}
        return confirmed

    def add(self, evidence: Evidence, request: Request) -> None:
        """Take in a request that was not planned."""
        self._requests[evidence] = request

    def find_leader(self, evidence: Evidence) -> Evidence | None:
        """Return the evidence that a request follows, if it follows any."""
        return self._requests[evidence].follow

    def key_of(self, evidence: Evidence) -> str | None:
        """Return the key of a capture, or None when it cannot be kept."""
        if evidence not in self._keys:
            self._keys[evidence] = self._make_key(evidence)
        return self._keys[evidence]

    def _make_key(self, evidence: Evidence) -> str | None:
        request, stamp = self._requests[evidence], self.stamp(evidence.session)
        parts: list[Any] = [stamp.key, (request if request.follow is None else replace(request, follow=None)).key]
        if stamp.unknown:
            return None
        if request.follow is not None:
            followed = self.key_of(request.follow)
            if followed is None:
                return None
            parts.append(followed)
        if request.evaluation is not None:
            asked = request.evaluation
            if asked.hub or (asked.file is None and find_spec(DATA_PACKAGE) is None):
                return None
            parts.append(stamp_evaluation([asked.file, asked.shots_file], self._digests))
        return digest_of(parts)


def stamp_session(session: Session, environment: Environment, threads: int, digests: Digests) -> Stamp:
    """Stamp a session; no engine is started, and nothing of it is imported.

    Args:
        session: the session.
        environment: the interpreter that will run it.
        threads: that it computes with unless its options say otherwise.
        digests: of files.
    """
    engine = find_engine(session.engine)
    folder = find_checkpoint(session.model)
    named, complete = stamp_options([session.options, *find_bases(folder)], digests)
    variables = {**select_variables(os.environ), **select_variables(environment.env)}
    names = {*COMMON, *engine.capabilities().packages} - {"specrunner"}
    sources = stamp_code(sorted(names), environment, digests)
    plugin = engine.__module__.partition(".")[0]
    if plugin != "specrunner":
        sources += [digests.of(place, UNUSED) for place in find_places(plugin)]
    parts = {
        "model": "" if folder is None else digests.of(folder),
        "environment": digest_of(
            [session.environment, *stamp_packages(environment, digests), describe_python(environment)]
        ),
        "engine": digest_of(sources),
        "specrunner": digests.of(Path(specrunner.__file__).parent),
        "machine": digest_of(describe_hardware(session.device)),
        "threads": str(session.options.get("num_threads", threads)),
        "variables": digest_of(sorted(variables.items())),
    }
    name_maps = find_name_maps({**os.environ, **environment.env}, Path.cwd())
    if name_maps is not None:
        parts["names"] = digests.of(name_maps / session.engine)
    if named:
        parts["options"] = " ".join(named)
    identity = digest_of([session.engine, asdict(session.model), session.dtype, session.device, dict(session.options)])
    reasons = (
        (folder is None, f"{PART_NAMES['model']} are not on this machine yet"),
        (not complete, f"{PART_NAMES['options']} are not on this machine yet"),
        (session.device == "cuda" and not describe_gpus(), "the kind of GPU cannot be told"),
    )
    return Stamp(identity, parts, next((why for holds, why in reasons if holds), ""))


def find_bases(folder: Path | None) -> list[str]:
    """Return the model that a checkpoint is put on, if it is an adapter."""
    if folder is not None:
        with suppress(ModelUnsupported):  # the worker says why
            return [base] if (base := read_base(folder / ADAPTER_CONFIG)) else []
    return []


def stamp_evaluation(files: Iterable[str | None], digests: Digests) -> str:
    """Digest what a benchmark's questions, prompts and scores come from: data and the libraries that read them."""
    places = [Path(file) for file in files if file is not None]
    places += [place for name in (*LIBRARIES, DATA_PACKAGE) for place in find_places(name)]
    return digest_of([digests.of(place, UNUSED) for place in places])


def describe_python(environment: Environment) -> str:
    """Return the version of an environment's Python without starting it."""
    if environment.source == "own":
        return platform.python_version()
    try:
        lines = (environment.python.parent.parent / "pyvenv.cfg").read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith("version"))
    except (OSError, ValueError, StopIteration):
        return str(environment.python.resolve())
