"""What a failed case says of its layers, fed with the reference's inputs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file

from specrunner.checks.localisation import add_local_errors, diagnose
from specrunner.results import CheckResult

CLEAN = "fed with the reference's inputs, every layer is within its limit: the errors only accumulate"


def store(path: Path, tensors: dict[str, torch.Tensor]) -> Any:
    save_file(tensors, path)
    return SimpleNamespace(tensors_path=path)


def check(subject: str, rule: str, limits: dict[str, Any], error: float, passed: bool) -> CheckResult:
    return CheckResult(subject, rule, passed, "" if passed else "wrong", {"relative_l2": error}, limits)


def read_findings(tmp_path: Path, local: dict[str, float], checks: list[CheckResult]) -> list[str]:
    """Return the findings for captures whose relative L2 errors are `local`."""
    right = {name: torch.ones(4, 8, dtype=torch.float64) for name in local}
    wrong = {name: right[name] * (1 + error) for name, error in local.items()}
    reference, led = store(tmp_path / "right.safetensors", right), store(tmp_path / "led.safetensors", wrong)
    diagnosis = diagnose(checks)
    assert diagnosis is not None
    return list(add_local_errors(diagnosis, {"inputs": led}, reference, checks).findings)


def test_rounding_under_a_limit_that_is_too_narrow_accuses_no_layer(tmp_path: Path) -> None:
    checks = [
        check("layers.0.output", "cosine", {"min": 0.999}, 0.005, True),
        check("layers.1.output", "cosine", {"min": 0.999}, 0.006, True),
        check("logits", "cosine", {"min": 0.99999}, 0.0047, False),
    ]
    local = {"layers.0.output": 0.005, "layers.1.output": 0.004, "logits": 0.002}
    assert read_findings(tmp_path, local, checks) == [CLEAN], "and no part is suspected"


def test_a_layer_beyond_the_angle_that_cosine_allows_is_named(tmp_path: Path) -> None:
    checks = [
        check("layers.0.output", "cosine", {"min": 0.999}, 0.005, True),
        check("layers.1.output", "cosine", {"min": 0.999}, 0.3, False),
        check("logits", "cosine", {"min": 0.999}, 0.3, False),
    ]
    local = {"layers.0.output": 0.005, "layers.1.output": 0.3, "logits": 0.004}
    (finding, *_) = read_findings(tmp_path, local, checks)
    assert finding == "fed with the reference's inputs, layer 1 is wrong without help, first at layers.1.output"


def test_without_a_limit_on_the_error_the_rules_verdict_on_the_run_counts(tmp_path: Path) -> None:
    limits = {"rtol": 1e-3, "atol": 0.0, "outliers": 0.0}
    checks = [
        check("layers.0.output", "allclose", limits, 0.005, True),
        check("layers.1.output", "allclose", limits, 0.3, False),
    ]
    both = {"layers.0.output": 0.0049, "layers.1.output": 0.1}
    (finding, *_) = read_findings(tmp_path, both, checks)
    assert finding == "fed with the reference's inputs, layer 1 is wrong without help, first at layers.1.output"
    assert CLEAN in read_findings(tmp_path, {"layers.0.output": 0.0049, "layers.1.output": 0.02}, checks)
