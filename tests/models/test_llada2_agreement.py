"""The modeling file and the oracle are two readings of one specification: they must compute the same."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import numpy as np
import pytest

MASK = 257
RELATIVE_L2 = 1e-5


def make_ids(held_out, tokens: int, masked: int = 0) -> list[int]:
    """Join held-out prompts to `tokens` ids, the last `masked` of them masks."""
    text = [i for prompt in held_out for i in prompt["token_ids"]]
    return text[: tokens - masked] + [MASK] * masked


def relative_l2(value: np.ndarray, reference: np.ndarray) -> float:
    assert value.shape == reference.shape
    return float(np.linalg.norm(value - reference) / np.linalg.norm(reference))


def first_difference(values: dict[str, np.ndarray], references: dict[str, np.ndarray]) -> str | None:
    """Name the first tensor in model order that is not the reference's."""
    assert set(values) == set(references)
    return next((name for name, r in references.items() if relative_l2(values[name], r) > RELATIVE_L2), None)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("tokens", "masked"), [(1, 0), (16, 0), (32, 16), (64, 7), (37, 0), (53, 21), (160, 16)])
def test_every_tensor_agrees_in_float32(attention, tokens, masked, held_out, load_hf, capture_hf, capture_oracle):
    ids = make_ids(held_out, tokens, masked)
    references = capture_oracle(ids)
    values = capture_hf(load_hf(attention=attention), ids)
    assert len(references) == 1 + 4 * 6 + 3 * 3 + 2
    assert first_difference(values, references) is None
    for name in references:
        if name.endswith("expert_ids"):
            np.testing.assert_array_equal(values[name], references[name])


@pytest.mark.slow
def test_both_decode_the_same_tokens(held_out, oracle, load_hf):
    import torch

    model = load_hf()
    for prompt in held_out[:24:3]:
        passes = []
        expected = oracle.decode(
            prompt["token_ids"], max_new_tokens=32, threshold=0.95, on_pass=lambda p, passes=passes: passes.append(p)
        )
        seen = []
        output = model.generate(torch.tensor([prompt["token_ids"]]), max_new_tokens=32, on_pass=seen.append)
        assert output[0].tolist() == expected, prompt
        assert len(seen) == len(passes)
        for ours, theirs in zip(passes, seen, strict=True):
            assert ours.block_start == theirs.block_start
            np.testing.assert_array_equal(ours.tokens_before, theirs.tokens_before)
            np.testing.assert_array_equal(ours.accepted, theirs.accepted)
            np.testing.assert_array_equal(ours.tokens_after, theirs.tokens_after)
            assert relative_l2(theirs.logits.double().numpy(), ours.logits) < RELATIVE_L2


@pytest.mark.parametrize(("length", "steps", "threshold"), [(8, None, 0.95), (16, 3, 2.0), (32, 5, 0.5), (16, 1, 0.95)])
def test_both_follow_other_block_lengths_and_schedules(length, steps, threshold, held_out, oracle, load_hf):
    import torch

    for prompt in held_out[:3]:
        options = {"max_new_tokens": 20, "block_length": length, "steps": steps, "threshold": threshold}
        output = load_hf().generate(torch.tensor([prompt["token_ids"]]), **options)
        assert output[0].tolist() == oracle.decode(prompt["token_ids"], **options)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("geometry", ["block_causal", "causal", "bidirectional"])
@pytest.mark.parametrize("form", ["bool", "integer", "additive"])
def test_an_explicit_mask_means_the_same_in_every_form(
    attention, geometry, form, held_out, oracle, load_hf, capture_hf, capture_oracle
):
    import torch

    ids = make_ids(held_out, 40, 9)
    visible = oracle.geometry(len(ids), geometry)
    mask = torch.from_numpy(visible)[None, None]
    if form == "integer":
        mask = mask.long()
    if form == "additive":
        mask = torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))
    values = capture_hf(load_hf(attention=attention), ids, attention_mask=mask)
    assert first_difference(values, capture_oracle(ids, mask=visible)) is None
    assert first_difference(values, capture_oracle(ids, attention=geometry)) is None


