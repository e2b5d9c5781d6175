"""Small wheels and locks of our own, so that environments are built without a network."""

from __future__ import annotations

import base64
import hashlib
import venv
import zipfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest

from specrunner.environments import locks
from specrunner.environments.interpreters import site_folders

MakeWheel = Callable[..., Path]
MakeLock = Callable[..., locks.Lock]


def write_wheel(folder: Path, name: str, version: str, files: Mapping[str, str]) -> Path:
    """Write a pure wheel `name-version` that holds `files`."""
    information = f"{name}-{version}.dist-info"
    content = {
        **files,
        f"{information}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{information}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = []
    for path, text in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(text.encode())}")
    lines.append(f"{information}/RECORD,,")
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in content.items():
            archive.writestr(path, text)
        archive.writestr(f"{information}/RECORD", "\n".join(lines) + "\n")
    return wheel


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache that is empty."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SPECRUNNER_CACHE", str(folder))
    return folder


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip finds packages."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(name, value)
    return folder


@pytest.fixture
def make_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeLock:
    """Write a lock file into a folder that takes the place of the shipped ones."""
    folder = tmp_path / "locks"
    folder.mkdir()
    monkeypatch.setattr(locks, "FOLDER", folder)

    def make(name: str, pins: str, *, engine: str = "toy", device: str = "cpu", imports: str = "") -> locks.Lock:
        header = f"# engine: {engine}\n# device: {device}\n# imports: {imports}\n"
        file = folder / f"{name}.txt"
        file.write_text(header + "".join(f"{pin}\n" for pin in pins.split()), encoding="utf-8")
        return locks.read_lock(file)

    return make


@pytest.fixture(scope="session")
def bare_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with pip and nothing else, to copy where making one each time would take too long.

    Its pip is a link to our own, where we have one: neither is it unpacked and compiled here, nor copied.
    """
    folder = tmp_path_factory.mktemp("bare") / "environment"
    pip = find_spec("pip")
    venv.create(folder, symlinks=True, with_pip=pip is None)
    if pip is not None and pip.origin is not None:
        [site] = site_folders(folder / "bin" / "python")
        (site / "pip").symlink_to(Path(pip.origin).parent, target_is_directory=True)
    return folder
