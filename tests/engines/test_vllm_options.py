"""What a vLLM session is started with, decided without vLLM."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from specrunner.engines.base import Capture
from specrunner.engines.vllm import VllmEngine
from specrunner.engines.vllm.options import KV_CACHE_BYTES, EngineSetup, PluginRule, plan_environment, plan_setup
from specrunner.errors import ConfigurationError, ModelUnsupported
from specrunner.requests import Session
from specrunner.spec.model import Decode, Model

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 256,
    "max_position_embeddings": 2048,
}
LLADA2 = LLAMA | {"architectures": ["LLaDA2MoeModelLM"], "block_length": 16}
IN_TREE = frozenset({"LlamaForCausalLM", "BailingMoeV2ForCausalLM"})


def session(dtype: str = "float32", device: str = "cpu", **options: Any) -> Session:
    return Session("vllm", "vllm-cpu", Model(path="m", trust_remote_code=True), dtype, device, options)


def setup(config: dict[str, Any], supported: frozenset[str] = IN_TREE, **options: Any) -> EngineSetup:
    return plan_setup(session(**options), "m", config, supported, has_tokenizer=True)


def test_the_module_imports_neither_torch_nor_vllm() -> None:
    code = (
        "import sys, specrunner.engines.vllm as e; e.VllmEngine.capabilities();"
        "e.VllmEngine.tensor_templates('LlamaForCausalLM');"
        "print([m for m in ('torch', 'vllm', 'transformers', 'numpy') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_a_causal_model_gets_one_forward_a_prompt_and_no_prefix_cache() -> None:
    made = setup(LLAMA)
    assert (made.attention, made.block_length, made.standin) == ("causal", None, None)
    keywords = made.keywords
    assert keywords["max_model_len"] == keywords["max_num_batched_tokens"] == 2048
    assert keywords["enforce_eager"] is True
    assert keywords["enable_prefix_caching"] is False
    assert keywords["enable_chunked_prefill"] is False
    assert "hf_overrides" not in keywords


def test_options_reach_the_engine_as_they_are_and_win() -> None:
    made = setup(LLAMA, attention_backend="CPU_ATTN", enforce_eager=False, seed=3, scheduler_cls="a.B", num_threads=2)
    keywords = made.keywords
    assert keywords["attention_backend"] == "CPU_ATTN"
    assert keywords["enforce_eager"] is False
    assert keywords["seed"] == 3
    assert keywords["scheduler_cls"] == "a.B"
    assert "num_threads" not in keywords
    assert not [name for name in keywords if name.startswith("specrunner_")]


def test_a_draft_that_is_part_of_the_model_is_taken_from_its_revision() -> None:
    """From the default branch, else, whatever code that holds."""

    def speculative(**options: Any) -> Any:
        model = Model(id="owner/name", revision="0" * 40, trust_remote_code=True)
        planned = plan_setup(
            Session("vllm", "vllm-cpu", model, "float32", "cpu", options), "owner/name", LLAMA, IN_TREE, True
        )
        return planned.keywords.get("speculative_config")

    assert speculative(speculative_config={"method": "mtp"}) == {"method": "mtp", "revision": "0" * 40}
    other = {"model": "owner/draft", "revision": "1" * 40}
    assert speculative(speculative_config=other) == other
    assert speculative(speculative_config={"num_speculative_tokens": 1}, spec_model="owner/draft") == {
        "num_speculative_tokens": 1
    }
    assert speculative(spec_method="mtp") == {"revision": "0" * 40}
    assert speculative() is None


@pytest.mark.parametrize(("positions", "expected"), [(512, 512), (131072, 4096), (None, 4096)])
def test_the_model_length_is_bounded(positions: int | None, expected: int) -> None:
    assert setup(LLAMA | {"max_position_embeddings": positions}).keywords["max_model_len"] == expected


def test_the_cache_has_room_for_the_stated_length() -> None:
    # 2 (key, value) * 2 layers * 2 heads * 64 * 4 bytes = 2048 bytes a token
    assert setup(LLAMA).keywords["kv_cache_memory_bytes"] == KV_CACHE_BYTES
    assert setup(LLAMA, max_model_len=2_000_000).keywords["kv_cache_memory_bytes"] == 2048 * (2_000_000 + 512)
    assert setup(LLAMA, kv_cache_memory_bytes=5).keywords["kv_cache_memory_bytes"] == 5


def test_llada2_runs_on_its_causal_parent_in_blocks() -> None:
    made = setup(LLADA2)
    assert (made.attention, made.block_length, made.standin) == ("block_causal", 16, "BailingMoeV2ForCausalLM")
    assert made.keywords["hf_overrides"] == {"architectures": ["BailingMoeV2ForCausalLM"]}
    assert made.keywords["max_num_batched_tokens"] == 16
    assert made.keywords["enable_chunked_prefill"] is True
    assert made.keywords["max_num_seqs"] == 1


def test_a_batch_gives_each_request_a_block_at_a_time() -> None:
    made = setup(LLADA2, max_num_seqs=3)
    wanted = {"max_num_seqs": 3, "max_num_batched_tokens": 48, "long_prefill_token_threshold": 16}
    assert {name: made.keywords[name] for name in wanted} == wanted


def test_a_plugins_scheduler_brings_its_own_rule() -> None:
    plugin = {"scheduler_cls": "vllm_dllm_plugin.scheduler:DllmScheduler"}
    assert VllmEngine.decode_rules({}) == {}
    rules = VllmEngine.decode_rules(plugin)
    assert rules["fallback"] == ("near_best",)
    assert (rules["threshold"], rules["steps"]) == ((0.9,), (None,))
    assert VllmEngine.decode_rules(plugin | {"specrunner_threshold": 0.95})["threshold"] == (0.95,)
    assert [VllmEngine.reveals_passes(options) for options in ({}, plugin)] == [True, False]


def test_what_a_plugin_decodes_by_is_stated_and_reaches_no_engine() -> None:
    assert setup(LLADA2).plugin is None
    made = setup(LLADA2, scheduler_cls="a.B")
    assert (made.block_length, made.plugin) == (None, PluginRule(0.9, 16))
    made = setup(LLADA2, scheduler_cls="a.B", specrunner_threshold=0.5, specrunner_block_length=8)
    assert made.plugin == PluginRule(0.5, 8)
    assert not [name for name in made.keywords if name.startswith("specrunner")]


@pytest.mark.parametrize(
    ("decode", "said"),
    [
        (Decode(8, "low_confidence", 16, 0.95), "threshold 0.95, and the plugin's scheduler with 0.9"),
        (Decode(8, "low_confidence", 32, 0.9), "block_length 32, and the plugin's scheduler with 16"),
    ],
)
def test_a_request_that_a_plugin_would_not_follow_is_refused(tmp_path: Path, decode: Decode, said: str) -> None:
    engine = VllmEngine(session(), "m", tmp_path)
    engine._setup = setup(LLADA2, scheduler_cls="a.B")
    generated: list[Decode] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_generate", lambda _capture, decode, *_rest: generated.append(decode))
        patch.setattr(engine, "eos_ids", set)
        with pytest.raises(ModelUnsupported, match=said):
            engine._decode(Capture(prompt_token_ids=[1]), decode, (), ())
        followed = Decode(8, "low_confidence", 16, 0.9)
        engine._decode(Capture(prompt_token_ids=[1]), followed, (), ())
    assert generated == [followed]


def test_llada2_can_be_asked_to_be_causal() -> None:
    made = setup(LLADA2, specrunner_attention="causal")
    assert (made.attention, made.block_length) == ("causal", None)
    assert made.keywords["max_num_batched_tokens"] == 2048


def test_a_block_length_can_be_stated() -> None:
    assert setup(LLADA2, specrunner_block_length=32).keywords["max_num_batched_tokens"] == 32
    del_stated = {key: value for key, value in LLADA2.items() if key != "block_length"}
    assert setup(del_stated).block_length == 32


def test_a_plugin_that_registered_llada2_is_left_alone() -> None:
    made = setup(
        LLADA2,
        IN_TREE | {"LLaDA2MoeModelLM"},
        scheduler_cls="vllm_dllm_plugin.scheduler:DllmScheduler",
        worker_cls="vllm_dllm_plugin.worker:DllmWorker",
    )
    assert (made.attention, made.standin) == ("engine", None)
    assert made.keywords["scheduler_cls"] == "vllm_dllm_plugin.scheduler:DllmScheduler"
    assert made.keywords["worker_cls"] == "vllm_dllm_plugin.worker:DllmWorker"
    assert "hf_overrides" not in made.keywords


def test_a_users_overrides_are_kept_beside_ours() -> None:
    made = setup(LLADA2, hf_overrides={"rope_theta": 1e4})
    assert made.keywords["hf_overrides"] == {"architectures": ["BailingMoeV2ForCausalLM"], "rope_theta": 1e4}


@pytest.mark.parametrize(
    "options",
    [
        {"specrunner_attention": "sideways"},
        {"specrunner_block_length": 0},
        {"specrunner_block_length": "many"},
        {"specrunner_attention": "block_causal", "scheduler_cls": "a.B"},
        {"scheduler_cls": "a.B", "specrunner_threshold": "high"},
        {"scheduler_cls": "a.B", "specrunner_threshold": 1.5},
        {"scheduler_cls": "a.B", "specrunner_threshold": True},
        {"scheduler_cls": "a.B", "specrunner_block_length": 0},
        {"worker_extension_cls": "a.B"},
        {"hf_overrides": "x"},
    ],
)
def test_a_wrong_option_is_a_configuration_error(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        setup(LLADA2, **options)


@pytest.mark.parametrize(
    "options", [{"max_num_batched_tokens": 64}, {"enable_chunked_prefill": False}, {"long_prefill_token_threshold": 4}]
)
def test_options_that_break_blocks_up_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ModelUnsupported, match="block_causal"):
        setup(LLADA2, **options)


def test_sockets_go_elsewhere_when_the_workspace_is_too_deep_for_them() -> None:
    made = VllmEngine.worker_environment(session(), Path("/tmp") / ("deep" * 20))
    assert made["VLLM_RPC_BASE_PATH"] == made["TMPDIR"] == "/tmp"


def test_the_environment_keeps_everything_in_the_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", "/home/user/hf")
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    workspace = Path("/tmp/workspace-that-is-never-made")
    made = VllmEngine.worker_environment(session(), workspace)
    inside = ("TMPDIR", "VLLM_CACHE_ROOT", "VLLM_RPC_BASE_PATH", "TORCHINDUCTOR_CACHE_DIR", "HF_HOME")
    assert all(Path(made[name]).is_relative_to(workspace) for name in inside)
    assert made["HF_HUB_CACHE"] == "/home/user/hf/hub"
    assert made["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert made["TORCH_COMPILE_DISABLE"] == "1"
    assert made["OMP_NUM_THREADS"] == "1"
    json.dumps(made)


def test_compiling_is_only_switched_off_for_eager_sessions(tmp_path: Path) -> None:
    assert "TORCH_COMPILE_DISABLE" not in plan_environment(session(enforce_eager=False), tmp_path)


def test_a_gpu_session_leaves_the_threads_alone(tmp_path: Path) -> None:
    made = plan_environment(session(device="cuda"), tmp_path)
    assert "OMP_NUM_THREADS" not in made
    assert "VLLM_CPU_OMP_THREADS_BIND" not in made
    assert made["NVIDIA_TF32_OVERRIDE"] == "0"


def test_stated_variables_win(tmp_path: Path) -> None:
    stated = {"VLLM_PLUGINS": "dllm", "VLLM_LOGGING_LEVEL": "INFO", "VLLM_DLLM_DRAFT_SIZE": 32}
    made = plan_environment(session(specrunner_environment=stated, num_threads=3), tmp_path)
    assert made["VLLM_PLUGINS"] == "dllm"
    assert made["VLLM_LOGGING_LEVEL"] == "INFO"
    assert made["VLLM_DLLM_DRAFT_SIZE"] == "32"
    assert made["OMP_NUM_THREADS"] == "3"


def test_capabilities_are_plain() -> None:
    made = VllmEngine.capabilities()
    assert made.environments == ("vllm-cuda", "vllm-cpu")
    assert set(made.dtypes) == {"cpu", "cuda"}
    assert made.install_hint == "specrunner engines install vllm"
