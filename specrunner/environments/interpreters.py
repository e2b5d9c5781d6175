"""Environments: which interpreter runs an engine.

In order: the user's own (`[tool.specrunner.engines.NAME]`), the caller's interpreter where it has the engine's
packages, and what `specrunner engines install` built. Nothing here starts an interpreter or imports a package of an
engine; an installed environment tells by its mark, written last, what is in it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from specrunner.config import EngineTable, find_project_table, read_engine_tables
from specrunner.engines.base import Capabilities
from specrunner.environments.locks import Lock, canonical_name, find_locks, list_locks
from specrunner.environments.own_imports import (
    find_import_folders,
    find_stated_folders,
    inherit_path,
    missing_packages,
)
from specrunner.errors import ConfigurationError, EngineMissing
from specrunner.folders import cache_folder

MARK = "environment.json"
"""The file that says that an environment is whole."""

_DISTRIBUTION = re.compile(r"(.+?)-([^-]+)\.(?:dist-info|egg-info)")
_NOTABLE = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "triton")


@dataclass(frozen=True, slots=True)
class Environment:
    """An interpreter with an engine's packages.

    Attributes:
        name: the lock's name, or the engine's for an interpreter that is not ours.
        python: the interpreter; not resolved, since a virtual environment's is a link.
        env: variables to set for processes that it runs.
        digest: of what is installed in it.
        versions: versions by package name, of the packages worth reporting.
        source: `installed` by us, `configured` by the user, or the caller's `own`.
    """

    name: str
    python: Path
    env: Mapping[str, str] = field(default_factory=dict)
    digest: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    source: Literal["installed", "configured", "own"] = "own"


def environments_folder() -> Path:
    """Return where installed environments are."""
    return cache_folder() / "environments"


def environment_folder(lock: Lock) -> Path:
    """Return where a lock's environment is, or will be."""
    return environments_folder() / f"{lock.name}-{lock.digest}"


def read_mark(folder: Path) -> dict[str, Any] | None:
    """Return what an environment's mark states, or None when the environment is missing or not whole."""
    try:
        mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return mark if isinstance(mark, dict) and os.access(folder / "bin" / "python", os.X_OK) else None


def find_environment(
    engine: str,
    capabilities: Capabilities,
    device: str,
    *,
    config: Mapping[str, EngineTable] | None = None,
    name: str | None = None,
) -> Environment:
    """Return the environment that runs an engine.

    Args:
        engine: the engine's name.
        capabilities: what it says of itself: its packages, and the locks that can provide it.
        device: `cpu` or `cuda`.
        config: interpreters of the user's own; None reads them from pyproject.toml.
        name: the name of an installed environment to take, and no other (`hf-llada2`, or a flavour of it); an
            interpreter that pyproject.toml states under this name goes before.

    Raises:
        EngineMissing: there is none; the help has the command that installs it.
        ConfigurationError: the interpreter that pyproject.toml names is not there.
    """
    if config is None:
        file, tables = find_project_table(Path.cwd())
        config = read_engine_tables(tables, file)
    table = config.get(engine, EngineTable())
    locks = list_locks()
    if name is not None and name in config and config[name].python is not None:
        return _require_build(find_configured(name, config[name], capabilities), device)
    if name is None:
        if table.python is not None:
            return _require_build(find_configured(engine, table, capabilities), device)
        own = find_own(engine, table, capabilities)
        if own is not None and (not capabilities.environments or _runs_on(own, device)):
            return _require_build(own, device)
        names: Iterable[str] = capabilities.environments or (engine, "hf")
    else:
        names = [lock.name for lock in find_locks(name, locks)]
    candidates = [locks[key] for key in dict.fromkeys(names) if key in locks and locks[key].device == device]
    for lock in candidates:
        if mark := read_mark(environment_folder(lock)):
            return _installed(lock, mark, table.env, capabilities)
    raise _missing(engine, capabilities, device, candidates, name, table.env)


def _installed(lock: Lock, mark: Mapping[str, Any], env: Mapping[str, str], capabilities: Capabilities) -> Environment:
    python = environment_folder(lock) / "bin" / "python"
    versions = notable_versions(mark.get("versions", {}), capabilities.packages)
    return Environment(lock.name, python, _with_path(python, env), lock.digest, versions, "installed")


def find_configured(engine: str, table: EngineTable, capabilities: Capabilities) -> Environment:
    """Return the interpreter that pyproject.toml names for an engine.

    Raises:
        ConfigurationError: it is not there.
    """
    stated = table.python
    assert stated is not None
    python = stated / "bin" / "python" if stated.is_dir() else stated
    if not (python.is_file() and os.access(python, os.X_OK)):
        raise ConfigurationError(
            f"the interpreter {stated} of [tool.specrunner.engines.{engine}] is not there or not executable",
            help=f"correct `python` there, or remove it and use: specrunner engines install {engine}",
        )
    found = installed_versions(site_folders(python))
    versions = notable_versions(found, capabilities.packages)
    digest = _digest([str(python), *found.items()])
    return Environment(engine, python, _with_path(python, table.env), digest, versions, "configured")


