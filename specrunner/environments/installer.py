"""Builds an environment from its lock file.

Packages are installed a few at a time, so that progress can be told and a broken attempt goes on where it stopped. A
virtual environment cannot be renamed, so it is built in place and counts for nothing until its mark is written, which
happens last, after the engine was imported in it.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from specrunner import __version__
from specrunner.environments.doctor import examine_imports, same_version
from specrunner.environments.interpreters import (
    MARK,
    environment_folder,
    environments_folder,
    installed_versions,
    read_mark,
    site_folders,
)
from specrunner.environments.locks import Lock, canonical_name
from specrunner.environments.pip import Pip, advise, explain_failure
from specrunner.errors import EngineMissing
from specrunner.files import write_whole
from specrunner.folders import hold_lock

BATCH = 16
"""Packages handed to pip at once: its start costs about a second, and a broken batch is the most that is lost."""

Progress = Callable[[int, int, str], None]
"""Called with packages installed, packages in all, and what is being done."""


def install_environment(
    lock: Lock,
    *,
    progress: Progress = lambda done, total, what: None,
    python: Path | None = None,
    reinstall: bool = False,
) -> bool:
    """Build the environment of a lock, or finish what an earlier attempt began.

    Args:
        lock: what to install.
        progress: told what happens.
        python: the interpreter to build it with; None is the caller's.
        reinstall: remove what is there first.

    Returns:
        False when it was there already.

    Raises:
        EngineMissing: it could not be built; the message has pip's or the import's own reason.
    """
    folder = environment_folder(lock)
    if read_mark(folder) is not None and not reinstall:
        return False
    total = len(lock.pins)
    waiting = "waiting for another installation of it"
    file = environments_folder() / f"{folder.name}.lock"
    with hold_lock(file, lambda: progress(0, total, waiting)) as descriptor:
        if reinstall:
            (folder / MARK).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
        elif read_mark(folder) is not None:
            return False
        started = time.monotonic()
        _check_space(lock, folder)
        pip = Pip(folder, descriptor)
        pip.prepare(python or Path(sys.executable))
        _install_packages(lock, pip, progress)
        progress(total, total, f"importing {lock.engine}")
        _verify(lock, folder)
        _write_mark(lock, folder, time.monotonic() - started)
    return True


def _check_space(lock: Lock, folder: Path) -> None:
    """Refuse what cannot fit, before anything is downloaded."""
    if (folder / "bin" / "python").exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free / 1e6
    if free < lock.megabytes:
        raise EngineMissing(
            f"{lock.name} takes {lock.megabytes / 1e3:.1f} GB, and {folder.parent} has {free / 1e3:.1f} GB free",
            help="free some space, or set SPECRUNNER_CACHE to a folder on a larger disk",
        )


def _install_packages(lock: Lock, pip: Pip, progress: Progress) -> None:
    """Have pip install what is not installed yet, exactly as pinned, from wheels alone."""
    total = len(lock.pins)
    while remaining := find_missing(lock, pip.folder):
        batch = remaining[:BATCH]
        begun = total - len(remaining)
        # `==2.13.0` would take 2.13.0+cpu as well, where pip finds one.
        pins = [f"{name}==={lock.pins[name]}" for name in batch]
        status, output = pip.install(pins, lambda what, begun=begun: progress(begun, total, what))  # type: ignore[misc]
        if status != 0:
            raise EngineMissing(
                f"{lock.name} could not be installed: {explain_failure(output)}",
                help=advise(output) or f"to go on where it stopped: specrunner engines install {lock.name}",
                log_tail="\n".join(output.splitlines()[-40:]),
            )
        if find_missing(lock, pip.folder) == remaining:
            raise EngineMissing(f"{lock.name} could not be installed: pip installed nothing of {', '.join(pins)}")


def find_missing(lock: Lock, folder: Path) -> list[str]:
    """Return the pinned packages that are not wholly installed; what pip left half done is made invisible to it.

    pip writes a package's RECORD last, with a line for the INSTALLER file that it added: without that line, pip was
    ended in the middle, and would take the package for installed when asked again.
    """
    whole: dict[str, str] = {}
    for site in site_folders(folder / "bin" / "python"):
        for information in site.glob("*.dist-info"):
            if _is_whole(information):
                name, _, version = information.name.removesuffix(".dist-info").rpartition("-")
                whole[canonical_name(name)] = version
            else:
                shutil.rmtree(information)
    return [name for name, version in lock.pins.items() if not same_version(whole.get(name, ""), version)]


def _is_whole(information: Path) -> bool:
    try:
        record = (information / "RECORD").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return ".dist-info/INSTALLER," in record


def _verify(lock: Lock, folder: Path) -> None:
    """Import the engine in its new environment."""
    facts, problems = examine_imports(
        folder / "bin" / "python",
        lock.imports,
        environment=lock.environment,
        standins=lock.standins,
        device=lock.device,
    )
    if problems:
        raise EngineMissing(
            f"{lock.name} is installed but does not work: {problems[0].message}",
            help=problems[0].remedy or f"run: specrunner engines install {lock.name} --reinstall",
        )
    assert facts["modules"] or not lock.imports


def _write_mark(lock: Lock, folder: Path, seconds: float) -> None:
    python = folder / "bin" / "python"
    mark = {
        "name": lock.name,
        "engine": lock.engine,
        "device": lock.device,
        "digest": lock.digest,
        "versions": installed_versions(site_folders(python)),
        "seconds": round(seconds, 1),
        "installed": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "specrunner": __version__,
    }
    write_whole(folder / MARK, (json.dumps(mark, indent=2) + "\n").encode())
