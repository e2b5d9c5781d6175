"""`specrunner calibrate` on a live engine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from specrunner.cli import main

SPEC = """\
version: 1
model: {recipe: tiny-llada2, trust_remote_code: true}
engines: [hf]
dtype: float32
reference: {engine: oracle}
cases:
  - name: forward
    prompt: {text: "reverse stone:enots 27+77=104 sort 53102:", length: 39}
    tolerance: {logits: {sqnr: 40}, layers.0.output: {kl: {mean: 1}}} # wide
"""


@pytest.mark.slow
def test_wide_limits_are_narrowed_to_what_the_noise_supports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = tmp_path / "a.yaml"
    spec.write_text(SPEC)
    chosen = ["calibrate", "a.yaml", "--prompts", "1", "--variant", "variant-row-*"]
    monkeypatch.setenv("CI", "true")
    assert main([*chosen, "--write"]) == 4
    assert "refused under CI" in capsys.readouterr().err
    monkeypatch.delenv("CI")
    assert main([*chosen, "--write"]) == 0
    out = capsys.readouterr().out
    assert "sqnr.min 40: noise 0% at p99" in out
    assert "0 of 6" in out  # the engine as it is and two variants, on two prompts
    assert re.search(r"^wrote (1 limit|[2-9] limits) to a\.yaml$", out, re.MULTILINE)
    narrowed = spec.read_text()
    limit = int(narrowed.partition("sqnr: ")[2].partition("}")[0])
    assert 100 <= limit <= 120
    assert narrowed.partition("tolerance")[0] == SPEC.partition("tolerance")[0]
    assert narrowed.endswith("# wide\n")
    assert main(["validate", "a.yaml"]) == 0


@pytest.mark.parametrize("pattern", ["nope", "mask-causal"])
def test_only_a_variant_can_be_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], pattern: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(SPEC)
    assert main(["calibrate", "a.yaml", "--variant", pattern]) == 4
    assert capsys.readouterr().err == (
        f"error: no variant is called '{pattern}'\n  help: `specrunner prove --list` names the variants\n"
    )
