"""Faults in live engines: what they change, that they go away again, and that two engines mean the same by a name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from specrunner.engines import planters
from specrunner.engines.base import Capture, Engine
from specrunner.engines.hf import HfEngine
from specrunner.engines.oracle import OracleEngine
from specrunner.engines.planters import plant
from specrunner.engines.planters.hf_attention import _frequencies, _softmaxes_summed, _turn
from specrunner.engines.planters.hf_experts import Routing
from specrunner.engines.planters.hf_variants import _all_experts, _running_softmax
from specrunner.engines.planters.oracle import PLANTERS as ORACLE
from specrunner.errors import FaultInapplicable
from specrunner.faults.bugs import FAULTS
from specrunner.faults.variants import VARIANTS
from specrunner.models.recipes import ensure_model
from specrunner.requests import Request, Session
from specrunner.spec.model import Decode, Model, Prompt

TEXT = "capital of France:Paris\nreverse stone:enots\n27+77=104\nsort 53102:01235\nreverse river:"
FORWARD = Request(Prompt(text=TEXT, length=54), ("layers.*.output", "layers.*.router.*", "logits"))
DECODE = Request(Prompt(text="The capital of France is "), (), Decode(24, "low_confidence", 16, 0.9, True))
SHARED = [fault for fault in FAULTS if {"hf", "oracle"} <= set(fault.engines)]
ROUNDED = {"rope-frequencies-rounded", "dtype-router-rounded", "dtype-router-bias-rounded"}
"""Faults that round a number: where, and so how much, is each engine's own."""


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Engine]]:
    model = Model(recipe="tiny-llada2", trust_remote_code=True)
    path = ensure_model(model)
    loaded: dict[str, Engine] = {}
    for kind, dtype in ((HfEngine, "float32"), (OracleEngine, "float64")):
        session = Session(kind.name, "", model, dtype, "cpu", {})
        loaded[kind.name] = kind(session, path, tmp_path_factory.mktemp(kind.name))
        loaded[kind.name].load()
    yield loaded
    for engine in loaded.values():
        engine.close()


@pytest.fixture(scope="module")
def healthy(engines: dict[str, Engine]) -> np.ndarray:
    """The oracle's logits without a fault."""
    return arrays(capture(engines["oracle"], None, FORWARD))["logits"]


def capture(engine: Engine, fault: str | None, request: Request) -> Capture:
    with plant(engine, fault):
        return engine.capture(request)


def arrays(taken: Capture) -> dict[str, np.ndarray]:
    return {
        name: tensor.double().numpy() if isinstance(tensor, torch.Tensor) else np.asarray(tensor, dtype=np.float64)
        for name, tensor in taken.tensors.items()
    }


def distance(left: np.ndarray, right: np.ndarray) -> float:
    return float(np.linalg.norm(left - right) / np.linalg.norm(right))


@pytest.mark.parametrize("name", [fault.name for fault in SHARED if not fault.decodes and fault.name not in ROUNDED])
def test_two_engines_with_the_same_fault_compute_the_same(
    engines: dict[str, Engine], healthy: np.ndarray, name: str
) -> None:
    found = {engine: arrays(capture(engines[engine], name, FORWARD))["logits"] for engine in engines}
    assert distance(found["hf"], found["oracle"]) < 1e-5
    least = 0.0 if name == "rope-offset" else 2e-5 if name == "norms-other-eps" else 5e-3
    assert distance(found["oracle"], healthy) >= least


@pytest.mark.parametrize("name", [fault.name for fault in SHARED if fault.decodes])
def test_two_engines_with_the_same_fault_decode_the_same(engines: dict[str, Engine], name: str) -> None:
    found = {engine: capture(engines[engine], name, DECODE) for engine in engines}
    assert found["hf"].output_token_ids == found["oracle"].output_token_ids
    assert found["hf"].facts["trajectory"] == found["oracle"].facts["trajectory"]


@pytest.mark.parametrize("engine", ["hf", "oracle"])
def test_a_fault_goes_away_with_its_request(engines: dict[str, Engine], engine: str) -> None:
    healthy = capture(engines[engine], None, FORWARD)
    for fault in (*FAULTS, *VARIANTS):
        if engine in fault.engines:
            with plant(engines[engine], fault.name):
                pass
    with pytest.raises(RuntimeError, match="in the middle"), plant(engines[engine], "norms-plus-one"):
        raise RuntimeError("in the middle")
    again = capture(engines[engine], None, FORWARD)
    assert all(np.array_equal(arrays(again)[name], value) for name, value in arrays(healthy).items())
    decoded = [capture(engines[engine], fault, DECODE).output_token_ids for fault in (None, "sampler-leftmost", None)]
    assert decoded[0] == decoded[2]


