"""Block-diffusion decisions at the reference's states: what is a near tie, and what is a mismatch."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specrunner.checks.passes import ForcedPass, compare_forced_passes
from specrunner.checks.sampling import SamplingRule, decide
from specrunner.models.llada2_decoding import Sampler, denoise

MASK = 9


def entry(before: list[int], accepted: dict[int, int], start: int = 0) -> dict[str, Any]:
    return {
        "block_start": start,
        "tokens_before": before,
        "accepted": [start + place for place in accepted],
        "accepted_token_ids": list(accepted.values()),
    }


def read(told: dict[str, Any], candidate: torch.Tensor, reference: torch.Tensor) -> ForcedPass:
    return ForcedPass.read(told, candidate, reference, MASK)


def judge(passes: list[ForcedPass], **limits: float) -> Any:
    settings = {"kappa": 4.0, "max_share": 0.5} | limits
    rule = SamplingRule(settings.pop("threshold", 0.9))
    return compare_forced_passes(passes, rule=rule, dtype=torch.bfloat16, location="x:1", **settings)  # type: ignore[arg-type]


def peaked(*pairs: tuple[int, float]) -> torch.Tensor:
    logits = torch.zeros(len(pairs), 10)
    for row, (token, height) in enumerate(pairs):
        logits[row, token] = height
    return logits


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.99))
def test_deciding_is_what_the_oracles_sampler_does(seed: int, threshold: float) -> None:
    torch.manual_seed(seed)
    logits = torch.randn(6, 10, dtype=torch.float64) * 4
    block = torch.tensor([MASK, 1, MASK, MASK, 2, MASK])
    sampler = Sampler(block_length=6, threshold=threshold, steps=6, mask_id=MASK, eos_id=-1)
    accepted, after = denoise(block.numpy(), logits.numpy(), sampler, 0)
    ours = decide(logits, block == MASK, SamplingRule(threshold))
    assert ours.accepted.tolist() == accepted.tolist()
    assert ours.tokens[ours.accepted].tolist() == after[accepted].tolist()


def test_equal_decisions_pass_and_are_counted() -> None:
    logits = peaked((3, 20.0), (4, 20.0))
    assert read(entry([MASK, MASK], {0: 3}), logits, logits).step == 0
    result = judge([read(entry([MASK, MASK], {0: 3, 1: 4}), logits, logits)])
    assert result.passed
    assert (result.measurements["decisions"], result.measurements["share"], result.gates) == (2, 0.0, True)


def test_another_token_within_the_noise_is_a_tie() -> None:
    reference = peaked((3, 20.0))
    reference[0, 5] = 19.9
    candidate = reference.clone()
    candidate[0, 5] = 20.05
    one = read(entry([MASK], {0: 3}, start=16), candidate, reference)
    result = judge([one], threshold=0.4, max_share=1.0)
    (tie,) = result.measurements["ties"]
    assert result.passed
    assert (tie["position"], tie["candidate_token"], tie["reference_token"], tie["is_tie"]) == (16, 5, 3, True)
    assert not judge([one], threshold=0.4, max_share=0.5).passed
    assert not judge([one], threshold=0.4, kappa=0.1).passed


def test_another_token_beyond_the_noise_fails() -> None:
    one = read(entry([MASK], {0: 3}), peaked((5, 20.0)), peaked((3, 20.0)))
    assert judge([one]).message.startswith(
        "mismatch at position 0 in pass 0 is no near tie: token 5 against 3, gaps 20"
    )


def test_a_position_that_one_side_alone_fills() -> None:
    height = math.log(9 * 0.9 / 0.1)  # exactly the threshold over ten tokens
    at, above = peaked((3, height), (4, 30.0)), peaked((3, height + 0.01), (4, 30.0))
    reference = entry([MASK, MASK], {1: 4})
    result = judge([read(reference, above, at)])
    (tie,) = result.measurements["ties"]
    assert (tie["accepted_by"], tie["is_tie"], result.passed) == ("candidate", True, True)
    sure = judge([read(reference, peaked((3, 30.0), (4, 30.0)), peaked((3, 1.0), (4, 30.0)))])
    assert sure.message.startswith("the candidate alone fills a token at position 0 in pass 0, which is no near tie")


@pytest.mark.parametrize("passes", [[], [read(entry([1], {}), peaked((1, 1.0)), peaked((1, 1.0)))]])
def test_nothing_to_judge_never_passes(passes: list[ForcedPass]) -> None:
    assert not judge(passes).passed
    assert judge(passes).message.startswith("compared nothing")
    numbers = judge(passes).measurements
    assert (numbers["passes"], numbers["decisions"], numbers["share"]) == (len(passes), 0, 0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("token", [0, 3])
@pytest.mark.parametrize("length", [1, 2])
def test_logits_that_are_no_numbers_fail_and_are_told(value: float, token: int, length: int) -> None:
    reference = peaked(*[(token, 20.0)] * length)
    candidate = torch.full_like(reference, value)
    result = judge([read(entry([MASK] * length, {0: token}), candidate, reference)])
    assert not result.passed
    assert "no near tie" in result.message and "nan" in result.message
    json.dumps(dict(result.measurements), allow_nan=False)


def test_the_numbers_of_a_tie_are_told() -> None:
    height = math.log(9 * 0.9 / 0.1)
    at, above = peaked((3, height), (4, 30.0)), peaked((3, height + 0.01), (4, 30.0))
    result = judge([read(entry([MASK, MASK], {1: 4}, start=6), above, at)], kappa=2.0)
    (tie,) = result.measurements["ties"]
    assert (tie["position"], tie["pass"], tie["reference_confidence"]) == (6, 0, pytest.approx(0.9, rel=1e-6))
    assert tie["candidate_gap"] == pytest.approx(tie["candidate_confidence"] - 0.9, abs=1e-9)
    # 2 kappa ulp p (1 - p): logits below 4 have a bfloat16 unit of 2^-6, those from 4 to 8 one of 2^-5.
    p = tie["candidate_confidence"]
    assert tie["candidate_limit"] == pytest.approx(2 * 2.0 * 2.0**-5 * p * (1 - p))
    assert (result.measurements["decisions"], result.measurements["tie_count"]) == (2, 1)
    assert (result.measurements["share"], result.measurements["mismatch_count"]) == (0.5, 0)
    assert result.limits == {"kappa": 2.0, "max_share": 0.5}
    below = peaked((3, height - 0.01), (4, 30.0))
    swapped = judge([read(entry([MASK, MASK], {0: 3, 1: 4}), below, above)])
    assert swapped.measurements["ties"][0]["accepted_by"] == "reference"


def test_only_some_ties_are_kept() -> None:
    reference, candidate = peaked((3, 20.0)), peaked((5, 20.0))
    result = judge([read(entry([MASK], {0: 3}), candidate, reference)] * 70)
    assert (len(result.measurements["ties"]), result.measurements["mismatch_count"]) == (64, 70)
    assert result.message.startswith("mismatch at position 0 in pass 0")


def test_ties_and_mismatches_are_counted_apart() -> None:
    reference = peaked((3, 20.0))
    reference[0, 5] = 19.9
    near, far = reference.clone(), peaked((5, 20.0))
    near[0, 5] = 20.05
    step = {"block_start": 4, "tokens_before": [1, MASK], "accepted": [5], "accepted_token_ids": [3]}
    filled = peaked((1, 20.0))
    passes = [
        read(step, torch.cat([filled, side]), torch.cat([filled, reference])) for side in (near, far, far, reference)
    ]
    numbers = judge(passes, threshold=0.4, max_share=1.0).measurements
    assert (numbers["decisions"], numbers["tie_count"], numbers["mismatch_count"], numbers["share"]) == (4, 1, 2, 0.25)
    assert [tie["position"] for tie in numbers["ties"]] == [5, 5, 5]


def test_a_pass_in_which_the_reference_fills_nothing_is_judged() -> None:
    silent, sure = peaked((MASK, 20.0), (MASK, 20.0)), peaked((2, 20.0), (2, 20.0))
    good = read(entry([MASK] * 2, {0: 2, 1: 2}), sure, sure)
    result = judge([read(entry([MASK] * 2, {}), sure, silent), good])
    assert result.message.startswith("mismatch at position 0 in pass 0 is no near tie: token 2 against 9")
    assert result.measurements["decisions"] == 4
    unsure = peaked((2, 0.1), (2, 20.0))
    alone = judge([read(entry([MASK] * 2, {1: 2}), sure, unsure)])
    assert alone.message.startswith("the candidate alone fills a token at position 0 in pass 0")
    assert judge([read(entry([MASK] * 2, {}), silent, silent), good]).passed


@pytest.mark.parametrize("logged", [{1: 4}, {0: MASK, 1: 4}])
def test_a_mask_that_is_the_likeliest_token_fills_nothing(logged: dict[int, int]) -> None:
    logits = peaked((MASK, 20.0), (4, 20.0))
    result = judge([read(entry([MASK, MASK], logged), logits, logits)])
    assert (result.passed, result.message, result.measurements["decisions"]) == (True, "", 1)
    other = judge([read(entry([MASK, MASK], {0: 3, 1: 4}), logits, peaked((3, 20.0), (4, 20.0)))])
    assert other.message.startswith("mismatch at position 0 in pass 0 is no near tie: token 9 against 3")


@pytest.mark.parametrize("side", ["candidate", "reference"])
def test_nan_where_nobody_fills_a_token_fails(side: str) -> None:
    logits = peaked((3, 0.1), (4, 20.0))
    broken = logits.clone()
    broken[0, 5] = math.nan
    pair = (broken, logits) if side == "candidate" else (logits, broken)
    result = judge([read(entry([MASK, MASK], {1: 4}, start=6), *pair)])
    assert (
        result.message
        == f"the {side}'s logits at position 6 in pass 0 give no probabilities: they hold NaN or infinity"
    )
    known = judge([read(entry([1, MASK], {1: 4}), *pair)])
    assert known.passed


@pytest.mark.parametrize("filler", [-math.inf, -1e6])
def test_fillers_leave_the_limit_of_a_confidence_alone(filler: float) -> None:
    height = math.log(8 * 0.9 / 0.1)  # exactly the threshold over nine tokens
    at, above = peaked((3, height), (4, 30.0)), peaked((3, height + 0.01), (4, 30.0))
    far = peaked((3, height + 1), (4, 30.0))
    for logits in (at, above, far):
        logits[:, 8] = filler
    (tie,) = judge([read(entry([MASK, MASK], {1: 4}), above, at)]).measurements["ties"]
    p = tie["candidate_confidence"]
    assert (tie["is_tie"], tie["candidate_limit"]) == (True, pytest.approx(2 * 4.0 * 2.0**-5 * p * (1 - p)))
    assert not judge([read(entry([MASK, MASK], {1: 4}), far, at)], kappa=1.0).passed
