"""The command that brings an extra, wherever specrunner was installed from."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from specrunner.catalogue.extras import install_command

FROM_INDEX = "pip install 'specrunner[hf]'"


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Look anew, before and after a test."""
    install_command.cache_clear()
    yield
    install_command.cache_clear()


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, origin: str | None) -> None:
    """Let `folder` be all that packages are found in, with specrunner installed as `direct_url.json` says."""
    info = folder / "specrunner-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: specrunner\nVersion: 0.1\n")
    if origin is not None:
        (info / "direct_url.json").write_text(origin)
    monkeypatch.setattr("sys.path", [str(folder)])


@pytest.mark.parametrize("name", ["checkout", "it's a check out"])
@pytest.mark.parametrize("editable", [True, False])
def test_from_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, editable: bool) -> None:
    checkout = tmp_path / name
    checkout.mkdir()
    origin = {"url": checkout.as_uri(), "dir_info": {"editable": True} if editable else {}}
    install(tmp_path, monkeypatch, json.dumps(origin))
    option = ["-e"] if editable else []
    assert shlex.split(install_command("hf")) == ["pip", "install", *option, f"{checkout}[hf]"]


def test_from_a_wheel_that_was_built_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "specrunner-0.1-py3-none-any.whl"
    wheel.touch()
    install(tmp_path, monkeypatch, json.dumps({"url": wheel.as_uri(), "archive_info": {}}))
    assert install_command("hf") == f"pip install '{wheel}[hf]'"


@pytest.mark.parametrize(
    "origin",
    [
        None,
        "{",
        "[]",
        "{}",
        '{"url": 1}',
        '{"url": "file:///no/such/checkout", "dir_info": {"editable": true}}',
        '{"url": "https://example.org/tmp", "vcs_info": {"vcs": "git", "commit_id": "0"}}',
    ],
)
def test_from_an_index_or_from_what_is_no_longer_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, origin: str | None
) -> None:
    install(tmp_path, monkeypatch, origin)
    assert install_command("hf") == FROM_INDEX


def test_where_it_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    with pytest.raises(metadata.PackageNotFoundError):
        metadata.distribution("specrunner")
    assert install_command("hf") == FROM_INDEX
