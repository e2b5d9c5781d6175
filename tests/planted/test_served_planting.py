"""Faults in vLLM and SGLang: the same as in the oracle, and gone after their request."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from specrunner.engines.oracle import OracleEngine
from specrunner.engines.planters import plant
from specrunner.engines.sglang import SglangEngine
from specrunner.engines.vllm import VllmEngine
from specrunner.errors import FaultInapplicable
from specrunner.faults.catalogue import find_faults
from specrunner.models.recipes import ensure_model
from specrunner.requests import Request, Session
from specrunner.spec.model import Model, Prompt
from tests.engines.served import Served, find_python

MODEL = Model(recipe="tiny-llada2-unscaled", trust_remote_code=True)
PROMPT = Prompt(text="capital of France:Paris\nreverse stone:enots\nThe capital of Peru is ", length=25)
TENSORS = ("layers.*.output", "logits")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(VllmEngine, marks=pytest.mark.vllm, id="vllm"),
        pytest.param(SglangEngine, marks=pytest.mark.sglang, id="sglang"),
    ],
)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    if not find_python(request.param):
        pytest.skip(f"{request.param.name} is not installed: specrunner engines install {request.param.name}")
    found = Served(request.param, MODEL, tmp_path_factory.mktemp("served"))
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
    healthy = ask(served)
    for fault in (fault for fault in find_faults(served.kind.name) if not fault.decodes):
        with plant(oracle, fault.name):
            expected = np.asarray(oracle.capture(Request(PROMPT, ("logits",))).tensors["logits"])
        found = ask(served, fault.name)["logits"]
        away = distance(found, healthy["logits"])
        assert away > 5e-5, fault.name
        assert distance(found, expected) < min(1e-4, away / 10), fault.name
    again = ask(served)
    assert all(np.array_equal(again[name], value) for name, value in healthy.items())
    with pytest.raises(FaultInapplicable, match="cannot be planted in"):
        ask(served, "mask-causal")


def ask(served: Served, fault: str | None = None) -> dict[str, np.ndarray]:
    return {name: tensor.double().numpy() for name, tensor in served.tensors(PROMPT, TENSORS, fault=fault).items()}


def distance(left: np.ndarray, right: np.ndarray) -> float:
    return float(np.linalg.norm(left - right) / np.linalg.norm(right))
