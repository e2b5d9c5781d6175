"""The stamp of an engine's files: it changes with code and weights that are edited in place, and with nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from specrunner.engines import stamp
from specrunner.engines.base import Capabilities, Capture, Engine
from specrunner.engines.stamp import stamp_sources
from specrunner.requests import Request, Session
from specrunner.spec.model import Model


class StampedEngine(Engine):
    """An engine that computes with a package of the test's."""

    name = "stamped"

    @classmethod
    def capabilities(cls) -> Capabilities:
        return Capabilities({"cpu": ("float32",)}, packages=("stamped_package", "not_installed_anywhere"))

    def load(self) -> dict[str, Any]:
        return {}

    def capture(self, request: Request) -> Capture:
        raise NotImplementedError


def test_a_stamp_sees_every_edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stamp, "COMMON", ("specrunner",))
    monkeypatch.setattr(stamp, "CPU", tmp_path / "cpuinfo")
    monkeypatch.syspath_prepend(str(tmp_path))
    code, weights = tmp_path / "stamped_package", tmp_path / "checkpoint"
    (code / "kernels").mkdir(parents=True)
    weights.mkdir()
    files = [code / "__init__.py", code / "kernels" / "moe.py", weights / "model.safetensors"]
    for file in files:
        file.write_bytes(b"1")
    engine = StampedEngine(Session("stamped", "", Model(path="m"), "float32", "cpu"), str(weights), tmp_path)
    seen = {stamp_sources(engine)}
    (code / "__pycache__").mkdir()
    (code / "__pycache__" / "moe.pyc").write_bytes(b"1")
    (code / "broken").symlink_to(tmp_path / "nowhere")
    (code / "broken").unlink()
    assert seen == {stamp_sources(engine)}
    for file in files:
        state = file.stat()
        file.write_bytes(b"2")
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
        seen.add(stamp_sources(engine))
    (code / "new.py").write_bytes(b"")
    seen.add(stamp_sources(engine))
    (tmp_path / "cpuinfo").write_text("processor: 0\nmodel name: fast\nflags: avx\n", encoding="utf-8")
    seen.add(stamp_sources(engine))
    monkeypatch.setenv("SPECRUNNER_NAME_MAPS", str(tmp_path / "maps"))
    (tmp_path / "maps" / "stamped").mkdir(parents=True)
    (tmp_path / "maps" / "stamped" / "own.yaml").write_bytes(b"1")
    seen.add(stamp_sources(engine))
    assert len(seen) == 1 + len(files) + 3
