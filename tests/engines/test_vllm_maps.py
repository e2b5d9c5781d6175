"""vLLM's name maps: complete, and honest about how that engine fuses and splits."""

from __future__ import annotations

import pytest

from specrunner.engines.name_maps import NameMap, load_maps
from specrunner.spec.tensor_names import TEMPLATES

ROUTER = {"layers.{i}.router.logits", "layers.{i}.router.expert_ids", "layers.{i}.router.expert_weights"}
PASSES = "passes.{i}.logits"
DENSE = {"gemma3", "llama", "qwen3"}
MAPS = {name_map.family: name_map for name_map in load_maps("vllm").values()}


@pytest.fixture(params=sorted(MAPS))
def name_map(request: pytest.FixtureRequest) -> NameMap:
    return MAPS[request.param]


def test_every_name_of_the_vocabulary_is_there(name_map: NameMap) -> None:
    expected = set(TEMPLATES) - {PASSES} - (ROUTER if name_map.family in DENSE else set())
    assert set(name_map.entries) == expected


def test_the_residual_is_added(name_map: NameMap) -> None:
    assert name_map.entries["layers.{i}.output"].sum == (0, 1)


def test_slices_of_tensor_parallel_ranks_are_gathered(name_map: NameMap) -> None:
    for part in ("query", "key", "value"):
        entry = name_map.entries[f"layers.{{i}}.attention.{part}"]
        # OLMoE norms all heads at once, on every rank.
        whole = name_map.family == "olmoe" and part != "value"
        assert entry.gather == (None if whole else "columns")
        assert entry.part in (part, None)


def test_queries_and_keys_are_what_enters_rope(name_map: NameMap) -> None:
    normed = {"bailing", "gemma3", "olmoe", "qwen3", "qwen3_moe"}
    for part in ("query", "key"):
        entry = name_map.entries[f"layers.{{i}}.attention.{part}"]
        assert (entry.part is None) == (name_map.family in normed)
        assert ("norm" in entry.module) == (name_map.family in normed)


def test_final_norm_and_logits_come_from_outside_the_compiled_part(name_map: NameMap) -> None:
    assert name_map.entries["final_norm"].module == ""
    assert name_map.entries["logits"].method == "compute_logits"


def test_architectures() -> None:
    families = {architecture: name_map.family for architecture, name_map in load_maps("vllm").items()}
    assert families["LLaDA2MoeModelLM"] == families["BailingMoeV2ForCausalLM"] == "bailing"
    assert families["LlamaForCausalLM"] == families["MistralForCausalLM"] == families["Qwen2ForCausalLM"] == "llama"
    for name in ("Qwen3", "Qwen3Moe", "Mixtral", "Ernie4_5_Moe", "GptOss", "Olmoe"):
        assert f"{name}ForCausalLM" in families


def test_llada2_alone_denoises() -> None:
    assert {name_map.family for name_map in MAPS.values() if "low_confidence" in name_map.algorithms} == {"bailing"}
