"""vLLM's failures in one line, with the cause from the log where vLLM hides it."""

from __future__ import annotations

from pathlib import Path

import pytest

from specrunner.engines.vllm.failures import explain_failure, find_cause, first_line, translate_failures
from specrunner.engines.vllm.subject import check_device, check_model_class, choose_map
from specrunner.errors import (
    CapabilityMissing,
    EngineError,
    EngineOutOfMemory,
    ModelUnavailable,
    ModelUnsupported,
    WorkerDied,
)

LOG = """\
(Worker pid=12) ERROR 01-01 [multiproc.py:9] WorkerProc failed to start.
(Worker pid=12) ERROR 01-01 [multiproc.py:9] Traceback (most recent call last):
(Worker pid=12) ERROR 01-01 [multiproc.py:9]   File "x.py", line 3, in load
(Worker pid=12) ERROR 01-01 [multiproc.py:9] safetensors_rust.SafetensorError: Error while deserializing header
Traceback (most recent call last):
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""


class EngineDeadError(Exception):
    """Named as vLLM's."""


class SafetensorError(Exception):
    """Named as safetensors'."""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "worker.log"
    path.write_text(LOG, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (
            ValueError("To serve at least one request ... larger than the available KV cache memory (0.00 GiB)."),
            EngineOutOfMemory,
            "key-value cache",
        ),
        (ValueError("No available memory for the cache blocks. Try more."), EngineOutOfMemory, "key-value cache"),
        (MemoryError(), EngineOutOfMemory, "out of memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), EngineOutOfMemory, "out of memory"),
        (ValueError("Model architectures ['X'] are not supported for now."), ModelUnsupported, "['X'] are not"),
        (ValueError("loading needs you to set trust_remote_code=True"), ModelUnsupported, "code of its own"),
        (SafetensorError("Error while deserializing header"), ModelUnavailable, "deserializing"),
        (ValueError("Unterminated string starting at: line 1 column 9 (char 8)"), ModelUnavailable, "Unterminated"),
        (OSError("no file named config.json"), ModelUnavailable, "config.json"),
        (TypeError("got an unexpected keyword argument 'colour'"), ModelUnsupported, "colour"),
        (RuntimeError("something else"), EngineError, "RuntimeError: something else"),
        (EngineDeadError("EngineCore encountered an issue. See stack trace"), WorkerDied, "SafetensorError"),
        (RuntimeError("Engine core initialization failed. See root cause above."), ModelUnavailable, "deserializing"),
    ],
)
def test_each_failure_has_its_class_and_cause(error: Exception, kind: type[EngineError], said: str, log: Path) -> None:
    made = explain_failure("load it", error, log)
    assert type(made) is kind
    assert said in made.message
    assert "\n" not in made.message


def test_pydantic_headings_are_passed_over() -> None:
    text = (
        "1 validation error for ModelConfig\n  Value error, The head size 16 is not supported. "
        "[type=value_error, input_value=ArgsKwargs((), {'a': 1}), input_type=ArgsKwargs]\n"
        "    For further information visit https://errors.pydantic.dev/2/v/value_error"
    )
    assert first_line(ValueError(text)) == "The head size 16 is not supported."
    text = "1 validation error for SchedulerConfig\nmax_num_seqs\n  Input should be a valid integer [type=int_parsing]"
    assert first_line(ValueError(text)) == "max_num_seqs: Input should be a valid integer"


def test_long_lists_are_cut() -> None:
    line = first_line(ValueError(f"['X'] are not supported for now. Supported architectures: {['Y'] * 500}"))
    assert line == "['X'] are not supported for now."
    assert len(first_line(ValueError("x" * 5000))) < 400


def test_no_log_is_no_cause(tmp_path: Path) -> None:
    assert find_cause(tmp_path / "absent.log") is None


def test_our_own_errors_pass_through(log: Path) -> None:
    with pytest.raises(CapabilityMissing, match="as it was"), translate_failures("load it", log):
        raise CapabilityMissing("as it was")


def test_a_lost_process_is_a_death_whatever_was_raised(log: Path) -> None:
    with pytest.raises(WorkerDied, match="cancelled"), translate_failures("answer", log, lambda: True):
        raise RuntimeError("cancelled")
    with pytest.raises(ModelUnsupported), translate_failures("answer", log, lambda: True):
        raise ModelUnsupported("ours")


def test_an_exit_is_an_error(log: Path) -> None:
    with pytest.raises(EngineError, match="status 3"), translate_failures("load it", log):
        raise SystemExit(3)


@pytest.mark.parametrize(
    ("path", "bases"),
    [
        ("vllm.model_executor.models.transformers.TransformersForCausalLM", []),
        ("vllm.model_executor.models.transformers.causal.TransformersForCausalLM", []),
        ("plugin.models.Mine", ["plugin.models.Mine", "vllm.model_executor.models.transformers.base.Base"]),
        ("transformers.models.llama.LlamaForCausalLM", []),
        ("dllm_plugin.models.mock_llada2.DllmMockLlada2ForCausalLM", []),
        ("plugin.models.MockModel", []),
    ],
)
def test_code_that_is_not_vllms_own_is_refused(path: str, bases: list[str]) -> None:
    with pytest.raises(ModelUnsupported):
        check_model_class(path, bases)


@pytest.mark.parametrize("path", ["vllm.model_executor.models.llama.LlamaForCausalLM", "dllm_plugin.models.l.LLaDA2"])
def test_vllms_own_and_a_plugins_code_is_accepted(path: str) -> None:
    check_model_class(path, [path, "torch.nn.modules.module.Module", "builtins.object"])


def test_a_build_for_another_device_is_refused() -> None:
    check_device("cpu", "cpu")
    check_device("auto", "cuda")
    with pytest.raises(CapabilityMissing, match="built for cpu") as caught:
        check_device("cuda", "cpu")
    assert caught.value.help == "specrunner engines install vllm-cuda"


def test_the_map_follows_the_class_that_runs() -> None:
    bailing = "vllm.model_executor.models.bailing_moe.BailingMoeV2ForCausalLM"
    module = "torch.nn.modules.module.Module"
    assert choose_map([bailing, module], "LLaDA2MoeModelLM").family == "bailing"
    assert choose_map(["plugin.Mine", bailing, module], "LLaDA2MoeModelLM").family == "bailing"
    assert choose_map(["vllm.model_executor.models.llama.LlamaForCausalLM"], "TeleChat3ForCausalLM").family == "llama"
    # A plugin's class of another layout must not be read by the map of the code it replaces.
    assert not choose_map(["dllm_plugin.models.llada2.LLaDA2ForCausalLM", module], "LLaDA2MoeModelLM").entries
