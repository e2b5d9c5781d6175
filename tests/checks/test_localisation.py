"""Where a failing case first went wrong: the tensor, the token, the size, and what the pattern of the errors says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from specrunner.checks.localisation import add_local_errors, diagnose
from specrunner.results import CheckResult, Diagnosis

FLOOR = 0.01


def floored(subject: str, error: Any, against: str = "reference", **measured: Any) -> CheckResult:
    """A tensor under `noise_floor` with k = 3 over a floor of 0.01."""
    numbers = {"relative_l2": error, "peer_relative_l2": FLOOR, **measured}
    passed = isinstance(error, float) and error <= 3 * FLOOR
    return CheckResult(subject, "noise_floor", passed, "" if passed else "x", numbers, {"k": 3.0}, against=against)


def told(errors: Mapping[str, Any]) -> Diagnosis:
    found = diagnose([floored(name, error) for name, error in errors.items()])
    assert found is not None
    return found


def test_the_first_wrong_tensor_is_named_with_its_token_and_its_size() -> None:
    checks = [
        floored("embeddings", 0.0),
        floored("layers.0.output", 0.005),
        floored("layers.1.attention.key", 0.05, floor_token=3, max_relative_l2_token=9, floor_ratio_by_token=6.5),
        floored("layers.1.output", 0.5, floor_token=4),
    ]
    found = diagnose(checks)
    assert found is not None
    assert (found.tensor, found.token, found.factor) == ("layers.1.attention.key", 3, 6.5)
    assert found.findings == (
        "first wrong at layers.1.attention.key: suspect the key projection or the norm of the keys",
        "layer 0 is within the limits",
    )
    assert [row["tensor"] for row in found.growth] == [check.subject for check in checks]
    assert found.growth[2] == {
        "tensor": "layers.1.attention.key",
        "error": 0.05,
        "floor": FLOOR,
        "limit": pytest.approx(3 * FLOOR),
    }


def test_a_case_without_tensors_has_no_diagnosis() -> None:
    tokens = CheckResult("tokens", "exact", False, "x", {"relative_l2": 1.0})
    missing = CheckResult("logits", "evidence", False, "missing in candidate", {})
    geometry = CheckResult("attention", "attention", False, "x", {})
    task = CheckResult("mmlu", "benchmark", False, "x", {})
    assert diagnose([tokens, missing, geometry, task]) is None
    found = diagnose([tokens, missing, floored("passes.0.logits", 0.5)])
    assert found is not None and found.tensor == "passes.0.logits"


def test_tensors_within_their_limits_point_to_the_decoding() -> None:
    found = told({"embeddings": 0.0, "logits": 0.02})
    assert (found.tensor, found.token, found.factor) == ("", None, None)
    assert found.findings == ("no tensor left its limit: look at the decoding",)
    assert [row["error"] for row in found.growth] == [0.0, 0.02]


def test_the_side_that_fails_is_the_one_that_is_read() -> None:
    against_reference = floored("layers.0.output", 0.001)
    against_golden = floored("layers.0.output", 0.9, against="golden", floor_ratio_by_token=90.0)
    found = diagnose([against_reference, against_golden])
    assert found is not None and (found.tensor, found.growth[0]["error"]) == ("layers.0.output", 0.9)
    found = diagnose([floored("logits", 0.9), floored("embeddings", 0.9, against="golden")])
    assert found is not None and found.tensor == "logits"
    found = diagnose([against_reference, floored("layers.0.output", 0.002, against="golden")])
    assert found is not None and found.growth[0]["error"] == 0.001
    tokens = CheckResult("tokens", "exact", False, "x", {})
    found = diagnose([against_reference, tokens, against_golden])
    assert found is not None and (found.tensor, found.growth[0]["error"]) == ("", 0.001)


def check(rule: str, measured: Mapping[str, Any], **limits: Any) -> CheckResult:
    return CheckResult("layers.0.output", rule, False, "x", dict(measured), limits)


@pytest.mark.parametrize(
    ("failed", "factor", "token"),
    [
        (check("noise_floor", {"floor_ratio": 4.0, "floor_token": 2}, k=3.0), 4.0, 2),
        (check("noise_floor", {"floor_ratio_by_token": "inf", "floor_ratio": 7.0}, k=3.0), 7.0, None),
        (check("sqnr", {"min_sqnr": 20.0, "min_sqnr_token": 5}, min=40.0), 10.0, 5),
        (check("sqnr", {"min_sqnr": "-inf", "min_sqnr_token": 5}, min=40.0), None, 5),
        (check("cosine", {"min_cosine": 0.97, "min_cosine_token": 6}, min=0.99), 3.0, 6),
        (check("cosine", {"min_cosine": 0.97, "min_cosine_token": 6}, min=1.0), None, 6),
        (check("kl", {"max_kl_token": 7, "max_relative_l2_token": 1}, mean=0.1), None, 7),
        (check("allclose", {"relative_l2": 0.5, "peer_relative_l2": 0.1, "max_relative_l2_token": 1}), 5.0, 1),
        (check("allclose", {"relative_l2": 0.5, "peer_relative_l2": 0.0}), None, None),
        (check("allclose", {"relative_l2": "nan", "peer_relative_l2": 0.1}), None, None),
        (check("routing", {"differing": [{"token": 8}, {"token": 2}]}, all=1.0), None, 8),
        (check("routing", {"differing": []}, all=1.0), None, None),
        (check("routing", {}, all=1.0), None, None),
    ],
)
def test_the_size_and_the_token_of_an_error_under_each_rule(
    failed: CheckResult, factor: float | None, token: int | None
) -> None:
    found = diagnose([failed])
    assert found is not None
    assert (found.factor, found.token) == (pytest.approx(factor) if factor else None, token)


def test_the_growth_keeps_the_strictest_limit_of_a_tensor() -> None:
    numbers = {"relative_l2": 0.5}
    checks = [
        check("allclose", numbers, rtol=0.0, atol=0.0),
        check("sqnr", numbers | {"min_sqnr": 20.0}, min=20.0),
        check("sqnr", numbers | {"min_sqnr": 20.0}, min=40.0),
        check("sqnr", numbers | {"min_sqnr": 20.0}, min=30.0),
        check("top_k", {"mean_top_1_overlap": 0.5}, k=1, overlap=1.0),
    ]
    (row,) = diagnose(checks).growth  # type: ignore[union-attr]
    assert row == {"tensor": "layers.0.output", "error": 0.5, "floor": None, "limit": pytest.approx(0.01)}
    (row,) = diagnose(checks[:1]).growth  # type: ignore[union-attr]
    assert row["limit"] is None
    (row,) = diagnose([*checks, check("exact", numbers)]).growth  # type: ignore[union-attr]
    assert row["limit"] == 0.0
    assert diagnose(checks[4:]).growth == ()  # type: ignore[union-attr]


EXPERTS = "clean and layer 1, the first with routed experts, is not: a fault of the mixture of experts"


@pytest.mark.parametrize(
    ("errors", "finding"),
    [
        ({"layers.0.output": 0.0, "layers.1.router.logits": 0.0, "layers.1.output": 0.9}, f"layer 0 is {EXPERTS}"),
        (
            {"layers.0.output": 0.9, "layers.1.router.logits": 0.0, "layers.1.output": 0.9},
            "first wrong at layers.0.output: compare layers.0.attention.* and layers.0.mlp.output to see which part",
        ),
        (
            {"layers.0.output": 0.0, "layers.1.router.logits": 0.0, "layers.1.output": 0.0, "layers.2.output": 0.9},
            "layers 0, 1 are within the limits",
        ),
        (
            {f"layers.{layer}.output": 0.9 * (layer == 4) for layer in range(5)},
            "layers 0-3 are within the limits",
        ),
        (
            {f"layers.{layer}.output": 0.9 * (layer == 4) for layer in (0, 2, 3, 4)},
            "layers 0, 2, 3 are within the limits",
        ),
        (
            {"layers.0.router.logits": 0.0, "layers.0.mlp.output": 0.9},
            "first wrong at layers.0.mlp.output: "
            "suspect the experts, the shared expert or their sum, since the router agrees",
        ),
        (
            {"layers.0.mlp.output": 0.9, "layers.1.router.logits": 0.0},
            "first wrong at layers.0.mlp.output: "
            "suspect the feed-forward network: experts, shared expert, scaling or their sum",
        ),
        (
            {"layers.1.attention.output": 0.0, "layers.1.output": 0.9},
            "first wrong at layers.1.output: suspect the residual stream or a norm",
        ),
        ({"final_norm": 0.9}, "first wrong at final_norm: suspect the final norm"),
        ({"layers.0.output": 0.9, "final_norm": 0.0}, "what comes after it is within its limits again"),
    ],
)
def test_the_pattern_over_the_layers(errors: dict[str, float], finding: str) -> None:
    assert finding in told(errors).findings


@pytest.mark.parametrize(
    ("errors", "absent"),
    [
        ({"layers.0.output": 0.9, "final_norm": 0.9}, "within its limits again"),
        ({"logits": 0.9, "embeddings": 0.0}, "within its limits again"),
        ({"layers.0.output": 0.9}, "within its limits again"),
        ({"layers.0.router.logits": 0.0, "layers.0.output": 0.9}, "mixture of experts"),
        ({"layers.0.output": 0.0, "layers.1.output": 0.9}, "mixture of experts"),
        ({"layers.1.output": 0.9}, "within the limits"),
        ({"layers.0.router.logits": 0.9, "layers.0.mlp.output": 0.9}, "since the router agrees"),
    ],
)
def test_what_the_pattern_does_not_show_is_not_said(errors: dict[str, float], absent: str) -> None:
    assert absent not in " ".join(told(errors).findings)


def by_token(largest: Sequence[Any], tokens: int | None = None) -> tuple[str, ...]:
    errors = {"tokens": tokens or len(largest), "tokens_per_number": 1, "largest": list(largest)}
    found = diagnose([floored("logits", 0.9, token_errors=errors)])
    assert found is not None
    return found.findings[1:]


LEAK = ("position 0 is worst: what it must not see leaks in, or its position is off",)


@pytest.mark.parametrize(
    ("largest", "findings"),
    [
        ([0.9, 0.4, 0.4, 0.4], LEAK),
        ([0.9, 0.8, 0.8, 0.8], ()),
        (["inf", 0.4, 0.4, 0.4], LEAK),
        ([0.9, 0.1, 0.1], ()),  # too few to tell
        ([0.001, 0.001, 0.8, 0.9], ("clean up to token 1, wrong from token 2 on",)),
        ([0.001, 0.001, "inf", "inf"], ("clean up to token 1, wrong from token 2 on",)),
        ([0.001, 0.9, 0.001, 0.9], ()),
        ([0.001] * 4 + [0.9] + [0.001] * 4, ("token 4 alone is wrong",)),
        ([0.001] * 4 + ["inf"] + [0.001] * 4, ("token 4 alone is wrong",)),
        ([0.001] * 4 + [0.9] + [0.001] * 3, ()),
        ([0.001] * 4 + [0.9, 0.089] + [0.001] * 3, ("token 4 alone is wrong",)),
        ([0.001] * 4 + [0.9, 0.091] + [0.001] * 3, ()),
        ([0.0, 0.0, 0.0, 0.0], ()),
    ],
)
def test_the_pattern_over_the_tokens(largest: list[Any], findings: tuple[str, ...]) -> None:
    assert by_token(largest) == findings


def test_neighbours_told_together_show_no_pattern_of_tokens() -> None:
    assert by_token([0.001, 0.001, 0.8, 0.9], tokens=8) == ()


def stored(folder: Path, name: str, tensors: Mapping[str, torch.Tensor]) -> Any:
    path = folder / f"{name}.safetensors"
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, path)
    return SimpleNamespace(tensors_path=path)


ONES = torch.ones(2, 4)


def localise(
    folder: Path, run: Diagnosis, errors: Mapping[str, float], replayed: Mapping[str, float] | None = None
) -> Diagnosis:
    """Add local errors of these sizes, and those with the reference's experts replayed."""
    reference = stored(folder, "reference", dict.fromkeys(errors, ONES))
    led = {"inputs": stored(folder, "inputs", {name: ONES * (1 + error) for name, error in errors.items()})}
    if replayed is not None:
        led["routing"] = stored(folder, "routing", {name: ONES * (1 + error) for name, error in replayed.items()})
    return add_local_errors(run, led, reference)


