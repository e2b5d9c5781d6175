"""Cases to sessions and requests: equal requests run once, one engine configuration is loaded once."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.machinery import PathFinder
from typing import Any

from specrunner.catalogue.recipes import find_recipe
from specrunner.catalogue.tasks import HUB_HELP, find_missing_packages, find_unreachable, tell_install
from specrunner.devices import has_cuda, memory_gb, resolve_device
from specrunner.engines.base import Capabilities
from specrunner.engines.registry import find_engine
from specrunner.environments.interpreters import Environment, find_environment
from specrunner.errors import CapabilityMissing, EngineError, EngineMissing, SelfComparison
from specrunner.models.recipes import find_built
from specrunner.plan.model import OWN_ROLES, Plan, PlannedCase, PlannedSession, name_repeat
from specrunner.requests import Evidence, Request, Session
from specrunner.results import Failure
from specrunner.spec.coverage import needs_passes
from specrunner.spec.model import Benchmark, Case, EngineChoice, Model
from specrunner.spec.revisions import find_variable

PASS_LOGITS = "passes.*.logits"
"""What tells how a block-diffusion decode came to its decisions, step by step."""

FindEnvironment = Callable[[str, Capabilities, str, str | None], Environment]


def look_up(engine: str, capabilities: Capabilities, device: str, name: str | None) -> Environment:
    """Return the environment that runs an engine here (see `find_environment`)."""
    return find_environment(engine, capabilities, device, name=name)


@dataclass(slots=True)
class Planner:
    """Builds a plan case by case.

    Attributes:
        find: looks up the environment of (engine, its capabilities, device, stated name or None); raises EngineMissing.
        environments: by session key, the environment found for it.
        golden_repeats: captures that the candidate of a case with a golden gives, to make one of; 0 makes none.
    """

    find: FindEnvironment = look_up
    environments: dict[str, Environment] = field(default_factory=dict)
    golden_repeats: int = 0
    _found: dict[tuple[str, str, str | None], Environment | EngineError] = field(default_factory=dict)
    _opened: dict[tuple[Any, ...], Session] = field(default_factory=dict)
    _sessions: dict[str, tuple[Session, dict[str, Request]]] = field(default_factory=dict)
    _cases: list[PlannedCase] = field(default_factory=list)

    def add(self, case: Case, fault: str | None = None, tensors: tuple[str, ...] | None = None) -> None:
        """Plan one case: the captures it needs, or why it will not run.

        Args:
            case: what to plan.
            fault: the planted bug that the candidate answers with (`specrunner.faults`); None is none.
            tensors: patterns to capture, the case's own among them, so that cases can share a request; None is just
                the case's own.
        """
        role = ""
        sessions: dict[str, Session] = {}
        try:
            check_requirements(case.requires)
            for name in _strings(case.requires.get("engines")):
                self._require(name)
            check_recipe(case.model)
            check_revision(case.model)
            check_benchmark(case.benchmark)
            requests = requests_of(case)
            for role, choice in (("candidate", case.candidate), ("reference", case.reference), ("peer", case.peer)):
                if choice is not None and (role == "candidate" or role in requests):
                    sessions[role] = self._open(choice, case.model)
            role = ""
            check_sides(case, sessions)
        except EngineError as error:
            self._cases.append(PlannedCase(case, {}, Failure.of(error, role)))
            return
        evidence: dict[str, Evidence] = {}
        own: dict[str, Request] = {}

        def ask(role: str, request: Request) -> None:
            session = sessions.get(role, sessions["candidate"])
            found = Evidence(session.key, request.key)
            self._sessions.setdefault(found.session, (session, {}))[1].setdefault(found.request, request)
            evidence[role] = found

        for role, request in requests.items():
            if role in OWN_ROLES and fault is not None:
                request = replace(request, fault=fault)
            if tensors is not None and role in ("candidate", "reference", "peer"):
                request = replace(request, tensors=merge_patterns(tensors, request.tensors))
            if request.lead is not None:
                request = replace(request, follow=evidence["reference"])
            if role in OWN_ROLES:
                own[role] = request
            ask(role, request)
        goldens = self.golden_repeats if case.golden is not None else 0
        for repeat in range(2, max(case.repeat, goldens) + 1):
            for role, request in own.items():
                if repeat <= case.repeat or role == "candidate":
                    ask(name_repeat(role, repeat), replace(request, repeat=repeat - 1))
        self._cases.append(PlannedCase(case, evidence))

    def _require(self, engine: str) -> None:
        """Raise if an engine that is neither candidate nor reference is not installed."""
        capabilities = find_engine(engine).capabilities()
        device = resolve_device("auto")
        self._environment(engine, capabilities, device if device in capabilities.dtypes else "cpu", None)

    def _open(self, choice: EngineChoice, model: Model) -> Session:
        """Return the session that serves `choice`; raise what keeps it from running."""
        # Cases share most options and models, which the planned ones keep alive, so that ids tell them apart.
        asked = choice.engine, choice.environment, choice.dtype, choice.device, id(choice.options), id(model)
        if asked not in self._opened:
            self._opened[asked] = self._make_session(choice, model)
        return self._opened[asked]

    def _make_session(self, choice: EngineChoice, model: Model) -> Session:
        engine = find_engine(choice.engine)
        capabilities = engine.capabilities()
        device = resolve_session_device(choice, capabilities)
        environment = self._environment(choice.engine, capabilities, device, choice.environment)
        session = Session(
            engine=choice.engine,
            environment=f"{environment.name}-{environment.digest}",
            model=model,
            dtype=choice.dtype,
            device=device,
            options=choice.options,
        )
        self.environments[session.key] = environment
        return session

    def _environment(self, engine: str, capabilities: Capabilities, device: str, name: str | None) -> Environment:
        key = engine, device, name
        if key not in self._found:
            try:
                self._found[key] = self.find(engine, capabilities, device, name)
            except EngineMissing as error:
                self._found[key] = error
        found = self._found[key]
        if isinstance(found, EngineError):
            raise found
        return found

    def build(self) -> Plan:
        """Return the plan for all cases added."""
        sessions = tuple(
            PlannedSession(session, tuple(requests.values())) for session, requests in self._sessions.values()
        )
        return Plan(tuple(self._cases), sessions)


def requests_of(case: Case) -> dict[str, Request]:
    """Return what a case asks for, by role; the reference comes before what follows it."""
    if case.benchmark is not None:
        request = Request(case.prompt, (), case.decode, evaluation=case.benchmark.evaluation)
        return {"candidate": request} | ({"reference": request} if case.reference is not None else {})
    routing = any(rule.name == "routing" for entry in case.tolerance for rule in entry.rules)
    near_tie = case.tokens is not None and case.tokens.name == "near_tie"
    plain = Request(case.prompt, case.tensors, case.decode)
    stepwise = case.trajectory is not None
    witness = replace(plain, tensors=merge_patterns(case.tensors, ("layers.*.router.logits",))) if routing else plain
    reference = witness
    diffusion = case.decode is not None and case.decode.algorithm == "low_confidence"
    if stepwise or (near_tie and diffusion):
        reference = replace(witness, tensors=merge_patterns(witness.tensors, (PASS_LOGITS,)))
    elif near_tie:
        reference = replace(witness, trace=True)
    requests: dict[str, Request] = {}
    if case.at is not None:
        return _requests_at(case, witness)
    if case.reference is not None and (case.tensors or case.tokens or stepwise):
        requests["reference"] = reference
        if case.peer is not None:
            requests["peer"] = replace(witness, decode=case.decode if needs_passes(case.tensors) else None)
        if near_tie:
            lead = "passes" if diffusion else "tokens"
            requests["forced"] = Request(case.prompt, (), case.decode, lead=lead, companions=case.batch)
            wanted = needs_passes(case.tensors) or case.golden is not None or stepwise
            plain = replace(plain, decode=case.decode if wanted else None)
    if stepwise:
        plain = replace(plain, tensors=merge_patterns(plain.tensors, (PASS_LOGITS,)))
    if (plain.tensors or plain.decode is not None) and (case.tensors or case.tokens or stepwise):
        requests["candidate"] = replace(plain, companions=case.batch) if case.batch else plain
    if case.attention is not None:
        requests["probe"] = Request(case.prompt, probe=True)
    return requests


def _requests_at(case: Case, witness: Request) -> dict[str, Request]:
    """Return what a case at a state in the midst of a decode asks for: whoever is not led decodes up to it."""
    own = replace(witness, at=case.at)
    led = Request(case.prompt, case.tensors, lead="state")
    if case.reference is None:
        return {"candidate": replace(own, tensors=case.tensors)}
    peer = {"peer": replace(led, tensors=witness.tensors)} if case.peer is not None else {}
    return {"reference": own, **peer, "candidate": led}


def merge_patterns(patterns: tuple[str, ...], more: tuple[str, ...]) -> tuple[str, ...]:
    """Return `patterns` with those of `more` that they lack."""
    return patterns + tuple(pattern for pattern in more if pattern not in patterns)


def resolve_session_device(choice: EngineChoice, capabilities: Capabilities) -> str:
    """Pick the device of a session: what the case states, else CUDA where both the machine and the engine have it.

    Raises:
        CapabilityMissing: the machine has no such device, or the engine does not compute in this dtype on it.
    """
    device = resolve_device(choice.device)
    if choice.device == "auto" and device not in capabilities.dtypes:
        device = "cpu"
    if device == "cuda" and not has_cuda():
        raise CapabilityMissing("no CUDA device on this machine", help="run on a machine with an NVIDIA GPU and driver")
    if choice.dtype not in capabilities.dtypes.get(device, ()):
        raise CapabilityMissing(f"{choice.engine} does not compute in {choice.dtype} on {device}")
    return device


def check_requirements(requires: Mapping[str, object]) -> None:
    """Compare a case's `requires` with this machine.

    Raises:
        CapabilityMissing: with the first requirement that is not met.
    """
    if requires.get("device") == "cuda" and not has_cuda():
        raise CapabilityMissing("requires a CUDA device", help="run on a machine with an NVIDIA GPU and driver")
    needed = requires.get("memory_gb")
    if isinstance(needed, int | float) and memory_gb() < needed:
        raise CapabilityMissing(f"requires {needed:g} GB of memory, this machine has {memory_gb():.0f} GB")
    for package in _strings(requires.get("packages")):
        if not has_package(package):
            raise CapabilityMissing(f"requires the package {package}", help=f"pip install {package}")


def check_sides(case: Case, sessions: Mapping[str, Session]) -> None:
    """Make sure that a case is not held against itself, nor its noise measured on itself.

    The loader compares what the spec says; here, `auto` and the device that it stands for are one.

    Args:
        case: the case.
        sessions: of its candidate, and of its reference and peer where it asks them anything.

    Raises:
        SelfComparison: two of them are one session.
    """
    keys = {role: session.key for role, session in sessions.items()}
    pairs = [("peer", "candidate"), ("peer", "reference")]
    if not case.batch:
        pairs.insert(0, ("reference", "candidate"))
    for role, other in pairs:
        if role in keys and keys[role] == keys[other]:
            session = sessions[role]
            raise SelfComparison(
                f"on this machine the {role} is the {other} itself ({session.label}): this compares nothing",
                help=f"state another engine, dtype, device or options for the {role}",
            )


@cache
def check_recipe(model: Model) -> None:
    """Make sure that a recipe's checkpoint is there or can be built.

    Raises:
        CapabilityMissing: the packages that hold its weights are not installed.
    """
    if model.recipe is None:
        return
    recipe = find_recipe(model.recipe)
    missing = [] if find_built(recipe) else recipe.missing_packages()
    if missing:
        raise CapabilityMissing(
            f"the checkpoint {recipe.name} needs the package{'s' if len(missing) > 1 else ''} {', '.join(missing)}",
            help=recipe.install,
        )


def check_revision(model: Model) -> None:
    """Make sure that the environment gives the revision, where the spec takes it from there.

    Raises:
        CapabilityMissing: the variable is not set.
    """
    variable = find_variable(model.revision)
    if variable is not None:
        raise CapabilityMissing(
            f"the revision of {model.label} is not given", help=f"set {variable} to the full hash of the commit to test"
        )


def has_package(name: str) -> bool:
    """Tell whether a module is installed, without importing anything (`find_spec("a.b")` would import `a`)."""
    first, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(first)
    except ValueError:  # a module that is loaded, but has no spec
        return False
    for index in range(len(rest)):
        if spec is None or spec.submodule_search_locations is None or not rest[index]:
            return False
        spec = PathFinder.find_spec(".".join((first, *rest[: index + 1])), list(spec.submodule_search_locations))
    return spec is not None


def check_benchmark(benchmark: Benchmark | None) -> None:
    """Make sure that lm-eval and the questions are there.

    Raises:
        CapabilityMissing: the packages that hold them are not installed beside specrunner, or the hub that should give
            the questions is switched off.
    """
    if benchmark is None:
        return
    evaluation = benchmark.evaluation
    missing = find_missing_packages(own_data=evaluation.file is not None or evaluation.hub)
    if missing:
        raise CapabilityMissing(f"benchmarks need {' and '.join(missing)} beside specrunner", help=tell_install())
    unreachable = find_unreachable(evaluation.tasks) if evaluation.hub else ()
    if unreachable:
        raise CapabilityMissing(
            f"the hub is switched off, and its cache lacks the questions of {' and '.join(unreachable)}", help=HUB_HELP
        )


def _strings(value: object) -> Iterable[str]:
    return (str(item) for item in value) if isinstance(value, list | tuple) else ()


def make_plan(cases: Iterable[Case], planner: Planner | None = None) -> Plan:
    """Plan `cases`.

    Args:
        cases: the selected cases.
        planner: one to collect environments in; a fresh one by default.
    """
    planner = planner or Planner()
    for case in cases:
        planner.add(case)
    return planner.build()
