"""What is wrong with an environment, and the remedy."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from specrunner.devices import has_cuda
from specrunner.environments import import_check
from specrunner.environments.interpreters import (
    Environment,
    environment_folder,
    installed_versions,
    read_mark,
    site_folders,
)
from specrunner.environments.locks import Lock

IMPORT_TIMEOUT = 900.0
"""Seconds that all imports of an environment may take; vLLM takes 6 s, the first time after an install a minute."""

_HIDDEN_VARIABLES = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong, and what to do about it."""

    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Examination:
    """What an examination found.

    Attributes:
        name: the environment's name.
        python: its interpreter, or None when there is none.
        problems: what is wrong; empty when it works.
        facts: what was seen: `python`, `modules`, `torch` (see `import_check`).
    """

    name: str
    python: Path | None
    problems: tuple[Problem, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the examination as a JSON object."""
        return asdict(self) | {"python": str(self.python) if self.python else None}


def examine_lock(lock: Lock) -> Examination:
    """Examine the environment that a lock describes: whole, as locked, of the right build, and importable."""
    folder = environment_folder(lock)
    python = folder / "bin" / "python"
    install = f"run: specrunner engines install {lock.name}"
    if not folder.is_dir():
        return Examination(lock.name, None, (Problem("not installed", install),))
    if python.is_symlink() and not python.exists():
        remedy = f"{install} --reinstall"
        return Examination(lock.name, None, (Problem(f"its base interpreter {python.readlink()} is gone", remedy),))
    if read_mark(folder) is None:
        return Examination(lock.name, None, (Problem("the installation was not finished", install),))
    facts, failures = examine_imports(
        python, lock.imports, environment=lock.environment, standins=lock.standins, device=lock.device
    )
    problems = [*compare_packages(lock, installed_versions(site_folders(python))), *failures]
    if not failures and lock.device == "cuda":
        problems += examine_driver(facts["torch"])
    reinstall = f"{install} --reinstall"
    return Examination(
        lock.name, python, tuple(Problem(item.message, item.remedy or reinstall) for item in problems), facts
    )


def examine_environment(environment: Environment, imports: Sequence[str]) -> Examination:
    """Examine an interpreter that is not ours: whether the engine's packages import."""
    facts, failures = examine_imports(environment.python, imports, environment=environment.env)
    fix = f"install what is missing with: {environment.python} -m pip install ..."
    problems = tuple(Problem(item.message, item.remedy or fix) for item in failures)
    return Examination(environment.name, environment.python, problems, facts)


def compare_packages(lock: Lock, found: Mapping[str, str]) -> list[Problem]:
    """Compare what is installed with the pins; the remedy is to install again."""
    problems = []
    missing = [name for name in lock.pins if name not in found]
    if missing:
        problems.append(Problem(f"missing packages: {', '.join(missing)}", ""))
    changed = [
        f"{name} is {found[name]}, not {version}"
        for name, version in lock.pins.items()
        if name in found and not same_version(found[name], version)
    ]
    if changed:
        problems.append(Problem(f"changed since it was installed: {'; '.join(changed)}", ""))
    return problems


def same_version(left: str, right: str) -> bool:
    """Compare two version strings; wheels write `_` where the version has `-` or a local part has `.`."""
    return left.lower().replace("_", ".").replace("-", ".") == right.lower().replace("_", ".").replace("-", ".")


def examine_imports(
    python: Path,
    imports: Sequence[str],
    *,
    environment: Mapping[str, str],
    standins: Sequence[Path] = (),
    device: str | None = None,
) -> tuple[Mapping[str, Any], list[Problem]]:
    """Import an environment's modules in a process of its own.

    Args:
        python: the interpreter to do it with.
        imports: module names.
        environment: variables to set.
        standins: folders to put on PYTHONPATH.
        device: what the build of torch must be for: `cpu`, `cuda`, or None for no opinion.

    Returns:
        The facts that `import_check` wrote, and what they show to be wrong; a remedy is "" where only the caller knows.
    """
    with tempfile.TemporaryDirectory(prefix="specrunner-doctor-") as scratch:
        result = Path(scratch) / "result.json"
        variables = {key: value for key, value in os.environ.items() if key not in _HIDDEN_VARIABLES}
        variables |= {"TMPDIR": scratch, "HF_HUB_OFFLINE": "1", **environment}
        if standins:
            variables["PYTHONPATH"] = os.pathsep.join(str(folder) for folder in standins)
        try:
            done = subprocess.run(
                [str(python), import_check.__file__, str(result), *imports],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                cwd=scratch,
                env=variables,
                timeout=IMPORT_TIMEOUT,
                start_new_session=True,
            )
        except OSError as error:
            return {}, [Problem(f"the interpreter {python} does not start: {error}", "")]
        except subprocess.TimeoutExpired:
            return {}, [Problem(f"importing {', '.join(imports)} took longer than {IMPORT_TIMEOUT:g} s", "")]
        try:
            facts: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            last = (done.stdout.strip().splitlines() or ["it printed nothing"])[-1]
            return {}, [Problem(f"the interpreter ended with status {done.returncode} while importing: {last}", "")]
    problems = [
        Problem(f"cannot import {module['name']}: {first_line(module['error'])}", explain_import_error(module["error"]))
        for module in facts["modules"]
        if module["error"]
    ]
    return facts, problems + examine_build(facts.get("torch"), device)


def examine_build(torch: Mapping[str, Any] | None, device: str | None) -> list[Problem]:
    """Say whether this build of torch is the right one for `device`."""
    if torch is None or device is None:
        return []
    if device == "cpu" and torch["cuda"] is not None:
        return [Problem(f"torch {torch['version']} is a CUDA {torch['cuda']} build, the environment is for CPUs", "")]
    if device == "cuda" and torch["cuda"] is None:
        return [Problem(f"torch {torch['version']} is a CPU build, the environment is for CUDA", "")]
    return []


def examine_driver(torch: Mapping[str, Any]) -> list[Problem]:
    """Say whether a CUDA build of torch reaches a GPU."""
    if not has_cuda():
        return [Problem("no NVIDIA driver on this machine", "install the driver, and see that nvidia-smi lists a GPU")]
    if not torch["available"]:
        why = first_line(torch["problem"]) or "torch.cuda.is_available() is false"
        remedy = f"install a driver for CUDA {torch['cuda']} or newer, and check CUDA_VISIBLE_DEVICES"
        return [Problem(f"the driver and torch {torch['version']} do not go together: {why}", remedy)]
    return []


def explain_import_error(error: str) -> str:
    """Return the remedy for an import error whose cause is well known, or ""."""
    if "libcuda.so" in error:
        return "the NVIDIA driver is missing: install it, or use the CPU environment of this engine"
    if "libcudart" in error or "libcublas" in error or "libnvrtc" in error:
        return "a CUDA build beside a CPU build of torch: reinstall the environment as locked"
    if "GLIBCXX" in error or "GLIBC_" in error:
        return "the wheels need a newer C library: use a newer distribution or container"
    return ""


def first_line(text: str) -> str:
    """Return the first line of an error, shortened to 300 characters."""
    line = (text.strip().splitlines() or [""])[0]
    return line if len(line) <= 300 else line[:297] + "..."
