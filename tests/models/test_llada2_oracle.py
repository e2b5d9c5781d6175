"""The oracle: its configuration, its weights, its routing and its refusals."""

from __future__ import annotations

import json
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from specrunner.errors import ModelUnavailable, ModelUnsupported
from specrunner.models.checkpoint import Checkpoint
from specrunner.models.llada2 import LLaDA2, rotate, route, sigmoid
from specrunner.models.llada2_config import FIXED, OPTIONAL, LLaDA2Config


@pytest.fixture
def stated(tiny) -> dict:
    return json.loads((tiny / "config.json").read_text())


def write_config(folder: Path, stated: dict) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(stated))
    return path


REQUIRED = [name for name in LLaDA2Config.__dataclass_fields__ if name not in OPTIONAL] + list(FIXED)


@pytest.mark.parametrize("key", REQUIRED)
def test_a_missing_key_is_an_error_and_never_a_default(key, stated, tmp_path):
    del stated[key]
    with pytest.raises(ModelUnavailable, match=f"does not state {key}$"):
        LLaDA2Config.read(write_config(tmp_path, stated))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("score_function", "softmax"),
        ("use_bias", True),
        ("use_qk_norm", False),
        ("rope_scaling", {"type": "yarn"}),
        ("tie_word_embeddings", True),
        ("model_type", "bailing_moe_v2"),
        ("rotary_dim", 64),
        ("num_key_value_heads", 3),
        ("topk_group", 9),
        ("num_experts_per_tok", 9),
        ("n_group", 32),
        ("num_shared_experts", 0),
    ],
)
def test_what_the_oracle_does_not_compute_is_refused(key, value, stated, tmp_path):
    with pytest.raises(ModelUnsupported):
        LLaDA2Config.read(write_config(tmp_path, stated | {key: value}))


def test_a_published_config_lacks_what_only_decoding_needs(stated, tiny, tmp_path):
    for key in (*OPTIONAL, "use_qk_norm", "moe_shared_expert_intermediate_size"):
        del stated[key]
    shutil.copy(tiny / "model.safetensors", tmp_path)
    write_config(tmp_path, stated)
    oracle = LLaDA2.load(tmp_path)
    with pytest.raises(ValueError, match="block_length"):
        oracle.forward([1, 2, 3])
    with pytest.raises(ValueError, match="mask_token_id"):
        oracle.decode([1], max_new_tokens=1, block_length=4)
    np.testing.assert_array_equal(oracle.forward([1, 2, 3], block_length=16), LLaDA2.load(tiny).forward([1, 2, 3]))


