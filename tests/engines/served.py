"""Engines in processes of their own, asked as a run's pool asks them, and kept while other tests may want them."""

from __future__ import annotations

import atexit
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from specrunner.engines.base import Engine
from specrunner.environments.interpreters import find_environment
from specrunner.errors import EngineMissing
from specrunner.models.recipes import ensure_model
from specrunner.requests import Request, Session
from specrunner.sessions.captures import StoredCapture, read_capture
from specrunner.sessions.forks import ForkServers
from specrunner.sessions.process import WorkerProcess
from specrunner.spec.model import Decode, Model, Prompt

ALL = ("**",)
KEPT = 3
"""Sessions of a module that stay loaded: tests come in any order, and a load costs more than most of them."""


def find_python(kind: type[Engine]) -> str | None:
    """Return the interpreter that a run would take, or None where the engine is not installed."""
    try:
        return str(find_environment(kind.name, kind.capabilities(), "cpu").python)
    except EngineMissing:
        return None


@cache
def find_forks() -> ForkServers:
    """Return what sessions are forked from, as those of a run are: one import of an engine serves all tests."""
    folder = tempfile.TemporaryDirectory(prefix="forks-")
    servers = ForkServers(Path(folder.name))
    atexit.register(folder.cleanup)
    atexit.register(servers.close)
    return servers


class Served:
    """A session in a process of its own; the recipe of LLaDA2.0 brings its code along.

    `fresh` starts an interpreter, which imports the engine, and specrunner, itself.
    """

    def __init__(
        self,
        kind: type[Engine],
        model: Model | str,
        workspace: Path,
        dtype: str = "float32",
        fresh: bool = False,
        **options: Any,
    ) -> None:
        model = name_model(model)
        session = Session(kind.name, f"{kind.name}-cpu", model, dtype, "cpu", options)
        variables = {"OMP_NUM_THREADS": "1", **kind.worker_environment(session, workspace)}
        self.kind = kind
        self.mark = f"test-{os.getpid()}-{workspace.name}"
        self.workspace = workspace
        python = Path(find_python(kind) or "")
        preload = () if fresh else kind.capabilities().preload
        fork = find_forks().prepare(python, preload, workspace, None, cancelled=lambda: False)
        self.worker = WorkerProcess(python, workspace, variables, self.mark, fork)
        self._asked = 0
        message = {
            "type": "load",
            "engine": f"{kind.__module__}:{kind.__name__}",
            "session": session.to_json(),
            "model_path": ensure_model(model),
            "workspace": str(workspace),
        }
        try:
            self.facts: Mapping[str, Any] = self.worker.ask(message, timeout=900)
        except BaseException:
            self.worker.kill()
            raise

    def ask(
        self,
        prompt: Prompt,
        tensors: tuple[str, ...] = (),
        decode: Decode | None = None,
        *,
        fault: str | None = None,
        timeout: float = 600,
    ) -> StoredCapture:
        """Have a request answered."""
        self._asked += 1
        directory = self.workspace / f"answer-{self._asked}"
        request = Request(prompt, tensors, decode, fault=fault)
        message = {"type": "capture", "request": request.to_json(), "directory": str(directory)}
        outcomes: list[Any] = []
        self.worker.capture(message, timeout=timeout, written=outcomes.append)
        self.worker.flush()
        if outcomes[0] is not None:
            raise outcomes[0]
        return read_capture(directory)

    def answer(self, questions: list[dict[str, Any]], decode: Decode | None = None) -> list[dict[str, Any]]:
        """Have a benchmark's questions answered."""
        request = Request(Prompt(), (), decode)
        message = {"type": "answer", "request": request.to_json(), "questions": questions}
        answers: list[dict[str, Any]] = self.worker.ask(message, timeout=600)["answers"]
        return answers

    def tensors(
        self, prompt: Prompt, tensors: tuple[str, ...] = ALL, *, fault: str | None = None
    ) -> dict[str, torch.Tensor]:
        """Return the tensors of one forward pass by name."""
        path = self.ask(prompt, tensors, fault=fault).tensors_path
        assert path is not None
        return load_file(path)

    def processes(self) -> dict[int, str]:
        """Command lines of the session's processes that are alive, by process id."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) == self.worker.pid and fields[0] != "Z":
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return found


Serve = Callable[..., Served]


def name_model(model: Model | str) -> Model:
    """Return the model of a recipe, or the model itself."""
    return Model(recipe=model, trust_remote_code=model == "tiny-llada2") if isinstance(model, str) else model


@contextmanager
def keep_sessions(kind: type[Engine], folders: pytest.TempPathFactory) -> Iterator[Serve]:
    """Start sessions, or return those that are still loaded and alive; the one asked for longest ago gives way."""
    running: dict[str, Served] = {}

    def serve(model: Model | str, dtype: str = "float32", **options: Any) -> Served:
        model = name_model(model)
        key = f"{model} {dtype} {sorted(options.items())}"
        served = running.pop(key, None)
        if served is None or not served.worker.alive:
            while len(running) >= KEPT:
                running.pop(next(iter(running))).worker.close()
            served = Served(kind, model, folders.mktemp(kind.name), dtype, **options)
        running[key] = served
        return served

    yield serve
    for served in running.values():
        served.worker.close()
