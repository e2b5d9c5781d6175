"""The adapter over Transformers: what it returns, what it states, and how it fails."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from specrunner.engines.answering import answer_request
from specrunner.engines.checkpoint_files import VOCABULARIES
from specrunner.engines.hf import HfEngine
from specrunner.engines.hf.checkpoint import explain_error, load_tokenizer
from specrunner.errors import CaptureIncomplete, EngineError, EngineOutOfMemory, ModelUnavailable, ModelUnsupported
from specrunner.requests import Request, Session
from specrunner.spec.model import Decode, DenoisingState, Model, Prompt

TEXT = "Alice was beginning to get very tired of sitting by her sister"
GLASS = Model(recipe="glass-0.8m")
Ensure = Callable[[Model], str]


@pytest.fixture
def glass(start: Callable[..., Any]) -> Any:
    return start(HfEngine, "glass-0.8m")


@pytest.fixture
def copy(tmp_path: Path, ensure: Ensure) -> Path:
    """A copy of glass to spoil."""
    return Path(shutil.copytree(ensure(GLASS), tmp_path / "checkpoint"))


def load(folder: Path, workspace: Path, model: Model | None = None, **options: Any) -> HfEngine:
    session = Session("hf", "", model or Model(path=str(folder)), "float32", "cpu", options)
    engine = HfEngine(session, str(folder), workspace)
    engine.facts = engine.load()  # type: ignore[attr-defined]
    return engine


def edit_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def test_module_and_capabilities_leave_torch_alone() -> None:
    code = (
        "import sys\nfrom specrunner.engines.hf import HfEngine\nfrom specrunner.engines.oracle import OracleEngine\n"
        "HfEngine.capabilities(); HfEngine.tensor_templates('LlamaForCausalLM'); OracleEngine.capabilities()\n"
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_templates_follow_the_architecture() -> None:
    llama = HfEngine.tensor_templates("LlamaForCausalLM")
    llada = HfEngine.tensor_templates("LLaDA2MoeModelLM")
    assert llama is not None and "layers.{i}.router.logits" not in llama and "passes.{i}.logits" not in llama
    assert llada is not None and "layers.{i}.router.logits" in llada and "passes.{i}.logits" in llada
    assert HfEngine.tensor_templates("UnheardOfForCausalLM") is None


def test_facts_say_what_really_runs(glass: Any) -> None:
    facts = glass.facts
    json.dumps(facts)
    assert facts["model_class"] == "transformers.models.llama.modeling_llama.LlamaForCausalLM"
    assert facts["architecture"] == "LlamaForCausalLM"
    assert (facts["attention_backend"], facts["dtype"], facts["device"]) == ("sdpa", "float32", "cpu")
    # A package's metadata may lack the flavour that the library states (2.13.0+cu130).
    assert facts["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert facts["flags"]["float32_matmul_precision"] == "highest" and facts["flags"]["cudnn_tf32"] is False
    assert facts["patches"] == []
    assert len(facts["model_digest"]) == 16 and facts["weights_digested"] == "whole"


def test_attention_implementation_is_passed_on(start: Callable[..., Any]) -> None:
    eager = start(HfEngine, "glass-0.8m", attn_implementation="eager")
    assert eager.facts["attention_backend"] == "eager"
    assert eager.facts["options"] == {"attn_implementation": "eager"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_keeps_rope_frequencies_in_float32(start: Callable[..., Any], dtype: str) -> None:
    engine = start(HfEngine, "glass-0.8m", dtype)
    assert engine.facts["dtypes"] == {"parameters": {dtype: 869504}, "buffers": {"float32": 32}}
    capture = engine.capture(Request(Prompt(text=TEXT), ("**",)))
    assert {str(tensor.dtype) for tensor in capture.tensors.values()} == {f"torch.{dtype}"}


def test_half_precision_keeps_the_expert_bias_in_float32(start: Callable[..., Any]) -> None:
    engine = start(HfEngine, "tiny-llada2", "bfloat16")
    biases = [module.gate.expert_bias for module in engine._model.modules() if hasattr(module, "gate")]
    assert biases and all(bias.dtype == torch.float32 and bool(bias.any()) for bias in biases)


def test_wanted_tensors_and_no_others(glass: Any) -> None:
    capture = glass.capture(Request(Prompt(text=TEXT), ("layers.*.output", "logits")))
    assert list(capture.tensors) == [
        "layers.0.output",
        "layers.1.output",
        "layers.2.output",
        "layers.3.output",
        "logits",
    ]
    rows = len(capture.prompt_token_ids)
    assert capture.tensors["layers.0.output"].shape == (rows, 128)
    assert capture.tensors["logits"].shape == (rows, 1024)
    assert capture.output_token_ids is None


def test_hooks_are_gone_after_a_capture_and_after_an_error(glass: Any) -> None:
    glass.capture(Request(Prompt(text=TEXT), ("**",)))
    with pytest.raises(CaptureIncomplete):
        glass.capture(Request(Prompt(text=TEXT), ("layers.9.output",)))
    assert not any(module._forward_hooks for module in glass._model.modules())


@pytest.mark.parametrize("length", [1, 2, 7])
def test_length_keeps_the_first_tokens(glass: Any, length: int) -> None:
    whole = glass.capture(Request(Prompt(text=TEXT), ("logits",)))
    part = glass.capture(Request(Prompt(text=TEXT, length=length), ("logits",)))
    assert part.prompt_token_ids == whole.prompt_token_ids[:length]
    assert part.tensors["logits"].shape == (length, 1024)
    # Causal: what follows cannot change what came before.
    assert torch.allclose(part.tensors["logits"], whole.tensors["logits"][:length], atol=2e-5)


def test_greedy_tokens_equal_generate_and_repeated_forwards(glass: Any) -> None:
    capture = glass.capture(Request(Prompt(text=TEXT), (), Decode(24, ignore_eos=True)))
    ids = torch.tensor([capture.prompt_token_ids])
    generated = glass._model.generate(ids, max_new_tokens=24, min_new_tokens=24, do_sample=False)
    assert generated[0, ids.shape[1] :].tolist() == capture.output_token_ids
    forced = glass.capture(
        Request(Prompt(token_ids=tuple(capture.prompt_token_ids + capture.output_token_ids)), ("logits",))
    )
    predicted = forced.tensors["logits"].argmax(-1)[len(capture.prompt_token_ids) - 1 : -1]
    assert predicted.tolist() == capture.output_token_ids
    assert capture.facts["finish_reason"] == "length"


def test_decode_stops_at_the_end_of_sequence_unless_told_otherwise(glass: Any, copy: Path, tmp_path: Path) -> None:
    free = glass.capture(Request(Prompt(text=TEXT), (), Decode(24))).output_token_ids
    edit_config(copy, eos_token_id=[3, free[5]])
    engine = load(copy, tmp_path)
    stopped = engine.capture(Request(Prompt(text=TEXT), (), Decode(24)))
    assert stopped.output_token_ids == free[: free.index(free[5]) + 1]
    assert stopped.facts["finish_reason"] == "stop"
    ignored = engine.capture(Request(Prompt(text=TEXT), (), Decode(24, ignore_eos=True)))
    assert ignored.output_token_ids == free
    assert ignored.facts["finish_reason"] == "length"


def test_block_diffusion_gives_tokens_passes_and_the_trajectory(start: Callable[..., Any]) -> None:
    engine = start(HfEngine, "tiny-llada2")
    decode = Decode(20, "low_confidence", block_length=16, threshold=0.9, ignore_eos=True)
    capture = engine.capture(Request(Prompt(text="What is 12 + 30?"), ("passes.*.logits", "embeddings"), decode))
    assert capture.output_token_ids is not None and len(capture.output_token_ids) == 20
    trajectory = capture.facts["trajectory"]
    assert capture.facts["passes"] == len(trajectory) == sum(name.startswith("passes.") for name in capture.tensors)
    assert {tuple(t.shape) for n, t in capture.tensors.items() if n.startswith("passes.")} == {(16, 320)}
    # Replaying what each pass accepted gives the output.
    tokens = dict(enumerate(capture.prompt_token_ids))
    for done in trajectory:
        assert done["accepted"] and not set(done["accepted"]) & set(tokens)
        tokens |= dict(zip(done["accepted"], done["accepted_token_ids"], strict=True))
    prompt = len(capture.prompt_token_ids)
    assert [tokens[prompt + index] for index in range(20)] == capture.output_token_ids


def test_one_wanted_pass_is_the_only_one_kept(start: Callable[..., Any]) -> None:
    engine = start(HfEngine, "tiny-llada2")
    decode = Decode(16, "low_confidence", block_length=16, threshold=0.9)
    capture = engine.capture(Request(Prompt(text="What is 12 + 30?"), ("passes.1.logits",), decode))
    assert list(capture.tensors) == ["passes.1.logits"]
    with pytest.raises(CaptureIncomplete, match=r"none matches 'passes\.99\.logits'"):
        engine.capture(Request(Prompt(text="What is 12 + 30?"), ("passes.99.logits",), decode))


@pytest.mark.parametrize(
    ("recipe", "request_", "message"),
    [
        ("glass-0.8m", Request(Prompt(token_ids=(1, 1024)), ("logits",)), "token id 1024 at position 1 is outside"),
        ("glass-0.8m", Request(Prompt(text=TEXT, length=999), ("logits",)), "the prompt has 19 tokens"),
        ("glass-0.8m", Request(Prompt(text=""), ("logits",)), "no tokens"),
        ("glass-0.8m", Request(Prompt(messages=({"role": "user", "content": "x"},)), ("logits",)), "no chat template"),
        ("glass-0.8m", Request(Prompt(text=TEXT), ("passes.0.logits",)), "come from a decode"),
        ("glass-0.8m", Request(Prompt(text=TEXT), ("layers.0.router.logits",)), "no tensor of this model matches"),
        ("glass-0.8m", Request(Prompt(text=TEXT), (), Decode(4, "low_confidence", 4, 0.9)), "decodes by greedy"),
        ("tiny-llada2", Request(Prompt(text=TEXT), (), Decode(4)), "decodes by low_confidence"),
    ],
)
def test_requests_that_cannot_be_answered(
    start: Callable[..., Any], recipe: str, request_: Request, message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        start(HfEngine, recipe).capture(request_)


def test_missing_directory_and_missing_config(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="no directory"):
        load(tmp_path / "nowhere", tmp_path)
    with pytest.raises(ModelUnavailable, match=r"no config\.json"):
        load(tmp_path, tmp_path)


def test_hub_id_that_is_not_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session("hf", "", Model(id="nobody/no-such-model"), "float32", "cpu")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelUnavailable, match="nobody/no-such-model"):
        HfEngine(session, "nobody/no-such-model", tmp_path).load()


@pytest.mark.parametrize("name", VOCABULARIES)
def test_a_tokenizer_is_what_it_is_for_the_served_engines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda path, **_: path)
    assert load_tokenizer(GLASS, str(tmp_path), tmp_path, {}) is None
    (tmp_path / name).write_text("{}")
    assert load_tokenizer(GLASS, str(tmp_path), tmp_path, {}) == str(tmp_path)


def test_unknown_architecture(copy: Path, tmp_path: Path) -> None:
    edit_config(copy, model_type="unheard_of", architectures=["UnheardOfForCausalLM"])
    with pytest.raises(ModelUnsupported, match="does not know the architecture"):
        load(copy, tmp_path)


def test_checkpoint_with_code_needs_trust(tmp_path: Path, ensure: Ensure) -> None:
    model = Model(recipe="tiny-llada2")
    with pytest.raises(ModelUnsupported) as caught:
        load(Path(ensure(model)), tmp_path, model)
    assert caught.value.help is not None and "trust_remote_code: true" in caught.value.help


def test_missing_weights_are_not_filled_with_random_numbers(copy: Path, tmp_path: Path) -> None:
    state = load_file(copy / "model.safetensors")
    del state["model.layers.2.mlp.up_proj.weight"]
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelUnavailable, match=r"lacks 1 weights.*model\.layers\.2\.mlp\.up_proj\.weight"):
        load(copy, tmp_path)


def test_weights_of_another_shape(copy: Path, tmp_path: Path) -> None:
    edit_config(copy, intermediate_size=320)
    with pytest.raises(EngineError):
        load(copy, tmp_path)


def test_truncated_weights(copy: Path, tmp_path: Path) -> None:
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelUnavailable, match="cannot be read"):
        load(copy, tmp_path)


def test_unused_weights_are_stated(copy: Path, tmp_path: Path) -> None:
    state = load_file(copy / "model.safetensors") | {"model.extra.weight": torch.zeros(3)}
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    assert load(copy, tmp_path).facts["unused_weights"] == ["model.extra.weight"]  # type: ignore[attr-defined]


def test_unknown_option_and_attention(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelUnsupported, match="no_such_option"):
        load(copy, tmp_path, no_such_option=1)
    with pytest.raises(EngineError, match="no_such_attention"):
        load(copy, tmp_path, attn_implementation="no_such_attention")


def test_own_code_stands_in_for_that_of_the_checkpoint(
    tmp_path: Path, start: Callable[..., Any], ensure: Ensure
) -> None:
    """A checkpoint as the hub has it: no code that imports here, and a config without three of the keys."""
    shipped = Path(ensure(Model(recipe="tiny-llada2", trust_remote_code=True)))
    folder = tmp_path / "hub"
    shutil.copytree(shipped, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    config = json.loads((folder / "config.json").read_text())
    lacking = {name: config.pop(name) for name in ("block_length", "mask_token_id", "use_qk_norm")}
    (folder / "config.json").write_text(json.dumps(config))
    request = Request(Prompt(text="27+77="), ("logits",), Decode(8, "low_confidence", 16, 0.9))
    expected = start(HfEngine, "tiny-llada2").capture(request)
    engine = load(folder, tmp_path, specrunner_code="own", **lacking)
    found = engine.capture(request)
    assert found.output_token_ids == expected.output_token_ids
    assert (found.tensors["logits"] == expected.tensors["logits"]).all()
    assert engine.load()["patches"] == ["specrunner's own modeling files"]
    with pytest.raises(ModelUnsupported, match="does not state block_length"):
        load(folder, tmp_path, specrunner_code="own", mask_token_id=257, use_qk_norm=True)


def test_own_code_exists_for_some_architectures_alone(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelUnsupported, match="no code of its own for LlamaForCausalLM"):
        load(copy, tmp_path, specrunner_code="own")


@pytest.mark.slow
def test_num_threads(copy: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        assert load(copy, tmp_path, num_threads=1).facts["threads"] == 1  # type: ignore[attr-defined]
    finally:
        torch.set_num_threads(before)


def test_checkpoint_without_a_tokenizer_takes_ids_alone(copy: Path, tmp_path: Path) -> None:
    for file in copy.glob("tokenizer*"):
        file.unlink()
    engine = load(copy, tmp_path)
    assert engine.capture(Request(Prompt(token_ids=(5, 6)), ("logits",))).prompt_token_ids == [5, 6]
    with pytest.raises(ModelUnavailable, match="no tokenizer"):
        engine.capture(Request(Prompt(text="x"), ("logits",)))


def test_architecture_without_a_map_gives_its_logits(tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(0)
    config = transformers.GPTNeoXConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    model = transformers.GPTNeoXForCausalLM(config)
    model.save_pretrained(tmp_path / "neox")
    engine = load(tmp_path / "neox", tmp_path)
    capture = engine.capture(Request(Prompt(token_ids=(1, 2, 3)), ("logits",), Decode(3)))
    with torch.no_grad():
        assert torch.allclose(capture.tensors["logits"], model.eval()(torch.tensor([[1, 2, 3]])).logits[0], atol=1e-6)
    with pytest.raises(CaptureIncomplete, match="no tensor of this model"):
        engine.capture(Request(Prompt(token_ids=(1, 2, 3)), ("layers.*.output",)))


def test_out_of_memory_is_recognised() -> None:
    errors = [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.99 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    ]
    assert {type(explain_error("load it", error)) for error in errors} == {EngineOutOfMemory}


def test_a_prompt_in_a_batch_answers_as_alone(start: Callable[..., Any], glass: Any) -> None:
    company = (Prompt(token_ids=(5, 6, 7)), Prompt(text=TEXT + TEXT))
    for engine, decode, patterns in (
        (glass, Decode(6), ("embeddings", "layers.*.attention.query", "layers.0.output", "logits")),
        (
            start(HfEngine, "tiny-llada2"),
            Decode(20, "low_confidence", 16, 0.9, ignore_eos=True),
            ("embeddings", "layers.1.router.*", "layers.3.output", "logits", "passes.*.logits"),
        ),
    ):
        request = Request(Prompt(text=TEXT, length=9), patterns, decode)
        alone, together = (engine.capture(one) for one in (request, replace(request, companions=company)))
        assert together.output_token_ids == alone.output_token_ids
        assert together.facts["batch"] == {"prompts": 3, "padding": "right"}
        assert together.tensors.keys() == alone.tensors.keys()
        for name, tensor in alone.tensors.items():
            torch.testing.assert_close(torch.as_tensor(together.tensors[name]), tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("rule", "loop"),
    [
        ({}, "the model's generate"),
        ({"steps": 4}, "the model's generate"),
        ({"fallback": "best"}, "the model's generate"),
        ({"accept": "ge"}, "specrunner's own loop"),
        ({"fallback": "near_best", "exclude_mask_id": True}, "specrunner's own loop"),
        ({"eos_early_stop": True}, "specrunner's own loop"),
    ],
)
def test_the_models_own_generate_decodes_where_it_knows_the_rule(
    start: Callable[..., Any], rule: dict[str, Any], loop: str
) -> None:
    decode = Decode(16, "low_confidence", 16, 0.999, **rule)
    capture = start(HfEngine, "tiny-llada2").capture(Request(Prompt(text="zzz 9 9 = <>"), (), decode))
    assert (capture.facts["decode_loop"], capture.facts["mask_token_id"]) == (loop, 257)


def test_a_state_in_the_midst_of_a_decode_is_a_prompt_with_masks(start: Callable[..., Any]) -> None:
    engine, prompt = start(HfEngine, "tiny-llada2"), Prompt(text="zzz 9 9 = <>")
    decode = Decode(20, "low_confidence", 16, 0.999, ignore_eos=True)
    request = Request(prompt, ("logits",), decode, at=DenoisingState(0, 1))
    capture = answer_request(engine, request)
    decoded = engine.capture(Request(prompt, ("passes.1.logits",), decode))
    assert capture.prompt_token_ids == decoded.facts["trajectory"][1]["tokens_before"]
    assert capture.facts["state"] == {"block": 0, "step": 1, "pass": 1, "tokens": 16}
    torch.testing.assert_close(capture.tensors["logits"], decoded.tensors["passes.1.logits"], rtol=1e-3, atol=1e-4)
    for state, said in ((DenoisingState(9), "no block 9"), (DenoisingState(0, 99), "no step 99")):
        with pytest.raises(CaptureIncomplete, match=said):
            answer_request(engine, replace(request, at=state))