def test_a_zero_one_mask_in_floating_point_is_refused(load_hf):
    import torch

    with pytest.raises(ValueError, match="added to the scores"):
        load_hf()(torch.tensor([[1, 2]]), attention_mask=torch.ones(1, 1, 2, 2))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_router_keeps_float32_in_narrow_dtypes(dtype, held_out, oracle, load_hf):
    import torch

    model = load_hf(dtype=dtype)
    state = model.state_dict()
    assert {str(v.dtype) for n, v in state.items() if not n.endswith("expert_bias")} == {f"torch.{dtype}"}
    outputs = []
    for i, layer in enumerate(model.model.layers[1:], start=1):
        stored = oracle.weights.read(f"model.layers.{i}.mlp.gate.expert_bias", [32])
        assert layer.mlp.gate.expert_bias.dtype == torch.float32
        np.testing.assert_array_equal(layer.mlp.gate.expert_bias.double().numpy(), stored)
        layer.mlp.gate.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    with torch.no_grad():
        logits = model(torch.tensor([make_ids(held_out, 64)])).logits
    assert logits.dtype == torch.float32
    assert len(outputs) == len(model.model.layers) - 1 > 0
    assert all(weights.dtype == logits.dtype == torch.float32 for _, weights, logits in outputs)


def test_narrow_dtypes_stay_near_the_oracle(held_out, load_hf, capture_hf, capture_oracle):
    ids = make_ids(held_out, 64)
    references = capture_oracle(ids)
    values = capture_hf(load_hf(dtype="bfloat16"), ids)
    np.testing.assert_array_equal(values["embeddings"], references["embeddings"])
    assert 1e-4 < relative_l2(values["logits"], references["logits"]) < 0.1


BREAKS = {
    "causal-mask": ("layers.0.attention.output", {"block = positions // block_length": "block = positions"}),
    "bias-ignored": ("layers.1.router.expert_ids", {"scores + self.expert_bias.float()": "scores"}),
    "scaling-dropped": ("layers.1.router.expert_weights", {"weights * self.routed_scaling_factor": "weights"}),
    "group-limit-lifted": ("layers.1.router.expert_ids", {".topk(self.kept_groups": ".topk(self.groups"}),
    "bias-in-the-weights": ("layers.1.router.expert_weights", {"scores.gather(-1": "ranked.gather(-1"}),
    "shared-expert-dropped": ("layers.1.mlp.output", {"(routed + self.shared_experts(flat))": "routed"}),
    "another-theta": ("layers.0.attention.output", {"self.theta = config.rope_theta": "self.theta = 10000.0"}),
    "norm-after-rope": (
        "layers.0.attention.query",
        {
            "query, key = self.query_layernorm(query), self.key_layernorm(key)\n": "pass\n",
            "query, key = rotate(query, cos, sin), rotate(key, cos, sin)\n": (
                "query = self.query_layernorm(rotate(query, cos, sin).transpose(1, 2)).transpose(1, 2)\n"
                "        key = self.key_layernorm(rotate(key, cos, sin).transpose(1, 2)).transpose(1, 2)\n"
            ),
        },
    ),
}
"""Faults, with the first tensor that each makes wrong, and the edits of the modeling file that plant it."""


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_modeling_file_is_seen(name, tiny, tmp_path, held_out, load_hf, capture_hf, capture_oracle):
    """Also the proof that the agreement above can fail."""
    tensor, edits = BREAKS[name]
    broken = tmp_path / name.replace("-", "_")
    shutil.copytree(tiny, broken)
    source = (broken / "modeling_llada2_moe.py").read_text(encoding="utf-8")
    for right, wrong in edits.items():
        assert source.count(right) == 1
        source = source.replace(right, wrong)
    (broken / "modeling_llada2_moe.py").write_text(source, encoding="utf-8")
    ids = make_ids(held_out, 64)
    values, references = capture_hf(load_hf(broken), ids), capture_oracle(ids)
    assert first_difference(values, references) == tensor
    assert relative_l2(values["logits"], references["logits"]) > 100 * RELATIVE_L2


def imported_modules(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}


def test_the_two_readings_do_not_import_each_other(tiny):
    oracle = set(tiny.parent.glob("llada2*.py")) | {tiny.parent / "checkpoint.py"}
    assert len(oracle) == 4
    for path in oracle:
        roots = {module.split(".")[0] for module in imported_modules(path)}
        assert not roots & {"torch", "transformers", "safetensors"}
        assert not any("tiny_llada2" in module for module in imported_modules(path))
    for path in tiny.glob("*.py"):
        assert not {module.split(".")[0] for module in imported_modules(path)} & {"specrunner", "numpy"}
