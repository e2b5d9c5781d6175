"""LLaDA2.0 point by point: each test holds an engine to some cases of specs/llada2/mini.yaml, on `tiny`."""

from __future__ import annotations

from pathlib import Path

import pytest

from specrunner.testing import SpecRun, run_specs

ROOT = Path(__file__).parents[1]
ENGINES = [
    pytest.param("hf", marks=pytest.mark.slow),
    pytest.param("vllm", marks=pytest.mark.vllm),
    pytest.param("sglang", marks=pytest.mark.sglang),
]


@pytest.fixture(scope="module", params=ENGINES)
def suite(request: pytest.FixtureRequest) -> SpecRun:
    """The whole suite on one engine, whose sessions are loaded once."""
    return run_specs("specs/llada2/mini.yaml", parameters={"model": "tiny", "engine": request.param}, cwd=ROOT)


@pytest.mark.engine
@pytest.mark.correctness
@pytest.mark.dllm_correctness
@pytest.mark.xdist_group("llada2-correctness")
class TestLLaDA2Correctness:
    """The eight points, in the order in which the model computes them."""

    def test_embeddings_exact(self, suite: SpecRun) -> None:
        suite.verify("1-embeddings")

    def test_attention_output_vs_reference(self, suite: SpecRun) -> None:
        suite.verify("2-attention or 2-mask-geometry")

    def test_moe_routing_vs_spec(self, suite: SpecRun) -> None:
        suite.verify("3-first-router or 3-mixture-of-experts")

    def test_decoder_layer_vs_reference(self, suite: SpecRun) -> None:
        suite.verify("4-decoder-layer")

    def test_stack_error_growth(self, suite: SpecRun) -> None:
        suite.verify("5-stack")

    def test_final_norm_vs_reference(self, suite: SpecRun) -> None:
        suite.verify("6-final-norm")

    def test_lm_head_vs_reference(self, suite: SpecRun) -> None:
        suite.verify("7-logits")

    def test_end_to_end_distribution(self, suite: SpecRun) -> None:
        suite.verify("8-end-to-end or masked-states")

    def test_logits_precision_fp16(self, suite: SpecRun) -> None:
        found = suite.verify("8-half-precision and not bfloat16")
        assert {case.candidate.dtype for case in found} == {"float16"}

    def test_generated_tokens_vs_reference(self, suite: SpecRun) -> None:
        suite.verify("generation")

    def test_nothing_was_left_out(self, suite: SpecRun) -> None:
        assert {case.verdict for case in suite.verify()} == {"passed"}
