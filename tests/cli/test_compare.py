"""`specrunner compare` as a user starts it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from specrunner.cli import main
from specrunner.engines.base import Capture
from specrunner.sessions.captures import write_capture


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(1)
    tensors = {
        "embeddings": torch.randn(6, 8, generator=generator),
        "layers.0.router.expert_ids": torch.arange(12).view(6, 2),
        "layers.0.output": torch.randn(6, 8, generator=generator),
        "logits": torch.randn(6, 50, generator=generator),
    }
    changed = {name: tensor.clone() for name, tensor in tensors.items()}
    changed["layers.0.output"][4, 2] += 0.01
    changed["logits"][1] += 0.5
    save_file(tensors, "old.safetensors")
    save_file(changed, "new.safetensors")
    for name, content, output in (("old", tensors, [7, 8]), ("new", changed, [7, 9])):
        write_capture(tmp_path / name, Capture([1, 2, 3, 4, 5, 6], content, output))
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(["compare", *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_without_a_tolerance_everything_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "new.safetensors", "old.safetensors")
    assert status == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[:5]] == [
        "tensor",
        "embeddings",
        "layers.0.router.expert_ids",
        "layers.0.output",
        "logits",
    ]
    assert lines[-1] == "first divergence: layers.0.output: max |a-r| 0.01 at token 4"
    assert run(capsys, "old", "old.safetensors")[1].endswith("no difference\n")


def test_captures_compare_tokens_too(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "new", "old", "--tolerance", "{sqnr: 1}")
    assert status == 1
    assert "first divergence: tokens: first mismatch at position 1" in out
    assert run(capsys, "old", "old", "--tolerance", "exact")[:2][0] == 0


@pytest.mark.parametrize(
    ("rules", "status", "first"),
    [
        ("exact", 1, "layers.0.output"),
        ("{sqnr: 30}", 1, "logits"),
        ("{sqnr: 1}", 0, None),
        ('{logits: {sqnr: 30}, "layers.**": {sqnr: 80}}', 1, "layers.0.output"),
        ("{logits: {kl: {mean: 1e-9}}}", 0, None),
        ("{logits: {allclose: {rtol: 0, atol: 0.6}}}", 0, None),
        ("{logits: {allclose: {rtol: 0, atol: 0.4}}}", 1, "logits"),
    ],
)
def test_a_tolerance_judges(rules: str, status: int, first: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    found, out, _ = run(capsys, "new.safetensors", "old.safetensors", "--tolerance", rules, "--json", "-")
    report = json.loads(out)
    assert (found, report["first_divergence"]) == (status, first)
    assert len(report["tensors"]) == 4
    Path("t.yaml").write_text(f"tolerance: {rules}\n" if rules.startswith("{") else rules + "\n")
    assert run(capsys, "new.safetensors", "old.safetensors", "--tolerance", "t.yaml", "--json", "r.json")[0] == status
    assert json.loads(Path("r.json").read_text()) == report


def test_what_no_rule_speaks_of_is_in_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    rules = '{logits: {sqnr: 1}, "layers.*.output": {sqnr: 1}}'
    _, out, _ = run(capsys, "new.safetensors", "old.safetensors", "--tolerance", rules, "--json", "-")
    assert json.loads(out)["uncovered"] == ["embeddings", "layers.0.router.expert_ids"]


@pytest.mark.parametrize(
    "rules",
    [
        "{sqnr: 0}",
        "{logits: {sqnr: {min: -1000}}}",
        "{cosine: 0}",
        "{cosine: {min: -1}}",
        "{allclose: {rtol: 1, atol: 0}}",
        "{ulp: 4194305}",
        "{ulp: {max: 9007199254740992}}",
    ],
)
def test_limits_that_zeros_would_pass_are_no_tolerance(rules: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, error = run(capsys, "new.safetensors", "old.safetensors", "--tolerance", rules)
    assert (status, "is not a tolerance" in error) == (4, True)


def test_integers_are_equal_or_not(capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"layers.0.router.expert_ids": torch.tensor([[1, 2]])}, "a.safetensors")
    save_file({"layers.0.router.expert_ids": torch.tensor([[1, 3]])}, "b.safetensors")
    status, out, _ = run(capsys, "a.safetensors", "b.safetensors", "--tolerance", "{sqnr: 1}")
    assert status == 1
    assert "first divergence: layers.0.router.expert_ids" in out


def test_a_tensor_that_one_side_lacks_fails(capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"embeddings": torch.ones(2, 2), "logits": torch.ones(2, 3)}, "a.safetensors")
    save_file({"embeddings": torch.ones(2, 2)}, "b.safetensors")
    status, out, _ = run(capsys, "a.safetensors", "b.safetensors", "--tolerance", "exact")
    assert status == 1
    assert "missing in reference" in out
    assert "first divergence: logits: missing in reference" in run(capsys, "a.safetensors", "b.safetensors")[1]


def test_nothing_in_common_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"a": torch.ones(1)}, "a.safetensors")
    status, _, err = run(capsys, "a.safetensors", "old.safetensors")
    assert status == 5
    assert "no tensor and no tokens in common" in err
    status, _, err = run(capsys, "new.safetensors", "old.safetensors", "--tolerance", "{final_norm: exact}")
    assert status == 5
    assert "no rule speaks" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.safetensors", "old.safetensors"), "none.safetensors cannot be read"),
        (("broken.safetensors", "old.safetensors"), "broken.safetensors cannot be read"),
        (("specs", "old.safetensors"), "lacks its completion mark"),
        (("new.safetensors", "old.safetensors", "--tolerance", "{sqnr: high}"), "is not a tolerance"),
        (("new.safetensors", "old.safetensors", "--tolerance", "{sqrn: 40}"), "is not a tolerance"),
        (("new.safetensors", "old.safetensors", "--tolerance", "none.yaml"), "there is no file none.yaml"),
        (("new.safetensors", "old.safetensors", "--tolerance", "{a: 1, a: 2}"), "duplicate-key"),
        (
            ("new.safetensors", "old.safetensors", "--json", "old/capture.json/r.json"),
            "cannot write the JSON report",
        ),
    ],
)
def test_what_cannot_be_done_is_a_usage_error(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("specs").mkdir()
    Path("broken.safetensors").write_bytes(Path("old.safetensors").read_bytes()[:-3])
    status, _, err = run(capsys, *arguments)
    assert status == 4
    assert message in err
