"""The planters that vLLM and SGLang share, on a stand-in with their names: edits, restores, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from specrunner.engines.planters.served import CHANGES, PlantedFault
from specrunner.engines.planters.sglang import PLANTERS as SGLANG
from specrunner.engines.planters.vllm import PLANTERS as VLLM
from specrunner.engines.sglang.notes import Note, Order
from specrunner.engines.sglang.plugin import Observer
from specrunner.errors import FaultInapplicable

Tensor = torch.Tensor


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(4), requires_grad=False)
        self.variance_epsilon = 1e-6

    def forward(self, hidden: Tensor, residual: Tensor | None = None) -> Any:
        total = hidden if residual is None else hidden + residual
        normed = total * (total.square().mean(-1, keepdim=True) + self.variance_epsilon).rsqrt() * self.weight
        return normed if residual is None else (normed, total)


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w13_weight = nn.Parameter(torch.rand(8, 6, 4), requires_grad=False)
        self.w2_weight = nn.Parameter(torch.rand(8, 4, 3), requires_grad=False)


class Head(nn.Module):
    def _get_logits(self, hidden: Tensor) -> Tensor:
        return hidden @ torch.arange(20.0).view(4, 5)

    def forward(self, hidden: Tensor) -> Tensor:
        return self._get_logits(hidden)


class Attention(nn.Module):
    def forward(self, hidden: Tensor) -> Tensor:
        cosine = self.rotary_emb.cos_sin_cache[:4, 4:]
        result: Tensor = self.query_layernorm(hidden) + 2 * self.key_layernorm(hidden) @ cosine
        return result


class Layer(nn.Module):
    def forward(self, hidden: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        hidden, residual = self.input_layernorm(hidden, residual)
        hidden = self.attention(hidden)
        hidden, residual = self.post_attention_layernorm(hidden, residual)
        weight = self.mlp.experts.routed.w2_weight[:, :, 0] + self.mlp.experts.routed.w13_weight[:, 0]
        ranks = torch.arange(8.0)[:, None] * (1 + self.mlp.gate.expert_bias[:, None])
        return self.mlp.shared_experts(hidden) + (weight * ranks).sum(0), residual


def make_layer() -> nn.Module:
    layer = Layer()
    layer.input_layernorm, layer.post_attention_layernorm = Norm(), Norm()
    layer.attention, layer.mlp = Attention(), nn.Module()
    layer.attention.query_layernorm, layer.attention.key_layernorm = Norm(), Norm()
    layer.mlp.gate, layer.mlp.experts = nn.Module(), nn.Module()
    layer.mlp.gate.expert_bias = nn.Parameter(torch.rand(8), requires_grad=False)
    layer.mlp.experts.routed = Experts()
    layer.mlp.shared_experts = nn.Linear(4, 4)
    return layer


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.word_embeddings = nn.Identity()
        self.model.layers = nn.ModuleList(make_layer() for _ in range(2))
        self.model.norm = Norm()
        self.logits_processor = Head()
        with torch.inference_mode():  # where vLLM makes some of its tensors
            rotary = nn.Module()
            rotary.register_buffer("cos_sin_cache", torch.rand(6, 8))
        for layer in self.model.layers:
            layer.attention.rotary_emb = rotary

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.model.word_embeddings(hidden)
        residual = torch.zeros_like(hidden)
        for layer in self.model.layers:
            hidden, residual = layer(hidden, residual)
        result: Tensor = self.logits_processor(self.model.norm(hidden, residual)[0])
        return result


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


@pytest.mark.parametrize("name", CHANGES)
def test_a_fault_changes_the_result_and_leaves_every_bit_as_it_was(model: Model, name: str) -> None:
    hidden = torch.rand(3, 4)
    state = {key: (tensor.data_ptr(), tensor.clone()) for key, tensor in model.state_dict().items()}
    with torch.inference_mode():
        healthy = model(hidden)
        fault = PlantedFault(model, name)
        assert not torch.equal(model(hidden), healthy)
        fault.check()
        fault.remove()
        assert torch.equal(model(hidden), healthy)
    for key, tensor in model.state_dict().items():
        assert (tensor.data_ptr(), True) == (state[key][0], torch.equal(tensor, state[key][1]))
    assert not any("forward" in vars(module) or "_get_logits" in vars(module) for module in model.modules())


def test_what_a_fault_would_leave_as_it_is_is_an_error(model: Model) -> None:
    for layer in model.model.layers:  # type: ignore[union-attr]
        layer.mlp.gate.expert_bias.zero_()
        layer.input_layernorm.weight.copy_(layer.post_attention_layernorm.weight)
    for name in ("routing-bias-ignored", "norms-exchanged"):
        with pytest.raises(FaultInapplicable, match="changes nothing: a tensor keeps its values"):
            PlantedFault(model, name)
    with pytest.raises(FaultInapplicable, match="has no module"):
        PlantedFault(nn.Linear(2, 2), "qk_norm-dropped")
    with pytest.raises(FaultInapplicable, match="has no parameter"):
        PlantedFault(nn.Linear(2, 2), "experts-shard-missing")
    with pytest.raises(FaultInapplicable, match="mask-causal cannot be planted in Model"):
        PlantedFault(model, "mask-causal")


def test_a_fault_that_fails_half_way_leaves_nothing_behind(model: Model) -> None:
    model.model.norm.variance_epsilon = 1e-5  # type: ignore[union-attr]
    with pytest.raises(FaultInapplicable, match="variance_epsilon is 1e-05 already"):
        PlantedFault(model, "norms-other-eps")
    assert model.model.layers[0].input_layernorm.variance_epsilon == 1e-6  # type: ignore[union-attr,index]


def test_a_method_that_no_forward_calls_is_an_error(model: Model) -> None:
    fault = PlantedFault(model, "shared_expert-dropped")
    with pytest.raises(FaultInapplicable, match="was not reached: nothing called forward of Linear 0"):
        fault.check()


def test_vllm_tells_every_rank_and_takes_the_fault_out_whatever_happens() -> None:
    calls: list[tuple[str, ...]] = []

    def rpc(method: str, args: tuple[str, ...] = ()) -> list[str | None]:
        calls.append((method, *args))
        return [None, "was not reached" if method == "specrunner_unplant" else None]

    llm = SimpleNamespace(collective_rpc=rpc, reset_prefix_cache=lambda: calls.append(("reset",)))
    engine: Any = SimpleNamespace(_llm=llm)
    with pytest.raises(RuntimeError, match="in the middle"), VLLM["norms-plus-one"](engine):
        raise RuntimeError("in the middle")
    assert calls == [("specrunner_plant", "norms-plus-one"), ("specrunner_unplant",), ("reset",)]
    with pytest.raises(FaultInapplicable, match="was not reached"), VLLM["norms-plus-one"](engine):
        pass


def test_sglang_names_the_fault_while_the_request_runs() -> None:
    engine: Any = SimpleNamespace(setup=SimpleNamespace(keywords={"disable_radix_cache": True}), fault=None)
    with SGLANG["norms-plus-one"](engine):
        assert engine.fault == "norms-plus-one"
    assert engine.fault is None
    engine.setup.keywords["disable_radix_cache"] = False
    with pytest.raises(FaultInapplicable, match="radix cache"), SGLANG["norms-plus-one"](engine):
        pass


def test_sglangs_observer_keeps_a_fault_for_one_order(model: Model) -> None:
    orders: list[Order | None] = [None]
    notes: list[Note] = []
    observer = Observer(lambda: orders[-1], notes.append)
    runner = SimpleNamespace(is_draft_worker=False, model=model)
    hidden = torch.rand(3, 4)

    def run(order: Order | None) -> Tensor:
        orders.append(order)
        with torch.inference_mode():
            result: Tensor = observer.forward(lambda _runner, batch: model(batch), runner, hidden)
        return result

    healthy = run(None)
    faulty = run(Order(1, (), 3, fault="norms-plus-one"))
    assert not torch.equal(faulty, healthy)
    assert torch.equal(run(orders[-1]), faulty)
    assert torch.equal(run(None), faulty)  # a decode step of the same request
    assert torch.equal(run(Order(2, (), 3)), healthy) and not notes
    assert torch.equal(run(Order(3, (), 3, fault="mask-causal")), healthy)
    assert [note.facts["kind"] for note in notes] == ["fault-inapplicable"]


def test_a_fault_for_which_the_model_has_no_part_is_not_planted(model: Model) -> None:
    for module in model.modules():
        if isinstance(module, Norm):
            del module.variance_epsilon
    with pytest.raises(FaultInapplicable, match="norms-other-eps changes nothing: Model has no such part"):
        PlantedFault(model, "norms-other-eps")