@pytest.mark.slow
def test_variants_are_as_right_as_the_model(engines: dict[str, Engine], healthy: np.ndarray) -> None:
    for variant in VARIANTS:
        for engine in variant.engines:
            assert distance(arrays(capture(engines[engine], variant.name, FORWARD))["logits"], healthy) < 1e-5


def test_planters_that_lack_a_module_are_a_mistake_of_their_own(
    engines: dict[str, Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stranger(HfEngine):
        name = "stranger"

    (tmp_path / "stranger.py").write_text("import no_such_library\n", encoding="utf-8")
    monkeypatch.setattr(planters, "__path__", [str(tmp_path)])
    stranger = Stranger(engines["hf"].session, "", Path())
    with pytest.raises(ModuleNotFoundError, match="no_such_library"), plant(stranger, "mask-causal"):
        pass


def test_what_cannot_be_planted_is_an_error(engines: dict[str, Engine]) -> None:
    with (
        pytest.raises(FaultInapplicable, match="cannot be planted in oracle"),
        plant(engines["oracle"], "mask-zero-one"),
    ):
        pass

    class Stranger(HfEngine):
        name = "stranger"

    stranger = Stranger(engines["hf"].session, "", Path())
    with pytest.raises(FaultInapplicable, match="no fault can be planted in stranger"), plant(stranger, "mask-causal"):
        pass
    other: Any = HfEngine(engines["hf"].session, "", Path())
    other._model = torch.nn.Linear(2, 2)
    with pytest.raises(FaultInapplicable, match="our own LLaDA2, not Linear"), plant(other, "mask-causal"):
        pass


def read_faulty(name: str, experts: int, layers: int, weights: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the first element of each weight as an oracle of that size reads it under a fault."""
    model: Any = SimpleNamespace(
        config=SimpleNamespace(num_experts=experts, num_hidden_layers=layers),
        weights=SimpleNamespace(read=lambda name, shape: weights[name]),
    )
    engine: Any = SimpleNamespace(_model=model)
    with ORACLE[name](engine):
        return {weight: float(model.weights.read(weight, [1])[0]) for weight in weights}


@pytest.mark.parametrize(("experts", "missing"), [(4, 1), (12, 2), (16, 2), (32, 4), (256, 32)])
def test_the_oracle_loses_an_eighth_of_the_experts_of_any_model(experts: int, missing: int) -> None:
    name = "model.layers.1.mlp.experts.{}.down_proj.weight"
    found = read_faulty("experts-shard-missing", experts, 2, {name.format(i): np.ones(1) for i in range(experts)})
    assert list(found.values()) == [1.0] * (experts - missing) + [0.0] * missing


@pytest.mark.parametrize("layers", [2, 4, 20])
def test_the_oracle_exchanges_the_last_two_attentions_of_any_model(layers: int) -> None:
    names = [f"model.layers.{layer}.attention.dense.weight" for layer in range(layers)]
    weights = {name: np.full(1, float(layer)) for layer, name in enumerate(names)}
    found = read_faulty("layers-attention-exchanged", 32, layers, weights)
    assert list(found.values()) == [*range(layers - 2), layers - 1, layers - 2]
    with pytest.raises(FaultInapplicable, match="one layer's attention"):
        read_faulty("layers-attention-exchanged", 32, 1, {})


def test_planters_make_their_tensors_where_the_model_is() -> None:
    """On torch's device without numbers: it refuses, like a GPU, to compute with tensors of the CPU."""
    q, k, mask = (torch.empty(size, device="meta") for size in ((1, 4, 8, 6), (1, 2, 8, 6), (1, 1, 8, 8)))
    assert _running_softmax(None, q, k, k, mask, 1.0, 4).device.type == "meta"
    assert _softmaxes_summed(None, q, k, k, mask, 1.0, 4).device.type == "meta"
    gate: Any = SimpleNamespace(weight=torch.empty(8, 6, device="meta"), expert_bias=torch.empty(8, device="meta"))
    gate.experts_per_token, gate.groups, gate.kept_groups, gate.routed_scaling_factor = 2, 4, 2, 2.5
    ids, weights, _ = Routing(group="best").route(gate, torch.empty(5, 6, device="meta"))
    assert ids.device.type == weights.device.type == "meta"
    mix: Any = SimpleNamespace(experts=[torch.nn.Identity()] * 8)
    assert _all_experts(None)(mix, torch.empty(5, 6, device="meta"), ids, weights).device.type == "meta"
    frequencies = _frequencies(SimpleNamespace(rotary_dim=4, theta=1e4))
    assert _turn(torch.empty(1, 5, device="meta"), frequencies)[0].device.type == "meta"