def test_errors_that_only_accumulate(tmp_path: Path) -> None:
    run = told({"layers.0.output": 0.02, "layers.1.output": 0.06})
    found = localise(tmp_path, run, {"layers.0.output": 0.02, "layers.1.output": 0.02})
    assert found.findings == (
        "fed with the reference's inputs, every layer is within its limit: the errors only accumulate",
        *(one for one in run.findings if not one.startswith("first wrong at ")),
    )
    assert (found.tensor, found.token, found.factor, found.growth) == (run.tensor, run.token, run.factor, run.growth)
    assert [(row["tensor"], pytest.approx(row["error"], abs=1e-6)) for row in found.local] == [
        ("layers.0.output", 0.02),
        ("layers.1.output", 0.02),
    ]


def test_layers_wrong_without_help_are_named(tmp_path: Path) -> None:
    run = told({"layers.0.output": 0.5, "layers.1.output": 0.5, "layers.2.output": 0.5})
    found = localise(tmp_path, run, {"layers.0.output": 0.01, "layers.1.output": 0.05, "layers.2.output": 0.04})
    assert found.findings[0] == (
        "fed with the reference's inputs, layers 1, 2 are wrong without help, first at layers.1.output"
    )
    found = localise(tmp_path, run, {"layers.0.output": 0.01, "layers.1.output": 0.05, "layers.2.attention.key": 0.4})
    assert found.findings[0].endswith("layer 1 is wrong without help, first at layers.1.output")


