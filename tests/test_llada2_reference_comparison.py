"""LLaDA2.0 token for token: one engine against another on fixed inputs (specs/llada2/token-for-token.yaml)."""

from __future__ import annotations

from pathlib import Path

import pytest

from specrunner.testing import SpecRun, run_specs

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def comparison() -> SpecRun:
    """Every pair of engines, each loaded once."""
    return run_specs("specs/llada2/token-for-token.yaml", parameters={"model": "tiny"}, cwd=ROOT)


@pytest.mark.engine
@pytest.mark.correctness
@pytest.mark.dllm_reference
@pytest.mark.xdist_group("llada2-reference")
class TestLLaDA2ReferenceComparison:
    """Tokens equal, and the distribution at every pass."""

    @pytest.mark.vllm
    @pytest.mark.sglang
    def test_vs_sglang_implementation(self, comparison: SpecRun) -> None:
        comparison.verify("vs-sglang")

    @pytest.mark.vllm
    @pytest.mark.sglang
    def test_vs_huggingface_transformers(self, comparison: SpecRun) -> None:
        comparison.verify("vs-transformers")

    @pytest.mark.slow  # and in specs/, which the README's first command runs
    def test_golden_outputs(self) -> None:
        """Kept captures of the tiny checkpoint: a change that engine and reference made together shows here."""
        found = run_specs("specs/llada2/tiny-golden.yaml", cwd=ROOT).verify()
        assert all(any(check.against == "golden" for check in case.checks) for case in found)