def find_own(engine: str, table: EngineTable, capabilities: Capabilities) -> Environment | None:
    """Return the caller's interpreter if a worker under it has the engine's packages; nothing is imported."""
    if missing_packages(capabilities, table.env):
        return None
    python = Path(sys.executable)
    found = installed_versions(find_import_folders(table.env))
    versions = notable_versions(found, capabilities.packages)
    return Environment(engine, python, _with_path(python, table.env), _digest(found.items()), versions, "own")


def _runs_on(environment: Environment, device: str) -> bool:
    return not (device == "cuda" and environment.versions.get("torch", "").endswith("+cpu"))


def _require_build(environment: Environment, device: str) -> Environment:
    if not _runs_on(environment, device):
        raise EngineMissing(
            f"the torch {environment.versions['torch']} of {environment.python} is a CPU build",
            help="install a CUDA build of torch there",
        )
    return environment


def _missing(
    engine: str,
    capabilities: Capabilities,
    device: str,
    candidates: list[Lock],
    name: str | None,
    env: Mapping[str, str],
) -> EngineMissing:
    """Say what is missing, and the command that brings it."""
    unfinished = [lock for lock in candidates if environment_folder(lock).is_dir()]
    if unfinished:
        lock = unfinished[0]
        return EngineMissing(
            f"the environment {lock.name} is not whole", help=f"run: specrunner engines install {lock.name}"
        )
    if name is not None:
        return EngineMissing(f"the environment {name} is not installed", help=f"run: specrunner engines install {name}")
    if not capabilities.environments:
        packages = ", ".join(missing_packages(capabilities, env))
        fallback = f"run: specrunner engines install {candidates[0].name}" if candidates else None
        hint = f"run: {capabilities.install_hint}" if capabilities.install_hint else fallback
        return EngineMissing(f"{engine} needs {packages}, not installed beside specrunner", help=hint)
    if not candidates:
        return EngineMissing(
            f"no environment for {engine} on {device} is shipped",
            help=f"name an interpreter that has it: `python` in [tool.specrunner.engines.{engine}] of pyproject.toml",
        )
    return EngineMissing(
        f"{engine} is not installed for {device}", help=f"run: specrunner engines install {candidates[0].name}"
    )


def site_folders(python: Path) -> list[Path]:
    """Return the folders from which an interpreter imports installed packages, without starting it."""
    prefix = python.parent.parent
    if not (prefix / "pyvenv.cfg").is_file():
        prefix = python.resolve().parent.parent
    return sorted(prefix.glob("lib/python3*/site-packages")) + sorted(prefix.glob("lib/python3*/dist-packages"))


def import_folders(environment: Environment) -> list[Path]:
    """Return the folders from which a worker in an environment imports packages, in their order."""
    if environment.source == "own":
        return find_import_folders(environment.env)
    return stated_folders(environment) + site_folders(environment.python)


def stated_folders(environment: Environment) -> list[Path]:
    """Return the first of them: those of the PYTHONPATH that a worker gets."""
    own = environment.source == "own"
    return find_stated_folders(inherit_path(environment.env) if own else environment.env)


def installed_versions(folders: Iterable[Path]) -> dict[str, str]:
    """Return the versions of all packages installed in `folders`, by canonical name, from their folders' names."""
    found: dict[str, str] = {}
    for folder in folders:
        try:
            entries = sorted(entry.name for entry in folder.iterdir())
        except OSError:
            continue
        for entry in entries:
            if match := _DISTRIBUTION.fullmatch(entry):
                found.setdefault(canonical_name(match[1]), match[2])
    return dict(sorted(found.items()))


def find_editable_sources(folders: Iterable[Path]) -> list[Path]:
    """Return the source trees that are installed in `folders` as links, so that what runs is what stands there."""
    sources: dict[Path, None] = {}
    for folder in folders:
        for file in sorted(folder.glob("*.dist-info/direct_url.json")):
            try:
                data = json.loads(file.read_text(encoding="utf-8"))
                if data.get("dir_info", {}).get("editable"):
                    sources[Path(unquote(urlsplit(data["url"]).path))] = None
            except (OSError, ValueError, KeyError, AttributeError):
                continue
        for file in sorted(folder.glob("*.egg-link")):
            with suppress(OSError, ValueError, IndexError):
                sources[Path(file.read_text(encoding="utf-8").splitlines()[0].strip())] = None
    return list(sources)


def notable_versions(versions: Mapping[str, str], packages: Iterable[str]) -> dict[str, str]:
    """Keep the versions that a report should show: an engine's own packages and those it computes with."""
    wanted = [canonical_name(package) for package in (*packages, *_NOTABLE)]
    wanted += [f"{name}-cpu" for name in wanted]
    return {name: version for name, version in versions.items() if name in wanted}


def _with_path(python: Path, env: Mapping[str, str]) -> dict[str, str]:
    """Put an interpreter's folder first on PATH, where engines look for `ninja` and the like."""
    return {"PATH": os.pathsep.join((str(python.parent), os.environ.get("PATH", os.defpath))), **env}


def _digest(items: Iterable[Any]) -> str:
    return hashlib.sha256(json.dumps(list(items)).encode()).hexdigest()[:12]