@pytest.mark.parametrize("name", ["final_norm", "logits", "embeddings"])
def test_a_module_outside_the_layers_can_be_at_fault(tmp_path: Path, name: str) -> None:
    found = localise(tmp_path, told({name: 0.5}), {name: 0.5})
    assert found.findings[0] == f"fed with the reference's inputs, {name} alone is wrong"


def test_without_a_limit_a_tenth_of_the_error_in_the_run_is_clean(tmp_path: Path) -> None:
    run = diagnose([check("allclose", {"relative_l2": 0.5}, rtol=0.0, atol=0.0)])
    assert run is not None
    name = "layers.0.output"
    assert "only accumulate" in localise(tmp_path, run, {name: 0.049}).findings[0]
    assert "layer 0 is wrong" in localise(tmp_path, run, {name: 0.051}).findings[0]
    unknown = {name: 0.01, "layers.7.output": 0.9}
    assert "only accumulate" in localise(tmp_path, run, unknown).findings[0], "the run measured nothing of layer 7"


def test_a_local_error_where_the_rule_allows_none_is_a_fault(tmp_path: Path) -> None:
    run = diagnose([check("exact", {"relative_l2": 0.5})])
    assert run is not None
    assert "layer 0 is wrong" in localise(tmp_path, run, {"layers.0.output": 1e-3}).findings[0]
    assert "only accumulate" in localise(tmp_path, run, {"layers.0.output": 0.0}).findings[0]
    # A floor of zero allows what the reference cannot resolve, and no limit of zero follows from it.
    run = diagnose([check("noise_floor", {"relative_l2": 1e-9, "peer_relative_l2": 0.0}, k=3.0)])
    assert run is not None
    assert "only accumulate" in localise(tmp_path, run, {"layers.0.output": 1e-6}).findings[0]


