"""SGLang's name maps: complete, and honest about how that engine fuses and splits."""

from __future__ import annotations

import pytest

from specrunner.engines.name_maps import NameMap, load_maps
from specrunner.spec.tensor_names import TEMPLATES

ROUTER = {"layers.{i}.router.logits", "layers.{i}.router.expert_ids", "layers.{i}.router.expert_weights"}
PASSES = "passes.{i}.logits"
DENSE = {"llama", "qwen3"}
NORMED = {"qwen3", "qwen3_moe", "olmoe", "bailing", "llada2"}
SUMMED_BY_SGLANG = {"ernie4_5_moe", "olmoe"}
MAPS = {name_map.family: name_map for name_map in load_maps("sglang").values()}


@pytest.fixture(params=sorted(MAPS))
def name_map(request: pytest.FixtureRequest) -> NameMap:
    return MAPS[request.param]


def test_every_name_of_the_vocabulary_is_there(name_map: NameMap) -> None:
    expected = set(TEMPLATES) - {PASSES} - (ROUTER if name_map.family in DENSE else set())
    assert set(name_map.entries) == expected


def test_a_layers_output_is_the_residual_that_the_next_norm_returns(name_map: NameMap) -> None:
    points = {point.name: point for point in name_map.hook_points(3)}
    assert points["layers.0.output"].module == "model.layers.1.input_layernorm"
    assert points["layers.1.output"].module == "model.layers.2.input_layernorm"
    assert points["layers.2.output"].module == points["final_norm"].module == "model.norm"
    assert {points[f"layers.{layer}.output"].entry.index for layer in range(3)} == {1}
    assert points["final_norm"].entry.index == 0


def test_queries_and_keys_are_what_enters_rope(name_map: NameMap) -> None:
    for index, part in enumerate(("query", "key"), start=1):
        entry = name_map.entries[f"layers.{{i}}.attention.{part}"]
        if name_map.family in NORMED:
            assert (entry.of, entry.index, entry.part) == ("input", index, None)
            assert entry.module.endswith(".rotary_emb")
        else:
            assert (entry.of, entry.index, entry.part) == ("output", 0, part)


def test_tensor_parallel_ranks_are_put_together(name_map: NameMap) -> None:
    for part in ("query", "key", "value"):
        assert name_map.entries[f"layers.{{i}}.attention.{part}"].gather == "columns"
    for name in ("layers.{i}.attention.output", "layers.{i}.mlp.output"):
        assert name_map.entries[name].gather == (None if name_map.family in SUMMED_BY_SGLANG else "sum")


def test_layers_without_experts_are_allowed_where_there_are_any(name_map: NameMap) -> None:
    optional = {entry.optional for name, entry in name_map.entries.items() if name in ROUTER}
    assert optional in (set(), {name_map.family in {"qwen3_moe", "bailing", "llada2", "ernie4_5_moe"}})


def test_logits_are_those_that_sglang_computes(name_map: NameMap) -> None:
    entry = name_map.entries["logits"]
    assert (entry.module, entry.method) == ("logits_processor", "_get_logits")


def test_architectures() -> None:
    families = {architecture: name_map.family for architecture, name_map in load_maps("sglang").items()}
    assert families["LlamaForCausalLM"] == families["MistralForCausalLM"] == families["Qwen2ForCausalLM"] == "llama"
    assert families["LLaDA2MoeModelLM"] == "llada2"
    assert families["BailingMoeV2ForCausalLM"] == "bailing"
    for name in ("Qwen3", "Qwen3Moe", "Mixtral", "Ernie4_5_Moe", "GptOss", "Olmoe"):
        assert f"{name}ForCausalLM" in families


def test_llada2_alone_denoises() -> None:
    assert {name_map.family for name_map in MAPS.values() if "low_confidence" in name_map.algorithms} == {"llada2"}