def test_shards_with_an_index_and_a_small_cache_compute_the_same(tiny, tmp_path):
    source = (tiny / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", source[:8])
    header = json.loads(source[8 : 8 + size])
    header.pop("__metadata__", None)
    shards: list[dict[str, bytes]] = [{}, {}]
    for i, (name, entry) in enumerate(header.items()):
        begin, end = entry["data_offsets"]
        shards[i % 2][name] = source[8 + size + begin : 8 + size + end]
    weight_map = {}
    for i, shard in enumerate(shards):
        offset, entries = 0, {}
        for name, data in shard.items():
            entries[name] = header[name] | {"data_offsets": [offset, offset + len(data)]}
            offset += len(data)
            weight_map[name] = f"model-{i}.safetensors"
        text = json.dumps(entries).encode()
        (tmp_path / f"model-{i}.safetensors").write_bytes(
            struct.pack("<Q", len(text)) + text + b"".join(shard.values())
        )
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    shutil.copy(tiny / "config.json", tmp_path)
    sharded = LLaDA2.load(tmp_path, cache_bytes=100_000)
    ids = list(range(40, 60))
    np.testing.assert_array_equal(sharded.forward(ids), LLaDA2.load(tiny).forward(ids))
    assert sum(array.nbytes for array in sharded.weights._cache.values()) <= max(100_000, 320 * 128 * 8)


def test_bfloat16_is_decoded_exactly(tmp_path):
    values = np.array([0.0, -1.5, 3.140625, 2.0**-130, np.inf], dtype=np.float32)
    data = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    header = json.dumps({"x": {"dtype": "BF16", "shape": [5], "data_offsets": [0, 10]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    np.testing.assert_array_equal(Checkpoint(tmp_path).read("x", [5]), values.astype(np.float64))


def test_weights_that_are_not_there_are_named(tiny, tmp_path):
    with pytest.raises(ModelUnavailable, match="cannot read the weights"):
        Checkpoint(tmp_path)
    checkpoint = Checkpoint(tiny)
    with pytest.raises(ModelUnavailable, match="no tensor model.norm.bias"):
        checkpoint.read("model.norm.bias", [128])
    with pytest.raises(ModelUnavailable, match=r"model.norm.weight has the shape \[128\], not \[64\]"):
        checkpoint.read("model.norm.weight", [64])
    (tmp_path / "model.safetensors").write_bytes((tiny / "model.safetensors").read_bytes()[:-1000])
    with pytest.raises(ModelUnavailable, match="cut off"):
        Checkpoint(tmp_path)


CONFIG = LLaDA2Config.read(Path(__file__).parents[2] / "specrunner" / "models" / "tiny_llada2" / "config.json")
SCORES = hnp.arrays(np.float64, 32, elements=st.floats(-8, 8))


@given(SCORES, SCORES, st.integers(1, 8), st.integers(1, 4))
def test_routing_keeps_its_promises(logits, bias, groups, per_token):
    config = replace(CONFIG, topk_group=groups, num_experts_per_tok=per_token)
    chosen, weights = route(logits, bias, config)
    assert len(chosen) == len(set(chosen.tolist())) == per_token
    assert chosen.tolist() == sorted(chosen.tolist())
    assert len({expert // 4 for expert in chosen.tolist()}) <= groups
    assert weights.sum() == pytest.approx(config.routed_scaling_factor)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights, 2.5 * sigmoid(logits)[chosen] / sigmoid(logits)[chosen].sum(), rtol=1e-12)


@given(SCORES, SCORES)
def test_no_expert_of_a_kept_group_is_better_than_a_chosen_one(logits, bias):
    chosen, _ = route(logits, bias, CONFIG)
    biased = sigmoid(logits) + bias
    kept = {expert // 4 for expert in chosen.tolist()}
    others = [e for e in range(32) if e // 4 in kept and e not in chosen]
    assert all(biased[e] <= biased[chosen].min() for e in others)


def test_a_group_is_worth_its_two_best():
    logits = np.full(32, -8.0)
    logits[0] = 8.0  # alone in its group: 1 + 0
    for group in (3, 5):
        logits[4 * group : 4 * group + 2] = 2.0  # .88 + .88
    chosen, _ = route(logits, np.zeros(32), CONFIG)
    assert chosen.tolist() == [12, 13, 20, 21]


def test_the_bias_moves_the_choice_and_not_the_weights():
    logits, bias = np.zeros(32), np.zeros(32)
    bias[[30, 31]] = 0.5
    chosen, weights = route(logits, bias, CONFIG)
    assert {30, 31} <= set(chosen.tolist())
    np.testing.assert_allclose(weights, 2.5 / 4)


def test_rope_turns_half_of_a_head_and_depends_on_distance_alone():
    heads = np.random.default_rng(0).normal(size=(1, 2, 64)).repeat(9, axis=0)
    turned = rotate(heads, CONFIG)
    np.testing.assert_array_equal(turned[..., 32:], heads[..., 32:])
    np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(heads, axis=-1))
    products = turned[:, 0] @ turned[:, 1].T
    np.testing.assert_allclose(products[3:, 3:], products[:-3, :-3])
    assert abs(products[0, 1] - products[0, 0]) > 1e-3


def test_geometries(oracle):
    blocks = oracle.geometry(5, "block_causal", block_length=2).astype(int).tolist()
    assert blocks == [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert oracle.geometry(3, "causal").astype(int).tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert oracle.geometry(3, "bidirectional").all()
    with pytest.raises(ValueError, match="attention must be"):
        oracle.geometry(3, "sliding")


def test_later_blocks_are_invisible(oracle):
    ids = list(range(32, 80))
    changed = [*ids[:40], 257, *ids[41:]]
    before, after = oracle.forward(ids), oracle.forward(changed)
    np.testing.assert_allclose(before[:32], after[:32], atol=1e-12)
    assert (np.abs(before[32:] - after[32:]).max(axis=1) > 1e-3).all()


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        ([], {}, "at least one token"),
        ([[1]], {}, "one sequence"),
        ([320], {}, "outside the vocabulary"),
        ([-1], {}, "outside the vocabulary"),
        ([0] * 1025, {}, "exceed max_position_embeddings"),
        ([0, 1], {"mask": np.ones((2, 3))}, "shape"),
        ([0, 1], {"block_length": 0}, "1 or more"),
    ],
)
def test_impossible_inputs_are_refused(ids, options, message, oracle):
    with pytest.raises(ValueError, match=message):
        oracle.forward(ids, **options)


def test_tensors_come_in_model_order(oracle):
    from specrunner.spec.tensor_names import model_order

    names: list[str] = []
    oracle.forward([1, 2, 3], on_tensor=lambda name, value: names.append(name))
    assert names == sorted(names, key=model_order)
