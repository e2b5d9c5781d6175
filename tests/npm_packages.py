"""Installs packages from npm for the tests that hold our files against programs that we did not write."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

WAIT = 240.0


def install_packages(folder: Path, versions: Mapping[str, str]) -> str:
    """Install packages into a folder, and return the path of node; skip the test where that cannot be done.

    Args:
        folder: where `node_modules` will stand.
        versions: the exact version of each package.
    """
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.skip("there is no npm: apt-get install npm")
    names = [f"{name}@{version}" for name, version in versions.items()]
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", *names]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=WAIT)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm could not install {', '.join(versions)} in {WAIT:.0f} s")
    if done.returncode:
        pytest.skip(f"npm could not install {', '.join(versions)}: {done.stderr.strip()[-200:]}")
    return node
