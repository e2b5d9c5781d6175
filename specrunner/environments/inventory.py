"""What can run the engines on this machine: one row for every interpreter that has, or could have, an engine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from specrunner.catalogue.engines import engine_names
from specrunner.config import EngineTable, find_project_table, read_engine_tables
from specrunner.engines.base import Capabilities
from specrunner.engines.registry import find_engine
from specrunner.environments.doctor import Examination, Problem, examine_environment, examine_lock
from specrunner.environments.interpreters import (
    Environment,
    environment_folder,
    environments_folder,
    find_configured,
    find_own,
    notable_versions,
    read_mark,
)
from specrunner.environments.locks import Lock, choose_lock, list_locks
from specrunner.environments.own_imports import missing_packages
from specrunner.errors import ConfigurationError, UsageError
from specrunner.words import did_you_mean

Examine = Callable[[], Examination]
"""Examines one interpreter."""

OWN = "own"
"""The name of the caller's interpreter among environments."""

CONFIGURED = "configured"
"""The name of the interpreter that pyproject.toml states."""


@dataclass(frozen=True, slots=True)
class Row:
    """An engine in an environment.

    Attributes:
        engine: the engine's name.
        environment: a lock's name, `own` or `configured`.
        device: `cpu`, `cuda` or `cpu, cuda`; "-" where nothing is known.
        state: `ready`, `not installed`, `unfinished`, `outdated` (another lock than the one shipped now) or `broken`.
        versions: of the packages worth showing.
        python: the interpreter, or None.
        remedy: what to do about it, or "".
    """

    engine: str
    environment: str
    device: str
    state: Literal["ready", "not installed", "unfinished", "outdated", "broken"]
    versions: dict[str, str] = field(default_factory=dict)
    python: Path | None = None
    remedy: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the row as a JSON object."""
        return asdict(self) | {"python": str(self.python) if self.python else None}


def take_inventory() -> list[Row]:
    """List every engine with every environment that has it or could have it; nothing is started or imported."""
    tables = _read_tables()
    locks = list_locks()
    rows: list[Row] = []
    for name in engine_names():
        try:
            capabilities = find_engine(name).capabilities()
        except ConfigurationError as error:
            rows.append(Row(name, OWN, "-", "broken", remedy=error.message))
            continue
        if name in tables and tables[name].python is not None:
            rows.append(_describe_configured(name, tables[name], capabilities))
        rows += _describe_own(name, tables.get(name, EngineTable()), capabilities)
        rows += [_describe_lock(lock, name, capabilities) for lock in _locks_of(name, capabilities, locks)]
    return [*rows, *_find_outdated(locks)]


def find_examinations(names: Sequence[str]) -> Iterator[tuple[str, Examine]]:
    """Yield what `engines doctor` examines: a label, and the function that does it.

    Args:
        names: locks or engines; none is everything that is there.

    Raises:
        UsageError: there is nothing of a name.
    """
    tables = _read_tables()
    locks = list_locks()
    if not names:
        for name in engine_names():
            yield from _examine_interpreters(name, tables)
        for lock in locks.values():
            if environment_folder(lock).is_dir():
                yield lock.name, partial(examine_lock, lock)
        return
    for name in names:
        if name in engine_names():
            found = list(_examine_interpreters(name, tables))
            wanted = [lock for lock in locks.values() if lock.engine == name and environment_folder(lock).is_dir()]
            found += [(lock.name, partial(examine_lock, lock)) for lock in wanted]
            yield from found or _examine_absent(name, tables.get(name, EngineTable()), locks)
        elif name in locks:
            yield name, partial(examine_lock, locks[name])
        else:
            known = list(dict.fromkeys((*engine_names(), *locks)))
            advice = did_you_mean(name, known) or f"known: {', '.join(known)}"
            raise UsageError(f"no engine or environment {name!r}", help=advice)


def _examine_absent(name: str, table: EngineTable, locks: dict[str, Lock]) -> Iterator[tuple[str, Examine]]:
    """Examine an engine that is nowhere: say how to get it."""
    if any(lock.engine == name for lock in locks.values()):
        lock = choose_lock(name)
        yield lock.name, partial(examine_lock, lock)
        return
    capabilities = find_engine(name).capabilities()
    missing = ", ".join(missing_packages(capabilities, table.env))
    problem = Problem(f"missing packages: {missing}", capabilities.install_hint)
    yield name, partial(Examination, name, Path(sys.executable), (problem,))


def _examine_interpreters(name: str, tables: dict[str, EngineTable]) -> Iterator[tuple[str, Examine]]:
    """Examine the interpreters that are not ours and have, or should have, an engine."""
    try:
        capabilities = find_engine(name).capabilities()
    except ConfigurationError as error:
        problem = Problem(error.message, error.help or "")
        yield name, partial(Examination, name, None, (problem,))
        return
    table = tables.get(name, EngineTable())
    if table.python is not None:
        try:
            configured = find_configured(name, table, capabilities)
        except ConfigurationError as error:
            problem = Problem(error.message, error.help or "")
            yield f"{name} (configured)", partial(Examination, name, None, (problem,))
        else:
            yield f"{name} (configured)", partial(examine_environment, configured, capabilities.packages)
    own = find_own(name, table, capabilities)
    if own is not None:
        yield f"{name} (own)", partial(examine_environment, own, capabilities.packages)


def _read_tables() -> dict[str, EngineTable]:
    file, table = find_project_table(Path.cwd())
    return read_engine_tables(table, file)


def _describe_configured(name: str, table: EngineTable, capabilities: Capabilities) -> Row:
    try:
        environment = find_configured(name, table, capabilities)
    except ConfigurationError as error:
        return Row(name, CONFIGURED, "-", "broken", remedy=error.message)
    return Row(name, CONFIGURED, _devices(environment), "ready", dict(environment.versions), environment.python)


def _describe_own(name: str, table: EngineTable, capabilities: Capabilities) -> list[Row]:
    environment = find_own(name, table, capabilities)
    if environment is not None:
        return [Row(name, OWN, _devices(environment), "ready", dict(environment.versions), environment.python)]
    if capabilities.environments:
        return []
    missing = ", ".join(missing_packages(capabilities, table.env))
    return [Row(name, OWN, "-", "not installed", remedy=f"missing {missing}: {capabilities.install_hint}")]


def _devices(environment: Environment) -> str:
    build = environment.versions.get("torch")
    return "-" if build is None else "cpu" if build.endswith("+cpu") else "cpu, cuda"


def _locks_of(name: str, capabilities: Capabilities, locks: dict[str, Lock]) -> list[Lock]:
    wanted = [locks[key] for key in capabilities.environments if key in locks]
    return wanted or [lock for lock in locks.values() if lock.engine == name]


def _describe_lock(lock: Lock, engine: str, capabilities: Capabilities) -> Row:
    folder = environment_folder(lock)
    install = f"specrunner engines install {lock.name}"
    mark = read_mark(folder)
    if mark is not None:
        versions = notable_versions(mark.get("versions", {}), capabilities.packages)
        return Row(engine, lock.name, lock.device, "ready", versions, folder / "bin" / "python")
    return Row(engine, lock.name, lock.device, "unfinished" if folder.is_dir() else "not installed", remedy=install)


def _find_outdated(locks: dict[str, Lock]) -> Iterator[Row]:
    """Find environments of locks that are no longer shipped; nothing uses them."""
    current = {environment_folder(lock) for lock in locks.values()}
    for folder in sorted(environments_folder().glob("*/")):
        mark = read_mark(folder)
        if folder not in current and mark is not None:
            versions = notable_versions(mark.get("versions", {}), (str(mark.get("engine", "")),))
            name, device = str(mark.get("name", folder.name)), str(mark.get("device", "-"))
            yield Row(
                str(mark.get("engine", "-")), name, device, "outdated", versions, None, f"may be deleted: {folder}"
            )
