"""The oracle behind the engine interface, beside the modeling file that it knows nothing of."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specrunner.engines.hf import HfEngine
from specrunner.engines.oracle import OracleEngine
from specrunner.engines.plain_tokenizer import PlainTokenizer
from specrunner.errors import CaptureIncomplete, EngineError, ModelUnavailable, ModelUnsupported
from specrunner.requests import Request, Session
from specrunner.spec.model import Decode, Model, Prompt

TEXT = "capital of France:Paris\n27+77=104\nreverse stone:enots\nsort 398283:233889\nThe capital of Peru is "
TINY = Model(recipe="tiny-llada2")
Ensure = Callable[[Model], str]
DIFFUSION = Decode(40, "low_confidence", block_length=16, threshold=0.9)


@pytest.fixture
def oracle(start: Callable[..., Any]) -> Any:
    return start(OracleEngine, "tiny-llada2", "float64")


@pytest.fixture
def hf(start: Callable[..., Any]) -> Any:
    return start(HfEngine, "tiny-llada2")


def relative_error(candidate: Any, reference: Any) -> float:
    candidate, reference = np.asarray(candidate, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    return float((np.linalg.norm(candidate - reference, axis=-1) / np.linalg.norm(reference, axis=-1)).max())


@pytest.mark.parametrize("length", [1, 16, 23, 32, 64])
def test_both_readings_agree_on_every_tensor(hf: Any, oracle: Any, length: int) -> None:
    request = Request(Prompt(text=TEXT, length=length), ("**",))
    candidate, reference = hf.capture(request), oracle.capture(request)
    assert candidate.prompt_token_ids == reference.prompt_token_ids
    assert list(candidate.tensors) == list(reference.tensors)
    for name, tensor in candidate.tensors.items():
        assert tuple(tensor.shape) == reference.tensors[name].shape, name
        if name.endswith("expert_ids"):
            assert np.array_equal(tensor, reference.tensors[name]), name
        else:
            assert relative_error(tensor, reference.tensors[name]) < 1e-5, name


def test_both_decode_the_same_way(hf: Any, oracle: Any) -> None:
    request = Request(Prompt(text=TEXT), ("passes.*.logits",), DIFFUSION)
    candidate, reference = hf.capture(request), oracle.capture(request)
    assert candidate.output_token_ids == reference.output_token_ids
    loops = [facts.pop("decode_loop") for facts in (candidate.facts, reference.facts)]
    assert loops == ["the model's generate", "specrunner's own loop"]
    assert candidate.facts == reference.facts
    assert list(candidate.tensors) == list(reference.tensors)
    for name, tensor in candidate.tensors.items():
        assert relative_error(tensor, reference.tensors[name]) < 1e-5, name


def test_facts(oracle: Any) -> None:
    json.dumps(oracle.facts)
    assert (oracle.facts["dtype"], oracle.facts["device"]) == ("float64", "cpu")
    assert oracle.facts["architecture"] == "LLaDA2MoeModelLM"
    assert oracle.facts["attention_backend"] == "numpy, block_causal"


def test_everything_is_float64_and_its_own(oracle: Any) -> None:
    capture = oracle.capture(Request(Prompt(text=TEXT), ("**",)))
    assert {str(t.dtype) for n, t in capture.tensors.items() if not n.endswith("expert_ids")} == {"float64"}
    assert all(tensor.flags.owndata and tensor.flags.c_contiguous for tensor in capture.tensors.values())


@pytest.mark.parametrize(("attention", "changed"), [("causal", 15), ("bidirectional", 31)])
def test_attention_option_changes_what_a_token_sees(
    start: Callable[..., Any], oracle: Any, attention: str, changed: int
) -> None:
    """Of 33 tokens in blocks of 16, the last of each block sees the same under `causal`, the last of all under both."""
    request = Request(Prompt(text=TEXT, length=33), ("layers.0.attention.output",))
    [ours] = start(OracleEngine, "tiny-llada2", "float64", attention=attention).capture(request).tensors.values()
    [plain] = oracle.capture(request).tensors.values()
    differs = np.abs(ours - plain).max(axis=1) > 1e-9
    seen = [position for position in range(33) if not differs[position]]
    assert seen == {"causal": [15, 31, 32], "bidirectional": [32]}[attention]
    assert changed <= int(differs.sum())


def test_block_length_option(start: Callable[..., Any], hf: Any) -> None:
    longer = start(OracleEngine, "tiny-llada2", "float64", block_length=64)
    everything = start(OracleEngine, "tiny-llada2", "float64", attention="bidirectional")
    request = Request(Prompt(text=TEXT, length=40), ("logits",))
    assert (
        relative_error(longer.capture(request).tensors["logits"], everything.capture(request).tensors["logits"]) < 1e-12
    )


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(Prompt(token_ids=(320,)), ("logits",)), "token id 320"),
        (Request(Prompt(text=TEXT, length=500), ("logits",)), "asks for 500"),
        (Request(Prompt(text=TEXT), ("layers.0.router.logits",)), "no tensor of this model"),
        (Request(Prompt(text=TEXT), ("passes.*.logits",)), "come from a decode"),
        (Request(Prompt(text=TEXT), (), Decode(8)), "decodes by low_confidence"),
        (Request(Prompt(text=TEXT), ("passes.99.logits",), DIFFUSION), "none matches"),
        (Request(Prompt(token_ids=(1,) * 2000), ("logits",)), "max_position_embeddings"),
    ],
)
def test_requests_that_cannot_be_answered(oracle: Any, request_: Request, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        oracle.capture(request_)


def test_unmatched_pattern_is_incomplete(oracle: Any) -> None:
    with pytest.raises(CaptureIncomplete) as caught:
        oracle.capture(Request(Prompt(text=TEXT), ("layers.9.output",)))
    assert caught.value.help == "it has `layers.0.output` to `layers.3.output`"


@pytest.mark.parametrize("options", [{"attention": "sliding"}, {"attn_implementation": "eager"}])
def test_options_that_do_not_exist(tmp_path: Path, ensure: Ensure, options: dict[str, Any]) -> None:
    session = Session("oracle", "", TINY, "float64", "cpu", options)
    with pytest.raises(ModelUnsupported):
        OracleEngine(session, ensure(TINY), tmp_path).load()


def test_models_it_does_not_compute(tmp_path: Path, ensure: Ensure) -> None:
    glass = Model(recipe="glass-0.8m")
    with pytest.raises(ModelUnsupported, match="LlamaForCausalLM"):
        OracleEngine(Session("oracle", "", glass, "float64", "cpu"), ensure(glass), tmp_path).load()
    hub = Model(id="inclusionAI/LLaDA2.0-mini")
    with pytest.raises(ModelUnavailable, match=r"no readable config\.json"):
        OracleEngine(Session("oracle", "", hub, "float64", "cpu"), hub.label, tmp_path).load()


def test_truncated_weights(tmp_path: Path, ensure: Ensure) -> None:
    copy = Path(shutil.copytree(ensure(TINY), tmp_path / "copy"))
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[: len(data) // 2])
    engine = OracleEngine(Session("oracle", "", TINY, "float64", "cpu"), str(copy), tmp_path)
    with pytest.raises(EngineError):
        engine.load()
        engine.capture(Request(Prompt(text=TEXT), ("logits",)))


def test_plain_tokenizer_gives_what_transformers_gives(ensure: Ensure) -> None:
    from transformers import AutoTokenizer

    for recipe in ("tiny-llada2", "glass-0.8m", "tiny-mixtral"):
        folder = ensure(Model(recipe=recipe))
        full = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        plain = PlainTokenizer.load(Path(folder))
        assert plain is not None
        for text in (TEXT, "<|user|>What is 2+2?<|end|>", "“ünï” \n  ends ", "\t日本"):
            for special in (True, False):
                assert (
                    plain(text, add_special_tokens=special)["input_ids"]
                    == full(text, add_special_tokens=special)["input_ids"]
                )


def test_chat_goes_through_the_checkpoints_template(hf: Any, oracle: Any) -> None:
    request = Request(Prompt(messages=({"role": "user", "content": "2+2="},)), ("embeddings",))
    assert oracle.capture(request).prompt_token_ids == hf.capture(request).prompt_token_ids


def test_oracle_runs_without_torch_and_transformers(ensure: Ensure) -> None:
    folder = ensure(TINY)
    code = f"""
import sys
from pathlib import Path
from specrunner.engines.oracle import OracleEngine
from specrunner.requests import Request, Session
from specrunner.spec.model import Model, Prompt
engine = OracleEngine(Session("oracle", "", Model(recipe="tiny-llada2"), "float64", "cpu"), {folder!r}, Path())
engine.load()
engine.capture(Request(Prompt(text="2+2="), ("logits",)))
print(sorted({{"torch", "transformers"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