def test_a_module_that_gives_nan_is_at_fault(tmp_path: Path) -> None:
    run = told({"layers.0.output": 0.5})
    found = localise(tmp_path, run, {"layers.0.output": math.nan})
    assert "layer 0 is wrong" in found.findings[0]
    assert found.local[0]["error"] == "inf"


MLP, ROUTER = "layers.1.mlp.output", "layers.1.router.logits"


@pytest.mark.parametrize(
    ("replayed", "finding"),
    [
        (0.0, "is clean: the router is at fault, not the experts"),
        (0.049, "is clean: the router is at fault, not the experts"),
        (0.26, "stays wrong: the experts are at fault, not the router"),
        (0.5, "stays wrong: the experts are at fault, not the router"),
        (math.nan, "stays wrong: the experts are at fault, not the router"),
        (0.1, ""),
    ],
)
def test_replayed_experts_tell_the_router_from_the_experts(tmp_path: Path, replayed: float, finding: str) -> None:
    run = told({ROUTER: 0.02, MLP: 0.5})
    found = localise(tmp_path, run, {ROUTER: 0.02, MLP: 0.5}, {MLP: replayed})
    said = [one for one in found.findings if one.startswith("with the reference's experts replayed")]
    assert said == ([f"with the reference's experts replayed, {MLP} {finding}"] if finding else [])


@pytest.mark.parametrize(
    ("errors", "replayed"),
    [
        ({MLP: 0.5}, {MLP: 0.0}),  # a dense layer
        ({ROUTER: 0.02, MLP: 0.02}, {MLP: 0.0}),  # no fault
        ({ROUTER: 0.02, MLP: 0.5}, {ROUTER: 0.02}),  # not replayed
        ({ROUTER: 0.02, MLP: 0.5, "layers.1.attention.output": 0.5}, {MLP: 0.0}),  # its inputs were wrong already
    ],
)
def test_a_replay_that_shows_nothing_is_not_read(
    tmp_path: Path, errors: dict[str, float], replayed: dict[str, float]
) -> None:
    found = localise(tmp_path, told(errors), errors, replayed)
    assert "replayed" not in " ".join(found.findings)


def test_the_worst_of_several_expert_layers_is_read(tmp_path: Path) -> None:
    errors = {"layers.0.router.logits": 0.0, "layers.0.mlp.output": 0.3, ROUTER: 0.0, MLP: 0.5}
    found = localise(tmp_path, told(errors), errors, {"layers.0.mlp.output": 0.3, MLP: 0.0})
    assert f"with the reference's experts replayed, {MLP} is clean: the router is at fault, not the experts" in (
        found.findings
    )


def test_leads_without_tensors_add_nothing(tmp_path: Path) -> None:
    run = told({"logits": 0.5})
    reference = stored(tmp_path, "reference", {"logits": ONES})
    assert add_local_errors(run, {"inputs": SimpleNamespace(tensors_path=None)}, reference) == run
    assert add_local_errors(run, {"inputs": stored(tmp_path, "other", {"embeddings": ONES})}, reference) == run
