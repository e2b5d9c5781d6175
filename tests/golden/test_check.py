"""Judging against goldens: what fails, what passes, and what may become one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from specrunner.checks.evidence import LoadedCapture
from specrunner.checks.sources import MemorySource
from specrunner.errors import GoldenError
from specrunner.golden.check import check_golden
from specrunner.spec.model import GoldenChoice, Rule, Tolerance
from tests.golden.builders import keep, make, make_capture, make_case, sqnr

FULL = GoldenChoice(full_tokens=64)


@pytest.mark.parametrize("choice", [GoldenChoice(), FULL], ids=["compact", "full"])
def test_a_change_fails_with_tensor_and_token(tmp_path: Path, choice: GoldenChoice) -> None:
    case = make_case(tmp_path, golden=choice)
    golden = keep(case)
    same = check_golden(case, make_capture(), golden)
    assert [check.subject for check in same] == ["tokenization", "embeddings", "logits", "tokens"]
    assert all(check.passed and check.against == "golden" for check in same)
    assert all(check.passed for check in check_golden(case, make_capture(1e-5), golden))
    checks = check_golden(case, make_capture(1e-3), golden)
    failed = [check for check in checks if check.fails]
    assert [check.subject for check in failed] == ["logits"]
    assert "at token 5" in failed[0].message
    assert float(failed[0].measurements["relative_l2"]) == pytest.approx(1.32e-3, rel=0.15)


def test_other_tokens_fail(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    golden = keep(case)
    checks = check_golden(case, make_capture(output=(5, 6, 9, 8)), golden)
    assert [check.subject for check in checks if check.fails] == ["tokens"]
    assert "position 2" in checks[-1].message
    trend = check_golden(replace(case, tokens=Rule("near_tie")), make_capture(output=(5, 6, 9, 8)), golden)
    assert not trend[-1].passed
    assert not trend[-1].fails
    silent = replace(make_capture(), output_token_ids=None)
    (absent,) = check_golden(replace(case, tokens=Rule("near_tie")), silent, golden)[-1:]
    assert (absent.rule, absent.fails) == ("evidence", True), "no tokens at all are no near tie"


def test_another_prompt_compares_nothing_else(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    golden = keep(case)
    checks = check_golden(case, replace(make_capture(), prompt_token_ids=(1, 2)), golden)
    assert len(checks) == 1
    assert checks[0].fails
    assert "nothing else was compared" in checks[0].message


def test_a_tensor_that_is_missing_on_either_side_has_no_evidence(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    golden = keep(case)
    capture = make_capture()
    less = LoadedCapture(capture.prompt_token_ids, {"logits": capture.tensors["logits"]}, capture.output_token_ids)
    assert [check.rule for check in check_golden(case, less, golden) if check.fails] == ["evidence"]
    more = replace(case, tensors=(*case.tensors, "final_norm"))
    assert [check.subject for check in check_golden(more, capture, golden) if check.fails] == ["final_norm"]


@pytest.mark.parametrize("choice", [GoldenChoice(), FULL], ids=["compact", "full"])
@pytest.mark.parametrize(
    "rule",
    [
        Rule("exact"),
        Rule("cosine", {"min": 0.99999}),
        Rule("kl", {"mean": 1e-4, "p99": None}),
        Rule("top_k", {"k": 10, "overlap": 0.999}),
    ],
    ids=lambda rule: rule.name,
)
def test_every_rule_passes_what_is_equal_and_fails_what_is_far(
    tmp_path: Path, rule: Rule, choice: GoldenChoice
) -> None:
    case = make_case(tmp_path, golden=choice, tensors=("logits",))
    case = replace(case, tolerance=(Tolerance("logits", (rule,), case.location),))
    golden = keep(case)
    assert all(check.passed for check in check_golden(case, make_capture(), golden))
    assert any(check.rule == rule.name for check in check_golden(case, make_capture(0.2), golden) if check.fails)


@pytest.mark.parametrize("name", ["allclose", "ulp"])
def test_rules_on_elements_have_no_evidence_on_a_compact_golden(tmp_path: Path, name: str) -> None:
    limits = {"rtol": 1.0, "atol": 1.0, "outliers": 0.0} if name == "allclose" else {"max": 1 << 30, "over_one": 1.0}
    case = make_case(tmp_path, tensors=("logits",))
    case = replace(case, tolerance=(Tolerance("logits", (Rule(name, limits),), case.location),))
    golden = keep(case)
    (check,) = (check for check in check_golden(case, make_capture(), golden) if check.fails)
    assert check.rule == "evidence"
    assert "golden.full_tokens" in check.message


def test_units_of_a_coarser_dtype_than_the_cases_are_no_evidence(tmp_path: Path) -> None:
    case = make_case(tmp_path, golden=FULL, tensors=("logits",))
    case = replace(case, tolerance=(Tolerance("logits", (Rule("ulp", {"max": 1, "over_one": 1.0}),), case.location),))
    golden = keep(case)
    capture = make_capture()
    coarse = {"logits": MemorySource("logits", capture.tensors["logits"].rows(0, 64).bfloat16())}
    (failed,) = (check for check in check_golden(case, replace(capture, tensors=coarse), golden) if check.fails)
    assert (failed.rule, failed.against) == ("evidence", "golden")
    assert "bfloat16 is coarser than the case's float32" in failed.message


@pytest.mark.parametrize("choice", [GoldenChoice(), FULL], ids=["compact", "full"])
def test_the_floor_comes_from_this_runs_peer(tmp_path: Path, choice: GoldenChoice) -> None:
    case = make_case(tmp_path, golden=choice, tensors=("logits",))
    case = replace(case, tolerance=(Tolerance("logits", (Rule("noise_floor", {"k": 2.0}),), case.location),))
    golden = keep(case)
    peers = {"reference": make_capture(), "peer": make_capture(1e-3)}
    assert all(check.passed for check in check_golden(case, make_capture(1.5e-3), golden, **peers))
    (failed,) = (check for check in check_golden(case, make_capture(3e-3), golden, **peers) if check.fails)
    assert "exceeds 2 times the floor" in failed.message
    (missing,) = (check for check in check_golden(case, make_capture(), golden) if check.fails)
    assert "no floor" in missing.message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_never_pass_and_are_never_kept(tmp_path: Path, value: float) -> None:
    case = make_case(tmp_path)
    golden = keep(case)
    capture = make_capture()
    values = capture.tensors["logits"].rows(0, 12).clone()
    values[3, 9] = value
    broken = replace(capture, tensors={**capture.tensors, "logits": MemorySource("logits", values)})
    assert any(check.fails for check in check_golden(case, broken, golden))
    with pytest.raises(GoldenError, match="logits holds NaN or infinity") as caught:
        make(case, broken)
    assert caught.value.kind == "golden-refused"


def test_repeats_must_agree(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    assert make(case, make_capture(), make_capture()).manifest.agreement == "bitwise"
    near = make(case, make_capture(), make_capture(1e-6)).manifest
    assert (near.repeats, near.agreement) == (2, "tolerance")
    with pytest.raises(GoldenError, match="repeat 3 of 3 does not agree with the first: logits: sqnr"):
        make(case, make_capture(), make_capture(), make_capture(1e-3))
    with pytest.raises(GoldenError, match="tokens: first mismatch at position 0"):
        make(case, make_capture(), make_capture(output=(4, 4)))


def test_a_repeat_has_the_very_tensors_of_the_first(tmp_path: Path) -> None:
    case, first = make_case(tmp_path, tensors=("**",)), make_capture()
    more = {**first.tensors, "final_norm": MemorySource("final_norm", torch.ones(12, 4))}
    for one, other in ((first.tensors, more), (more, first.tensors)):
        with pytest.raises(GoldenError, match="repeat 2 of 2 does not agree with the first: final_norm: missing in"):
            make(case, replace(first, tensors=one), replace(first, tensors=other))


def test_there_must_be_something_to_keep(tmp_path: Path) -> None:
    with pytest.raises(GoldenError, match="nothing to keep"):
        make(make_case(tmp_path), LoadedCapture((1, 2)))


def test_bfloat16_comes_back(tmp_path: Path) -> None:
    case = make_case(tmp_path, tensors=("logits",), golden=FULL)
    case = replace(case, tolerance=(Tolerance("logits", (Rule("exact"), *sqnr(200)), case.location),))
    values = make_capture().tensors["logits"].rows(0, 12).to(torch.bfloat16)
    capture = replace(make_capture(), tensors={"logits": MemorySource("logits", values)})
    golden = keep(case, capture)
    assert golden.manifest.tensors["logits"].dtype == "bfloat16"
    checks = check_golden(case, capture, golden)
    assert [check.subject for check in checks] == ["tokenization", "logits", "logits", "tokens"]
    assert all(check.passed for check in checks)


def test_a_tensor_that_a_wildcard_selects_on_one_side_only_is_missing(tmp_path: Path) -> None:
    case = make_case(tmp_path, tensors=("**",))
    golden, capture = keep(case), make_capture()
    logits = {"logits": capture.tensors["logits"]}
    checks = check_golden(case, replace(capture, tensors=logits), golden)
    assert [(one.subject, one.message) for one in checks if one.fails] == [("embeddings", "missing in candidate")]
    more = {**capture.tensors, "final_norm": MemorySource("final_norm", torch.ones(12, 4))}
    checks = check_golden(case, replace(capture, tensors=more), golden)
    assert [(one.subject, one.message) for one in checks if one.fails] == [("final_norm", "missing in golden")]
    unknown = replace(case, tensors=("logits", "layers.*.output", "router"))
    checks = check_golden(unknown, capture, golden)
    assert [one.subject for one in checks if one.fails] == ["layers.*.output", "router"]


def test_each_check_says_where_its_rule_stands(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    elsewhere = replace(case.location, line=99)
    case = replace(case, tolerance=(Tolerance("logits", sqnr(80), elsewhere),))
    places = {one.subject: one.location for one in check_golden(case, make_capture(), keep(case))}
    assert places == {
        "tokenization": str(case.location),
        "embeddings": str(case.location),
        "logits": str(elsewhere),
        "tokens": str(case.location),
    }
    bare = [one for one in check_golden(case, make_capture(), keep(case)) if one.subject == "embeddings"]
    assert [(one.rule, one.fails) for one in bare] == [("evidence", True)], "a tensor without a rule was not compared"


def test_a_floor_needs_both_the_reference_and_the_peer(tmp_path: Path) -> None:
    case = make_case(tmp_path, tensors=("logits",))
    case = replace(case, tolerance=(Tolerance("logits", (Rule("noise_floor", {"k": 2.0}),), case.location),))
    golden, capture = keep(case), make_capture()
    for sides in ({"reference": capture}, {"peer": capture}):
        (missing,) = (one for one in check_golden(case, capture, golden, **sides) if one.fails)
        assert "no floor" in missing.message
