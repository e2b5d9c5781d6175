"""Faults in vLLM and SGLang: the same as in the oracle, and gone after their request."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from specrunner.engines.base import Engine
from specrunner.engines.oracle import OracleEngine
from specrunner.engines.planters import plant
from specrunner.engines.sglang import SglangEngine
from specrunner.engines.vllm import VllmEngine
from specrunner.environments.interpreters import find_environment
from specrunner.errors import EngineMissing, FaultInapplicable
from specrunner.faults.catalogue import find_faults
from specrunner.models.recipes import ensure_model
from specrunner.requests import Request, Session
from specrunner.sessions.captures import read_capture
from specrunner.sessions.process import WorkerProcess
from specrunner.spec.model import Model, Prompt

MODEL = Model(recipe="tiny-llada2-unscaled", trust_remote_code=True)
PROMPT = Prompt(text="capital of France:Paris\nreverse stone:enots\nThe capital of Peru is ", length=25)
TENSORS = ("layers.*.output", "logits")


class Served:
    """An engine in a process of its own, asked as the pool asks it."""

    def __init__(self, kind: type[Engine], workspace: Path) -> None:
        try:
            python = find_environment(kind.name, kind.capabilities(), "cpu").python
        except EngineMissing:
            pytest.skip(f"{kind.name} is not installed: specrunner engines install {kind.name}")
        session = Session(kind.name, f"{kind.name}-cpu", MODEL, "float32", "cpu", {})
        variables = {"OMP_NUM_THREADS": "1", **kind.worker_environment(session, workspace)}
        self.name, self.workspace = kind.name, workspace
        self.worker = WorkerProcess(Path(python), workspace, variables, f"test-{os.getpid()}-{kind.name}")
        self._asked = 0
        message = {
            "type": "load",
            "engine": f"{kind.__module__}:{kind.__name__}",
            "session": session.to_json(),
            "model_path": ensure_model(MODEL),
            "workspace": str(workspace),
        }
        try:
            self.worker.ask(message, timeout=600)
        except BaseException:
            self.worker.kill()
            raise

    def ask(self, fault: str | None) -> dict[str, np.ndarray]:
        self._asked += 1
        directory = self.workspace / f"answer-{self._asked}"
        request = Request(PROMPT, TENSORS, fault=fault)
        message = {"type": "capture", "request": request.to_json(), "directory": str(directory)}
        self.worker.ask(message, timeout=120)
        path = read_capture(directory).tensors_path
        assert path is not None
        return {name: tensor.double().numpy() for name, tensor in load_file(path).items()}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(VllmEngine, marks=pytest.mark.vllm, id="vllm"),
        pytest.param(SglangEngine, marks=pytest.mark.sglang, id="sglang"),
    ],
)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    found = Served(request.param, tmp_path_factory.mktemp("served"))
    yield found
    found.worker.kill()


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OracleEngine]:
    session = Session("oracle", "", MODEL, "float64", "cpu", {})
    engine = OracleEngine(session, ensure_model(MODEL), tmp_path_factory.mktemp("oracle"))
    engine.load()
    yield engine
    engine.close()


@pytest.mark.timeout(900)
def test_a_served_fault_is_the_oracles_and_goes_away(served: Served, oracle: OracleEngine) -> None:
    healthy = served.ask(None)
    for fault in (fault for fault in find_faults(served.name) if not fault.decodes):
        with plant(oracle, fault.name):
            expected = np.asarray(oracle.capture(Request(PROMPT, ("logits",))).tensors["logits"])
        found = served.ask(fault.name)["logits"]
        away = distance(found, healthy["logits"])
        assert away > 5e-5, fault.name
        assert distance(found, expected) < min(1e-4, away / 10), fault.name
    again = served.ask(None)
    assert all(np.array_equal(again[name], value) for name, value in healthy.items())
    with pytest.raises(FaultInapplicable, match="cannot be planted in"):
        served.ask("mask-causal")


def distance(left: np.ndarray, right: np.ndarray) -> float:
    return float(np.linalg.norm(left - right) / np.linalg.norm(right))
