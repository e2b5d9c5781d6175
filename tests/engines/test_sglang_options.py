"""What a SGLang session is started with, decided without SGLang."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from specrunner.engines.sglang.adapter import SglangEngine, list_patches, write_algorithm
from specrunner.engines.sglang.options import SOCKET_PATH_LIMIT, SglangSetup, plan_environment, plan_setup
from specrunner.errors import ModelUnsupported
from specrunner.requests import Session
from specrunner.spec.model import Model

CAUSAL, DIFFUSION = ("greedy",), ("low_confidence",)


def session(dtype: str = "float32", device: str = "cpu", **options: Any) -> Session:
    return Session("sglang", "sglang-cpu", Model(path="m", trust_remote_code=True), dtype, device, options)


def setup(config: dict[str, Any] | None = None, algorithms: tuple[str, ...] = CAUSAL, **options: Any) -> SglangSetup:
    return plan_setup(session(**options), "m", config or {}, algorithms)


def test_the_module_imports_neither_torch_nor_sglang() -> None:
    code = (
        "import sys, specrunner.engines.sglang as e; e.SglangEngine.capabilities();"
        "e.SglangEngine.tensor_templates('LlamaForCausalLM');"
        "print([m for m in ('torch', 'sglang', 'transformers', 'numpy') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_a_causal_model_needs_no_scheduler() -> None:
    made = setup()
    assert made.mode == "runner"
    assert made.keywords["disable_radix_cache"] is True
    assert made.keywords["attention_backend"] == "torch_native"
    assert (made.keywords["dtype"], made.keywords["device"]) == ("float32", "cpu")
    assert "dllm_algorithm" not in made.keywords


@pytest.mark.parametrize("option", ["tp_size", "pp_size", "dp_size"])
def test_several_ranks_need_the_engine(option: str) -> None:
    assert setup(**{option: 2}).mode == "engine"
    assert setup(**{option: 1}).mode == "runner"


def test_an_idle_scheduler_sleeps_unless_told_otherwise() -> None:
    assert setup().keywords["sleep_on_idle"] is True
    assert setup(sleep_on_idle=False).keywords["sleep_on_idle"] is False


def test_the_mode_can_be_chosen() -> None:
    assert setup(specrunner_mode="engine").mode == "engine"
    with pytest.raises(ModelUnsupported, match="'server'"):
        setup(specrunner_mode="server")
    with pytest.raises(ModelUnsupported, match="need SGLang's scheduler"):
        setup(algorithms=DIFFUSION, specrunner_mode="runner")


def test_other_options_go_to_sglang_as_they_are() -> None:
    made = setup(attention_backend="triton", chunked_prefill_size=64, disable_radix_cache=False, num_threads=2)
    assert made.keywords["attention_backend"] == "triton"
    assert made.keywords["chunked_prefill_size"] == 64
    assert made.keywords["disable_radix_cache"] is False
    assert not {"num_threads", "specrunner_mode"} & set(made.keywords)


def test_sglang_chooses_attention_and_cache_on_a_gpu() -> None:
    assert not {"attention_backend", "max_total_tokens"} & set(setup(device="cuda").keywords)


@pytest.mark.parametrize(
    ("config", "options", "length"),
    [
        ({}, {}, 32),
        ({"block_length": 16}, {}, 16),
        ({"block_length": 16}, {"specrunner_block_length": 8}, 8),
        ({"block_length": 16}, {"dllm_algorithm_config": {"block_size": 4}}, 4),
    ],
)
def test_the_block_length_is_the_options_then_the_models_then_sglangs(
    config: dict[str, Any], options: dict[str, Any], length: int
) -> None:
    made = setup(config, DIFFUSION, **options)
    assert (made.mode, made.block_length) == ("engine", length)
    assert made.algorithm is not None and made.algorithm["block_size"] == length
    assert made.keywords["dllm_algorithm"] == "LowConfidence"
    assert "dllm_algorithm_config" not in made.keywords


def test_a_file_of_the_users_own_is_read(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("threshold: 0.5\nblock_size: 8\n")
    made = setup({}, DIFFUSION, dllm_algorithm_config=str(file))
    assert made.algorithm == {"threshold": 0.5, "block_size": 8}
    assert yaml.safe_load(Path(write_algorithm(made.algorithm, tmp_path)).read_text()) == made.algorithm


def test_a_block_length_for_a_causal_model_is_refused() -> None:
    with pytest.raises(ModelUnsupported, match="does not decode by block diffusion"):
        setup(specrunner_block_length=16)


def test_patches_are_stated() -> None:
    assert list_patches(setup()) == []
    tiny = list_patches(setup({"mask_token_id": 257}, DIFFUSION))
    assert "mask token 257" in tiny[0] and "156895" in tiny[0]
    real = list_patches(setup({"mask_token_id": 156895}, DIFFUSION))
    assert real == tiny[1:]


def test_everything_is_kept_in_the_workspace(tmp_path: Path) -> None:
    variables = plan_environment(session(num_threads=3, specrunner_environment={"SGLANG_X": 1}), tmp_path)
    for name in ("HF_MODULES_CACHE", "SGLANG_CACHE_DIR", "TRITON_CACHE_DIR", "TMPDIR"):
        assert Path(variables[name]).is_relative_to(tmp_path)
    assert Path(variables["TMPDIR"]).is_dir()
    assert (variables["OMP_NUM_THREADS"], variables["SGLANG_X"]) == ("3", "1")


def test_stand_ins_are_for_a_cpu(tmp_path: Path) -> None:
    on_cpu = plan_environment(session(), tmp_path)
    assert on_cpu["SGLANG_USE_CPU_ENGINE"] == "1"
    assert {entry.name for entry in Path(on_cpu["PYTHONPATH"]).iterdir()} >= {"torchvision", "sgl_kernel"}
    on_gpu = plan_environment(session(device="cuda"), tmp_path)
    assert not {"SGLANG_USE_CPU_ENGINE", "PYTHONPATH", "TORCHDYNAMO_DISABLE"} & set(on_gpu)


def test_a_workspace_too_deep_for_sockets_is_left_alone(tmp_path: Path) -> None:
    assert "TMPDIR" not in plan_environment(session(), tmp_path / ("x" * SOCKET_PATH_LIMIT))


def test_capabilities() -> None:
    made = SglangEngine.capabilities()
    assert made.environments == ("sglang-cuda", "sglang-cpu")
    assert made.install_hint == "specrunner engines install sglang"
    assert set(made.algorithms) == {"greedy", "low_confidence"}
    assert "passes.{i}.logits" in (SglangEngine.tensor_templates("LLaDA2MoeModelLM") or ())
    assert "passes.{i}.logits" not in (SglangEngine.tensor_templates("LlamaForCausalLM") or ())
    assert SglangEngine.tensor_templates("NoSuchModel") is None


@pytest.mark.parametrize(("stated", "used"), [(None, 156895), (257, 257), (0, 0)])
def test_the_mask_token_is_the_checkpoint_s_else_sglang_s(stated: int | None, used: int) -> None:
    assert setup({"mask_token_id": stated}, DIFFUSION).read_mask_id() == used
