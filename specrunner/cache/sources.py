"""Where the code lies that a session computes with, and what else its options name: packages, source trees, files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from specrunner.cache.digests import NOTHING, Digests
from specrunner.environments.interpreters import (
    Environment,
    find_editable_sources,
    import_folders,
    installed_versions,
    stated_folders,
)
from specrunner.sessions.sizes import find_repository

UNUSED = frozenset({"include", "test", "tests", "testing"})
"""Folders of an installed package that no answer comes from."""

OWN = "specrunner"
"""Our own code has a part of its own, without tests and documents."""

_NAME = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})*")
"""What the name of a model on the hub looks like, or of a file of one; many a relative path does, too."""


def stamp_code(names: Iterable[str], environment: Environment, digests: Digests) -> list[Any]:
    """Digest the code of an engine's packages, of all that can be imported from a stated PYTHONPATH, and source trees.

    Args:
        names: of the packages.
        environment: the interpreter that runs the engine.
        digests: of files.
    """
    found: list[Any] = [digests.of(place, UNUSED) for place in find_sources(names, environment)]
    for folder in stated_folders(environment):
        found += [[place.name, digests.of(place, UNUSED)] for place in list_importable(folder)]
    return found


def stamp_packages(environment: Environment, digests: Digests) -> list[Any]:
    """Digest names and versions of all installed packages, and the digests of files that their installer noted."""
    folders = import_folders(environment)
    records = [digests.of_records(folder) for folder in folders]
    return [installed_versions(folders), *(record for record in records if record != NOTHING)]


def find_sources(names: Iterable[str], environment: Environment) -> list[Path]:
    """Return the folders of an engine's packages, and the trees of whatever is installed as a link to its sources."""
    folders = import_folders(environment)
    places = []
    for name in names:
        found = (folder / name for folder in folders if (folder / name / "__init__.py").is_file())
        if (place := next(found, None)) is not None:
            places.append(place)
    sources = find_editable_sources(folders)
    return places + [source for source in sources if not (source / OWN / "__init__.py").is_file()]


def list_importable(folder: Path) -> list[Path]:
    """Return the packages and modules that lie in a folder, in order, but for ours and what no answer comes from."""
    with suppress(OSError):
        return [
            place
            for place in sorted(folder.iterdir())
            if place.name not in UNUSED | {OWN} and not place.name.startswith(".")
            if place.suffix in (".py", ".so") or (place / "__init__.py").is_file()
        ]
    return []


def stamp_options(options: Any, digests: Digests) -> tuple[list[str], bool]:
    """Digest the files, the directories and the models of the hub that an engine's options name.

    A worker starts in a folder of its own, so that a relative path leads to no file of the user's.

    Args:
        options: of the session, or whatever else names some: in a list, a mapping, JSON, or behind `name=`.
        digests: of files.

    Returns:
        A digest for each, and whether all that looks like a name on the hub is on this machine.
    """
    found: list[str] = []
    complete = True
    for text in dict.fromkeys(list_texts(options)):
        path = Path(text).expanduser() if text.startswith("~/") else Path(text)
        if path.is_absolute() and path.parent != path:
            found.append(digests.of(path))
        elif _NAME.fullmatch(text):
            repository = find_repository("/".join(text.split("/")[:2]))
            if repository.is_dir():  # with all its revisions
                found += [digests.of(repository / "refs"), digests.of(repository / "snapshots")]
            elif "/" in text:
                complete = False
    return found, complete


def list_texts(value: Any) -> Iterator[str]:
    """Yield every text in an option's value, and each part of one that may hold several."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for entry in value:
            yield from list_texts(entry)
    elif isinstance(value, str) and "\0" not in value:
        yield value
        if value.lstrip().startswith(("{", "[")):
            with suppress(ValueError):
                yield from list_texts(json.loads(value))
        elif "://" not in value:
            yield from re.split(f"[=,@{os.pathsep}]", value)
