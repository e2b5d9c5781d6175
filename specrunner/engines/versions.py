"""Versions of the packages that shape an engine's numbers, for the facts of a session."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version


def describe_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return Python's version and the packages'; one that is not installed, or runs from a checkout, is `absent`."""
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "absent"
    return versions
