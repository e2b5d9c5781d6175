"""The LLaDA2.0 suite as written: mini and flash alike, a tiny case for each, one reason where it cannot run."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from safetensors import safe_open

from specrunner import devices
from specrunner.plan.build import make_plan
from specrunner.plan.capabilities import check_capabilities
from specrunner.spec.loader import load_specs
from specrunner.spec.select import parameter_of

ROOT = Path(__file__).parents[1]
SUITE = ROOT / "specs" / "llada2"
PAGE = (ROOT / "docs" / "llada2.md").read_text(encoding="utf-8")
# Vocabulary, layers, hidden, dense width, heads, KV heads, head size, experts, expert width: from the models' configs.
SIZES = {
    "mini": (157184, 20, 2048, 5120, 16, 4, 128, 256, 512),
    "flash": (157184, 32, 4096, 9216, 32, 4, 128, 256, 1024),
}


def test_flash_has_the_cases_of_mini() -> None:
    mini, flash = ((SUITE / f"{name}.yaml").read_text(encoding="utf-8") for name in ("mini", "flash"))
    mini, flash = (text[text.index("    tiny:\n") :] for text in (mini, flash))
    assert flash.replace("flash", "mini") == mini


@pytest.mark.parametrize("name", ["mini", "flash", "token-for-token"])
def test_every_case_has_a_tiny_one(name: str) -> None:
    cases = check_capabilities(load_specs([str(SUITE / f"{name}.yaml")])).require_valid()
    large = [case for case in cases if parameter_of(case, "model") != "tiny"]
    tiny = {case.name for case in cases if parameter_of(case, "model") == "tiny"}
    assert large and {case.name for case in large} == tiny
    for case in cases:
        assert case.candidate.options.get("block_length", case.candidate.options.get("specrunner_block_length")) == 32


@pytest.mark.parametrize("name", ["mini", "flash"])
def test_without_a_gpu_there_is_one_reason(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    devices.has_cuda.cache_clear()
    try:
        cases = load_specs([str(SUITE / f"{name}.yaml")]).require_valid()
        plan = make_plan([case for case in cases if parameter_of(case, "model") == name])
    finally:
        devices.has_cuda.cache_clear()
    assert plan.cases and not plan.sessions
    assert {planned.skip.message for planned in plan.cases if planned.skip} == {"requires a CUDA device"}
    assert all(planned.skip for planned in plan.cases)


@pytest.mark.parametrize("length", [1, 16, 32, 41, 64, 100])
def test_lengths_cover_edges_and_what_lies_between(length: int) -> None:
    cases = load_specs([str(SUITE / "mini.yaml")]).require_valid()
    assert any(case.prompt.length == length for case in cases)


def count_parameters(sizes: tuple[int, ...]) -> int:
    vocabulary, layers, hidden, dense, heads, kv_heads, head_dim, experts, width = sizes
    attention = hidden * (heads + 2 * kv_heads) * head_dim + heads * head_dim * hidden + 2 * head_dim
    mixture = (experts + 1) * 3 * hidden * width + experts * hidden + experts
    frame = 2 * vocabulary * hidden + hidden
    return frame + layers * (attention + 2 * hidden) + 3 * hidden * dense + (layers - 1) * mixture


def test_the_formula_is_right_where_weights_can_be_counted() -> None:
    with safe_open(ROOT / "specrunner" / "models" / "tiny_llada2" / "model.safetensors", "np") as weights:
        total = sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    assert count_parameters((320, 4, 128, 512, 4, 2, 64, 32, 64)) == total


@pytest.mark.parametrize("name", list(SIZES))
def test_the_page_states_what_the_formula_gives(name: str) -> None:
    count = count_parameters(SIZES[name])
    row = next(line for line in PAGE.splitlines() if line.startswith("| weights in bfloat16"))
    column = 1 + list(SIZES).index(name)
    assert float(re.findall(r"[\d.]+ GB", row)[column - 1].split()[0]) == pytest.approx(2 * count / 1e9, abs=0.5)
    row = next(line for line in PAGE.splitlines() if line.startswith("| weights in float32"))
    assert float(re.findall(r"[\d.]+ GB", row)[column - 1].split()[0]) == pytest.approx(4 * count / 1e9, abs=0.5)
