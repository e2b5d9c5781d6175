"""What a worker that is started with the caller's interpreter can import, found without importing any of it.

That is less than the caller itself can. A worker starts in a folder of its own, so what lies in the folder that the
caller was started in, or beside its script, is not there: an unpacked or a cloned engine is not an installed one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import PathFinder
from pathlib import Path

from specrunner.engines.base import Capabilities

PATH = "PYTHONPATH"


def find_import_folders(env: Mapping[str, str]) -> list[Path]:
    """Return the folders from which a worker imports installed packages, in their order.

    Args:
        env: variables that are set for the engine's processes.

    Returns:
        The absolute folders of `PYTHONPATH`, and what the interpreter itself puts behind its standard library: its site
        directories and what their `.pth` files add.
    """
    site = [Path(entry) for entry in _find_site_entries()]
    return find_stated_folders(inherit_path(env)) + [folder for folder in site if folder.is_absolute()]


def find_stated_folders(env: Mapping[str, str]) -> list[Path]:
    """Return the absolute folders of `PYTHONPATH` in `env`; a worker starts where a relative one leads nowhere."""
    folders = [Path(entry) for entry in env.get(PATH, "").split(os.pathsep)]
    return [folder for folder in folders if folder.is_absolute()]


def inherit_path(env: Mapping[str, str]) -> dict[str, str]:
    """Return `env` with the caller's `PYTHONPATH`, where it states none: only its own interpreter gets that."""
    return {PATH: os.environ.get(PATH, ""), **env}


def _find_site_entries() -> list[str]:
    """Return the entries of `sys.path` behind the standard library; before it stand the start folder and PYTHONPATH."""
    library = Path(os.__file__).parent.resolve()
    places = [number for number, entry in enumerate(sys.path) if entry and Path(entry).resolve() == library]
    return sys.path[places[0] + 1 :] if places else list(sys.path)


def missing_packages(capabilities: Capabilities, env: Mapping[str, str]) -> list[str]:
    """Return the packages of an engine that a worker under the caller's interpreter would lack.

    Args:
        capabilities: what the engine says of itself.
        env: variables that are set for the engine's processes.
    """
    folders = [str(folder) for folder in find_import_folders(env)]
    return [package for package in capabilities.packages if not _is_found(package.partition(".")[0], folders)]


def _is_found(module: str, folders: Sequence[str]) -> bool:
    """Tell whether a module is in one of `folders`, or known to a finder: editable installs may bring one each."""
    if PathFinder.find_spec(module, folders) is not None:
        return True
    others = [getattr(finder, "find_spec", None) for finder in sys.meta_path if finder is not PathFinder]
    return any(find is not None and find(module, None) is not None for find in others)
