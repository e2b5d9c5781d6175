"""Every name map of `hf` against what Transformers itself says about the same forward."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from specrunner.catalogue.recipes import RECIPES
from specrunner.engines.hf import HfEngine
from specrunner.engines.name_maps import load_maps
from specrunner.requests import Request, Session
from specrunner.spec.model import Model, Prompt

IDS = (3, 14, 159, 26, 5, 35, 8, 97, 93, 238, 46, 264, 33, 83, 27, 95, 0, 2, 88, 41, 97, 16)
SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {"sliding_window": 8},
    "Qwen2": {},
    "Qwen3": {},
    "Gemma3": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "Olmoe": {"num_experts": 8, "num_experts_per_tok": 3, "num_key_value_heads": 4, "head_dim": None},
    "Qwen3Moe": {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "mlp_only_layers": [1]},
}


def random_checkpoint(family: str, folder: Path) -> Model:
    """Save a randomly initialised model whose norms are not all one."""
    name = {"Gemma3": "Gemma3TextConfig"}.get(family, f"{family}Config")
    values = {key: value for key, value in (SIZES | CONFIGS[family]).items() if value is not None}
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, name)(**values))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=0.8 if parameter.ndim == 1 else 0.0, std=0.15)
    model.save_pretrained(folder)
    return Model(path=str(folder))


# DiffusionGemma has two stacks over the same weights, and tests of its own (test_diffusion_gemma.py).
TINY = tuple(name for name in RECIPES if name.startswith("tiny-") and name != "tiny-diffusion-gemma")


@pytest.fixture(scope="module", params=[*CONFIGS, *TINY])
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, ensure: Callable[[Model], str]
) -> HfEngine:
    if request.param in CONFIGS:
        model = random_checkpoint(request.param, tmp_path_factory.mktemp(request.param))
    else:
        model = Model(recipe=request.param, trust_remote_code=RECIPES[request.param].trust_remote_code)
    session = Session("hf", "", model, "float32", "cpu")
    loaded = HfEngine(session, ensure(model), tmp_path_factory.mktemp("workspace"))
    loaded.load()
    return loaded


@pytest.fixture(scope="module")
def tensors(engine: HfEngine) -> dict[str, torch.Tensor]:
    return engine.capture(Request(Prompt(token_ids=IDS), ("**",))).tensors


@pytest.fixture(scope="module")
def own(engine: HfEngine) -> Any:
    """What Transformers reports of the same forward by its own means."""
    with torch.no_grad():
        return engine._model(input_ids=torch.tensor([IDS]), output_hidden_states=True, output_router_logits=True)


def layers_of(tensors: dict[str, torch.Tensor]) -> int:
    return sum(name.startswith("layers.") and name.count(".") == 2 for name in tensors)


def test_every_architecture_of_the_maps_is_tried() -> None:
    tried = {f"{family}ForCausalLM" for family in CONFIGS} | {recipe.architecture for recipe in RECIPES.values()}
    assert set(load_maps("hf")) == tried


def test_residual_stream_is_transformers_hidden_states(tensors: dict[str, torch.Tensor], own: Any) -> None:
    count = layers_of(tensors)
    assert count == len(own.hidden_states) - 1
    assert torch.equal(tensors["embeddings"], own.hidden_states[0][0])
    for index in range(count - 1):
        assert torch.equal(tensors[f"layers.{index}.output"], own.hidden_states[index + 1][0])


def test_the_stack_ends_in_the_final_norm_and_the_logits(
    engine: HfEngine, tensors: dict[str, torch.Tensor], own: Any
) -> None:
    last = tensors[f"layers.{layers_of(tensors) - 1}.output"]
    with torch.no_grad():
        assert torch.allclose(tensors["final_norm"], engine._model.model.norm(last[None])[0], atol=1e-6)
    assert torch.equal(tensors["logits"], own.logits[0])


def test_a_layer_adds_attention_and_feed_forward(tensors: dict[str, torch.Tensor]) -> None:
    before = tensors["embeddings"]
    for index in range(layers_of(tensors)):
        layer = f"layers.{index}."
        after = before + tensors[layer + "attention.output"] + tensors[layer + "mlp.output"]
        assert torch.allclose(after, tensors[layer + "output"], atol=2e-6, rtol=1e-6)
        before = tensors[layer + "output"]


def test_query_and_key_are_what_enters_rope(
    engine: HfEngine, tensors: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    modeling = sys.modules[type(engine._model).__module__]
    entered: list[torch.Tensor] = []
    name = "rotate" if hasattr(modeling, "rotate") else "apply_rotary_pos_emb"
    original = getattr(modeling, name)

    def spy(*states: torch.Tensor, **options: Any) -> Any:
        entered.extend(states[: 1 if name == "rotate" else 2])
        return original(*states, **options)

    monkeypatch.setattr(modeling, name, spy)
    with torch.no_grad():
        engine._model(input_ids=torch.tensor([IDS]))
    assert len(entered) == 2 * layers_of(tensors)
    for index, (query, key) in enumerate(zip(entered[::2], entered[1::2], strict=True)):
        for part, states in (("query", query), ("key", key)):
            expected = states[0].transpose(0, 1).reshape(len(IDS), -1)
            assert torch.equal(tensors[f"layers.{index}.attention.{part}"], expected)


def test_value_is_what_the_attention_averages(engine: HfEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that is alone sees itself alone, so its attention output is its own value, projected."""
    config = engine._model.config
    for module in engine._model.modules():
        if hasattr(module, "sinks"):
            monkeypatch.setattr(module.sinks, "data", torch.full_like(module.sinks, -1e9))
    tensors = engine.capture(Request(Prompt(token_ids=IDS, length=1), ("layers.*.attention.*",))).tensors
    for index, layer in enumerate(engine._model.model.layers):
        value = tensors[f"layers.{index}.attention.value"].view(config.num_key_value_heads, -1)
        value = value.repeat_interleave(config.num_attention_heads // config.num_key_value_heads, dim=0).view(1, 1, -1)
        with torch.no_grad():
            expected = layer.attention.dense(value) if hasattr(layer, "attention") else layer.self_attn.o_proj(value)
            if hasattr(layer, "post_feedforward_layernorm"):
                expected = layer.post_attention_layernorm(expected)
        assert torch.allclose(tensors[f"layers.{index}.attention.output"], expected[0], atol=1e-6)


def test_router_tensors_belong_together(engine: HfEngine, tensors: dict[str, torch.Tensor], own: Any) -> None:
    routers = [name.removesuffix(".logits") for name in tensors if name.endswith("router.logits")]
    if not routers:
        assert not any(".router." in name for name in tensors)
        return
    reported = getattr(own, "router_logits", None)
    if reported is not None:
        assert len(reported) == len(routers)
        for router, logits in zip(routers, reported, strict=True):
            assert torch.equal(tensors[f"{router}.logits"], logits)
    for router in routers:
        ids, weights = tensors[f"{router}.expert_ids"], tensors[f"{router}.expert_weights"]
        assert ids.dtype == torch.int64
        assert bool((ids[:, 1:] > ids[:, :-1]).all())
        logits = tensors[f"{router}.logits"].gather(1, ids)
        # Whatever the score function is, it is monotonous: within a token, weights rank as logits do.
        assert torch.equal(weights.argsort(dim=1), logits.argsort(dim=1))


def test_dense_layers_have_no_router(engine: HfEngine, tensors: dict[str, torch.Tensor]) -> None:
    for index, layer in enumerate(engine._model.model.layers):
        sparse = hasattr(layer.mlp, "experts")
        assert (f"layers.{index}.router.logits" in tensors) == sparse
