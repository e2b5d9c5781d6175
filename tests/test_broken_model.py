"""One thing broken in the modeling file turns cases red, and the report names the first tensor in model order."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import specrunner
from tests.commands import Command

CHECKPOINT = Path(specrunner.__file__).parent / "models" / "tiny_llada2"

SPEC = """\
version: 1
model: {path: %s, trust_remote_code: true}
engines: [hf]
reference: {engine: oracle, dtype: float64}
cases:
  - name: every-tensor
    prompt: {text: "add 17 and 25 = and then reverse the word engine = ", length: 40}
    tolerance:
      "**.expert_ids": exact
      "**": {sqnr: 80}
  - name: decode
    prompt: "copy: specrunner = "
    decode: {max_new_tokens: 24, algorithm: low_confidence, block_length: 16, threshold: 0.95}
    tokens: exact
"""

BREAKS = {
    "nothing": ("", "", None),
    "causal mask": (
        "mask = block_causal_mask(position_ids, self.config.block_length)",
        "mask = block_causal_mask(position_ids, 1)",
        "layers.0.attention.output",
    ),
    "expert bias ignored": (
        "ranked = scores + self.expert_bias.float()",
        "ranked = scores",
        "layers.1.router.expert_ids",
    ),
    "scaling factor dropped": (
        "weights = weights * self.routed_scaling_factor",
        "weights = weights",
        "layers.1.router.expert_weights",
    ),
    "shared expert dropped": (
        "return (routed + self.shared_experts(flat)).view(hidden.shape)",
        "return routed.view(hidden.shape)",
        "layers.1.mlp.output",
    ),
}

FINDINGS = {
    "causal mask": ("layers 0-3 are wrong without help, first at layers.0.attention.output", "suspect RoPE, the mask"),
    "expert bias ignored": ("replayed, layers.3.mlp.output is clean: the router is at fault", "suspect the choice"),
    "scaling factor dropped": ("is clean: the router is at fault", "suspect the weights of the chosen experts"),
    "shared expert dropped": (
        "stays wrong: the experts are at fault, not the router",
        "layer 0 is clean and layer 1, the first with routed experts, is not",
    ),
}
"""What the report must say of each."""


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.parametrize("broken", BREAKS)
def test_a_broken_line_turns_cases_red_at_the_right_tensor(tmp_path: Path, broken: str) -> None:
    model = tmp_path / "model"
    shutil.copytree(CHECKPOINT, model)
    line, replacement, first = BREAKS[broken]
    modeling = model / "modeling_llada2_moe.py"
    text = modeling.read_text()
    assert not line or text.count(line) == 1
    modeling.write_text(text.replace(line, replacement) if line else text)
    (tmp_path / "spec.yaml").write_text(SPEC % model)
    done = Command(["run", "spec.yaml", "--json", "r.json"], tmp_path, os.environ)
    stdout, stderr = done.communicate(timeout=300)
    cases = {case["name"]: case for case in json.loads((tmp_path / "r.json").read_text())["cases"]}
    if first is None:
        assert done.returncode == 0, stdout + stderr
        return
    assert done.returncode == 1, stdout + stderr
    assert cases["every-tensor"]["verdict"] == "failed"
    red = [check["subject"] for check in cases["every-tensor"]["checks"] if not check["passed"]]
    assert red[0] == first
    assert f"{first} is the first that went wrong" in stdout
    diagnosis = cases["every-tensor"]["diagnosis"]
    assert diagnosis["tensor"] == first
    assert {row["tensor"] for row in diagnosis["local"]} >= {"embeddings", "layers.3.output", "logits"}
    for finding in FINDINGS[broken]:
        assert any(finding in found for found in diagnosis["findings"]), diagnosis["findings"]
        assert finding in stdout
