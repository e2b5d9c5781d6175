"""The tiny checkpoint's files: small, complete, and able to show bugs."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def tasks():
    """The generators of `tools/`, which is not a package."""
    spec = importlib.util.spec_from_file_location("tiny_llada2_tasks", TOOLS / "tiny_llada2_tasks.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_it_is_small_and_stored_as_it_should_be(tiny, oracle):
    assert (tiny / "model.safetensors").stat().st_size <= 8_000_000
    dtypes = {name: location.dtype for name, location in oracle.weights._locations.items()}
    assert {dtype for name, dtype in dtypes.items() if not name.endswith("expert_bias")} == {"BF16"}
    assert [dtype for name, dtype in dtypes.items() if name.endswith("expert_bias")] == ["F32"] * 3


def test_training_left_nothing_trivial(oracle):
    """With norms of 1 and biases of 0, a norm after RoPE and an ignored bias would be invisible."""
    for layer in range(4):
        for norm in ("query_layernorm", "key_layernorm"):
            weight = oracle.weights.read(f"model.layers.{layer}.attention.{norm}.weight", [64])
            assert weight.std() > 0.05
        if layer:
            assert oracle.weights.read(f"model.layers.{layer}.mlp.gate.expert_bias", [32]).std() > 0.05


def test_its_shape_can_tell_routing_rules_apart(oracle):
    config = oracle.config
    assert config.num_experts_per_tok > config.topk_group
    assert config.num_experts_per_tok < config.topk_group * config.num_experts // config.n_group
    assert config.routed_scaling_factor != 1.0
    assert config.first_k_dense_replace == 1
    assert config.vocab_size % 64 == 0


def test_the_held_out_prompts_span_blocks_and_do_not_end_on_their_edges(held_out):
    sizes = [len(prompt["token_ids"]) for prompt in held_out[:60]]
    assert len(held_out) >= 60
    assert max(sizes) > 100
    assert sum(size % 16 != 0 for size in sizes) > 45
    assert sum(size > 32 for size in sizes) > 15


def test_the_held_out_prompts_are_what_the_generator_makes(tasks, held_out):
    examples = tasks.held_out_examples(len(held_out) // len(tasks.TASKS))
    assert [(e.task, e.prompt, e.answer) for e in examples] == [(p["task"], p["prompt"], p["answer"]) for p in held_out]
    assert all(tasks.encode(prompt["prompt"]) == prompt["token_ids"] for prompt in held_out)


def test_training_never_asks_a_held_out_question(tasks):
    from itertools import islice
    from random import Random

    random = Random(5)
    for task in tasks.TASKS:
        assert tasks.is_held_out(tasks.ask(task, random, held_out=True)[0])
    for conversation in islice(tasks.training_conversations(5), 200):
        start = 0
        for example in conversation:
            question = example.prompt[start:].removeprefix("<|end|>").removeprefix("\n").removeprefix("<|user|>")
            assert not tasks.is_held_out(question.removesuffix("<|assistant|>").removesuffix("<|end|>"))
            start = len(example.prompt) + len(example.answer)


def test_both_tokenizer_libraries_read_bytes_and_special_tokens(tiny):
    tokenizers = pytest.importorskip("tokenizers", reason="needs `pip install specrunner[hf]`")
    transformers = pytest.importorskip("transformers", reason="needs `pip install specrunner[hf]`")
    plain = tokenizers.Tokenizer.from_file(str(tiny / "tokenizer.json"))
    full = transformers.AutoTokenizer.from_pretrained(tiny, trust_remote_code=True)
    assert (full.eos_token_id, full.pad_token_id, full.mask_token_id, len(full)) == (256, 256, 257, 320)
    text = "  37+58=\n\tZürich ☃ <|mask|><|end|>x "
    expected = [*b"  37+58=\n\tZ\xc3\xbcrich \xe2\x98\x83 ", 257, 261, *b"x "]
    assert plain.encode(text).ids == full(text)["input_ids"] == expected
    assert full.decode(expected) == plain.decode(expected, skip_special_tokens=False) == text
    assert plain.decode(list(range(256)), skip_special_tokens=False)
    assert plain.get_vocab_size() == 320


def test_the_chat_template_writes_turns(tiny, tasks):
    transformers = pytest.importorskip("transformers", reason="needs `pip install specrunner[hf]`")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny, trust_remote_code=True)
    messages = [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "<|user|>1+1=<|end|><|assistant|>2<|end|>"
    ids = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=False)
    assert ids == tasks.encode("<|user|>1+1=<|end|><|assistant|>")


@pytest.mark.slow
def test_the_answers_of_the_held_out_prompts_are_mostly_found(held_out, oracle):
    """A checkpoint that learned nothing would agree with anything: the README's accuracy is not an empty claim."""
    right = 0
    for prompt in held_out[:28]:
        answer = [*prompt["answer"].encode(), oracle.config.eos_token_id]
        right += oracle.decode(prompt["token_ids"], max_new_tokens=32) == answer
    assert right >= 14


@pytest.mark.slow
def test_some_margins_are_low(held_out, oracle):
    """Where two tokens nearly tie, engines may differ: the fixture has to bring such cases along."""
    smallest = np.inf
    for prompt in held_out[:28]:
        logits = np.sort(oracle.forward([*prompt["token_ids"], 257, 257])[-2:], axis=1)
        smallest = min(smallest, (logits[:, -1] - logits[:, -2]).min())
    assert smallest < 0.25


def test_the_config_states_every_key_that_the_modeling_file_reads(tiny):
    stated = json.loads((tiny / "config.json").read_text())
    source = (tiny / "configuration_llada2_moe.py").read_text()
    namespace: dict = {}
    exec(source[source.index("STATED = (") : source.index('"""The keys')], namespace)
    assert set(namespace["STATED"]) <= set(stated)


def test_the_modeling_file_refuses_a_config_that_lacks_a_key(tiny, tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs `pip install specrunner[hf]`")
    stated = json.loads((tiny / "config.json").read_text())
    del stated["routed_scaling_factor"]
    for path in tiny.glob("*.py"):
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "config.json").write_text(json.dumps(stated))
    config = transformers.AutoConfig.from_pretrained(tmp_path, trust_remote_code=True)
    with pytest.raises(ValueError, match="does not state routed_scaling_factor"):
        transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=True)
