"""Decodes judged step by step: the sampler's rule on its own logits, and where two free runs part."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specrunner.checks.sampling import SamplingRule, object_to
from specrunner.checks.sources import MemorySource
from specrunner.checks.trajectory import Walk, check_sampler, compare_walks
from specrunner.engines.denoising import PassLog, rule_options
from specrunner.models.llada2_decoding import Sampler, decode_blocks, decode_together
from specrunner.spec.model import Decode

MASK, EOS, LENGTH, VOCABULARY = 9, 8, 4, 10
PROMPT = [1, 2, 3, 4, 5]
PLAIN = Decode(10, "low_confidence", LENGTH, 0.6, ignore_eos=True)


def walk(decode: Decode, seed: int = 0, scale: float = 3.0, sampler: dict[str, Any] | None = None) -> Walk:
    """Decode by the loop of the oracle over random logits; `sampler` plants other rules."""
    random = np.random.default_rng(seed)
    log = PassLog(["passes.*.logits"])
    options: dict[str, Any] = {
        "block_length": LENGTH,
        "threshold": decode.threshold,
        "mask_id": MASK,
        "eos_id": -1 if decode.ignore_eos else EOS,
    }
    rules = Sampler(**(options | rule_options(decode) | (sampler or {})))

    def predict(_: list[int]) -> np.ndarray:
        return random.normal(size=(rules.block_length, VOCABULARY)) * scale

    output = decode_blocks(predict, PROMPT, decode.max_new_tokens, rules, log.add)
    tensors = {name: MemorySource(name, value) for name, value in log.finish().items()}
    facts = log.facts() | {"mask_token_id": MASK, "eos_token_ids": [EOS]}
    return Walk(PROMPT, output, tensors, facts)


DECODES = st.builds(
    Decode,
    max_new_tokens=st.integers(1, 12),
    algorithm=st.just("low_confidence"),
    block_length=st.just(LENGTH),
    threshold=st.floats(0.1, 0.99),
    ignore_eos=st.booleans(),
    accept=st.sampled_from(["gt", "ge"]),
    fallback=st.sampled_from(["schedule", "best", "near_best"]),
    exclude_mask_id=st.booleans(),
    eos_early_stop=st.booleans(),
)


@settings(max_examples=80, deadline=None)
@given(DECODES, st.integers(0, 2**32 - 1))
def test_the_oracles_loop_keeps_to_every_rule(decode: Decode, seed: int) -> None:
    made = walk(decode, seed)
    result = check_sampler(made, decode, kappa=4.0)
    assert result.message == ""
    assert result.passed
    assert result.measurements["steps"] == len(made.steps)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_a_schedule_of_fewer_steps_fills_more_a_step(steps: int) -> None:
    decode = Decode(10, "low_confidence", LENGTH, 0.999, True, steps=steps, exclude_mask_id=True)
    made = walk(decode)
    assert check_sampler(made, decode, kappa=4.0).passed
    assert len(made.steps) == {1: 1, 2: 2, 3: 2, 4: 3}[steps] + 2 * steps  # the first block has three masks
    assert not check_sampler(made, Decode(10, "low_confidence", LENGTH, 0.999, True), kappa=4.0).passed or steps == 4


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        ({"threshold": 0.01}, "is accepted, and its confidence"),
        ({"threshold": 0.99}, "stays masked, and its confidence"),
        ({"steps": 2}, "accepted"),
        ({"block_length": 2}, "works on a block of 2 tokens"),
        ({"mask_id": 7}, "sees token 7"),
        ({"may_predict_mask": False}, "is likelier"),
    ],
)
def test_another_sampler_is_seen(planted: dict[str, Any], said: str) -> None:
    assert check_sampler(walk(PLAIN, 3), PLAIN, kappa=4.0).passed
    messages = [check_sampler(walk(PLAIN, seed, sampler=planted), PLAIN, kappa=4.0).message for seed in range(8)]
    assert any(said in message for message in messages), messages


def test_an_end_of_sequence_that_is_passed_over_is_seen() -> None:
    stopping = Decode(12, "low_confidence", LENGTH, 0.6, False)
    messages = [
        check_sampler(walk(stopping, seed, sampler={"eos_id": -1}), stopping, kappa=4.0).message for seed in range(12)
    ]
    assert any("where the rule stops" in message for message in messages)
    assert all(check_sampler(walk(stopping, seed), stopping, kappa=4.0).passed for seed in range(12))


def test_a_walk_that_is_changed_afterwards_is_seen() -> None:
    made = walk(PLAIN)
    rewritten = [dict(step) for step in made.steps]
    before = list(rewritten[1]["tokens_before"])
    before[0] = 7
    rewritten[1]["tokens_before"] = before
    changed = Walk(PROMPT, made.output, made.tensors, made.facts | {"trajectory": rewritten})
    assert "sees token 7" in check_sampler(changed, PLAIN, kappa=4.0).message
    shorter = Walk(PROMPT, made.output, made.tensors, made.facts | {"trajectory": list(made.steps)[:-1]})
    assert "the decode ends" in check_sampler(shorter, PLAIN, kappa=4.0).message
    other = Walk(PROMPT, [*(made.output or ())][:-1], made.tensors, made.facts)
    assert check_sampler(other, PLAIN, kappa=4.0).message == "the output is not what the steps accepted"
    dumb = Walk(PROMPT, made.output, {}, made.facts)
    assert check_sampler(dumb, PLAIN, kappa=4.0).message == "missing in candidate: the logits of step 0"
    assert "compared nothing" in check_sampler(Walk(PROMPT, [], {}, {}), PLAIN, kappa=4.0).message


def test_noise_counts_on_both_sides_and_no_further() -> None:
    before = torch.tensor([MASK, MASK, 1, 1])
    threshold = 0.75
    logits = torch.zeros(4, VOCABULARY, dtype=torch.bfloat16)
    logits[0, 3], logits[1, 4] = 3.3125, 12.0  # 0.7532 and nearly 1
    rule = SamplingRule(threshold)

    def judge(accepted: dict[int, int], kappa: float) -> bool:
        return object_to(logits, before, accepted, rule, mask_id=MASK, step=0, kappa=kappa) is None

    assert judge({0: 3, 1: 4}, 0.0)
    assert not judge({1: 4}, 0.0)
    assert judge({1: 4}, 1.0)
    assert not judge({0: 3}, 1.0)
    assert not judge({}, 1.0)
    assert not judge({0: 5, 1: 4}, 1.0)
    assert not judge({1: 4, 2: 1}, 1.0)


def test_where_two_walks_part() -> None:
    one = walk(PLAIN, 1)
    same = compare_walks(one, walk(PLAIN, 1), PLAIN, gates=True)
    assert (same.passed, same.measurements["parting"]) == (True, None)
    other = walk(Decode(10, "low_confidence", LENGTH, 0.3, True), 1)
    parted = compare_walks(one, other, PLAIN, gates=True)
    assert (parted.passed, parted.gates, parted.rule) == (False, True, "exact")
    parting = parted.measurements["parting"]
    assert (parting["kind"], parting["step"]) == ("position", parted.measurements["common_steps"])
    assert parting["candidate_margin"] == pytest.approx(parting["reference_margin"])
    assert f"position {parting['position']}" in parted.message
    assert not compare_walks(one, other, PLAIN, gates=False).gates


def test_a_step_that_logs_a_predicted_mask_is_the_same_as_one_that_leaves_it_out() -> None:
    one = walk(PLAIN, 1)
    steps = [dict(step) for step in one.steps]
    place = next(at for at in range(4, 8) if at not in steps[0]["accepted"])
    steps[0] |= {"accepted": [*steps[0]["accepted"], place]}
    for token, equal in ((MASK, True), (3, False)):
        steps[0] |= {"accepted_token_ids": [*one.steps[0]["accepted_token_ids"], token]}
        logged = Walk(PROMPT, one.output, one.tensors, one.facts | {"trajectory": steps})
        result = compare_walks(logged, one, PLAIN, gates=True)
        assert result.passed is equal
    assert (result.measurements["parting"]["position"], result.measurements["common_steps"]) == (place, 0)


def test_prompts_decoded_together_come_out_as_alone() -> None:
    def logits(ids: list[int]) -> np.ndarray:
        return np.random.default_rng(sum(ids) % 1000).normal(size=(LENGTH, VOCABULARY)) * 3

    rules = Sampler(LENGTH, 0.6, LENGTH, MASK, -1)
    prompts = [PROMPT, [1], list(range(7))]
    alone = decode_blocks(logits, PROMPT, 10, rules)
    together = decode_together(lambda states: [logits(state) for state in states], prompts, 10, rules)
    assert together == alone
    assert decode_together(lambda states: [logits(state) for state in states], prompts, 0, rules) == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_seen(value: float) -> None:
    made = walk(PLAIN)
    for number in range(len(made.steps)):
        logits = made.logits(number)
        assert logits is not None
        masked = [place for place, token in enumerate(made.steps[number]["tokens_before"]) if token == MASK]
        spoilt = logits.clone()
        spoilt[masked[-1], 2] = value
        tensors = {**made.tensors, f"passes.{number}.logits": MemorySource("x", spoilt)}
        result = check_sampler(Walk(PROMPT, made.output, tensors, made.facts), PLAIN, kappa=4.0)
        assert result.message.endswith(f"in step {number}: has no confidence: its logits hold NaN or infinity")
        json.dumps(dict(result.measurements), allow_nan=False)
        parted = Walk(PROMPT, made.output, tensors, walk(PLAIN, 1).facts)
        json.dumps(dict(compare_walks(parted, made, PLAIN, gates=True).measurements), allow_nan=False)


def confident(*shares: float) -> torch.Tensor:
    """Logits in bfloat16's range whose likeliest token, 3, has about this probability among ten."""
    logits = torch.zeros(len(shares), VOCABULARY, dtype=torch.float64)
    for row, share in enumerate(shares):
        logits[row, 3] = math.log(9 * share / (1 - share))
    return logits.float()


def object_by(rule: SamplingRule, logits: torch.Tensor, accepted: list[int], kappa: float = 0.0, step: int = 0) -> str:
    before = torch.full((len(logits),), MASK)
    found = object_to(logits, before, dict.fromkeys(accepted, 3), rule, mask_id=MASK, step=step, kappa=kappa)
    return "" if found is None else f"{found.offset} {found.reason}"


def test_all_positions_within_the_noise_of_the_threshold_may_be_accepted() -> None:
    rule, wide = SamplingRule(0.6), 4.0 * 2**16  # units of float32 that make those of bfloat16
    logits = confident(0.601, 0.599, 0.2)
    assert object_by(rule, logits, [0]) == ""
    assert object_by(rule, logits, [0, 1]).startswith("1 is accepted, and its confidence 0.599")
    for accepted in ([0], [1], [0, 1]):
        assert object_by(rule, logits, accepted, wide) == ""
    assert object_by(rule, logits, [0, 1, 2], wide).startswith("2 is accepted, and its confidence 0.2 is below that")


def test_a_quota_takes_the_surest() -> None:
    rule, wide = SamplingRule(0.9, steps=2), 2**16
    logits = confident(0.5, 0.3, 0.2999, 0.1)
    assert object_by(rule, logits, [0, 1]) == ""
    assert object_by(rule, logits, [0, 1, 2]).startswith("2 is accepted, and its confidence 0.2999 is below that of")
    assert object_by(rule, logits, [0, 2]).startswith("2 is accepted, and its confidence 0.2999 is below that of")
    assert object_by(rule, logits, [0, 2], wide) == ""
    assert object_by(rule, logits, [1, 2], wide).startswith("0 stays masked, and is among the surest, 0.5 against 0.3")
    assert object_by(rule, logits, [0, 3], wide).startswith("3 is accepted, and its confidence 0.1 is below that of")
    assert object_by(rule, logits, [0], wide).startswith("0 is one of 1 accepted, where none is above the threshold")
    assert object_by(rule, logits, [0, 1, 2], wide).startswith("0 is one of 3 accepted")


@pytest.mark.parametrize(("steps", "quotas"), [(None, [1, 1]), (1, [5]), (2, [3, 2]), (3, [2, 2, 1]), (5, [1] * 5)])
def test_a_schedule_spreads_a_block_over_its_steps(steps: int | None, quotas: list[int]) -> None:
    rule = SamplingRule(0.9, steps=steps)
    assert [rule.quota(step, 5) for step in range(len(quotas))] == quotas
    assert SamplingRule(0.9, fallback="best", steps=steps).quota(0, 5) == 1


def test_near_best_lowers_the_threshold_to_the_highest_confidence() -> None:
    rule = SamplingRule(0.9, fallback="near_best")
    logits = confident(0.5, 0.499995, 0.49, 0.3)
    assert object_by(rule, logits, [0, 1]) == ""
    assert object_by(rule, logits, [0]).startswith("1 stays masked, and its confidence 0.499995 is above 0.49999")
    assert object_by(rule, logits, [0, 1, 2]).startswith("2 is accepted, and its confidence 0.49 is below 0.49999")
    sure = confident(0.95, 0.91, 0.89, 0.3)
    assert object_by(rule, sure, [0, 1]) == ""
    assert object_by(rule, sure, [0]).startswith("1 stays masked, and its confidence 0.91 is above 0.9")


def test_decisions_within_the_noise_are_counted() -> None:
    decode = Decode(2, "low_confidence", 2, 0.6, True)
    made = Walk(
        [1, 2],
        None,
        {"passes.0.logits": MemorySource("x", confident(0.95, 0.599))},
        {
            "trajectory": [
                {"block_start": 2, "tokens_before": [MASK] * 2, "accepted": [2, 3], "accepted_token_ids": [3, 3]}
            ],
            "mask_token_id": MASK,
        },
    )
    numbers = check_sampler(made, decode, kappa=4.0 * 2**16).measurements
    assert (numbers["decisions"], numbers["within_noise"], numbers["violations"], numbers["first"]) == (2, 1, 0, None)
    (step,) = numbers["trajectory"]
    assert (step["step"], step["accepted"], step["tokens"]) == (0, [2, 3], [3, 3])
    assert step["confidence"] == [pytest.approx(0.95, rel=1e-5), pytest.approx(0.599, rel=1e-5)]
    failed = check_sampler(made, decode, kappa=4.0)
    assert failed.message.startswith("position 3 in step 0: is accepted, and its confidence 0.599 is below 0.6")
    assert (failed.measurements["violations"], failed.measurements["first"]["position"]) == (1, 3)
    exact = walk(PLAIN)
    numbers = check_sampler(exact, PLAIN, kappa=0.0).measurements
    assert (numbers["within_noise"], numbers["violations"]) == (0, 0)


def test_the_side_that_goes_on_is_named() -> None:
    made = walk(PLAIN)
    shorter = Walk(PROMPT, None, made.tensors, made.facts | {"trajectory": list(made.steps)[:-1]})
    last = len(made.steps) - 1
    for candidate, reference, side in ((made, shorter, "candidate"), (shorter, made, "reference")):
        result = compare_walks(candidate, reference, PLAIN, gates=True)
        assert result.message == f"the free runs part at step {last}: the {side} alone goes on"
        assert result.measurements["parting"] == {"step": last, "kind": "end", "goes_on": side}
        assert result.measurements["common_steps"] == last


def test_the_margin_of_a_parting_is_each_sides_distance_from_its_boundary() -> None:
    decode = Decode(2, "low_confidence", 2, 0.6, True)

    def side(accepted: list[int], *shares: float) -> Walk:
        entry = {
            "block_start": 2,
            "tokens_before": [MASK] * 2,
            "accepted": accepted,
            "accepted_token_ids": [3] * len(accepted),
        }
        tensors = {"passes.0.logits": MemorySource("x", confident(*shares))}
        return Walk([1, 2], None, tensors, {"trajectory": [entry], "mask_token_id": MASK})

    result = compare_walks(side([2, 3], 0.95, 0.61), side([2], 0.95, 0.57), decode, gates=False)
    parting = result.measurements["parting"]
    assert (parting["kind"], parting["position"], parting["positions"]) == ("position", 3, 1)
    assert (parting["candidate_token"], parting["reference_token"]) == (3, None)
    assert (parting["candidate_confidence"], parting["candidate_margin"]) == (
        pytest.approx(0.61, rel=1e-5),
        pytest.approx(0.01, rel=1e-3),
    )
    assert (parting["reference_confidence"], parting["reference_margin"]) == (
        pytest.approx(0.57, rel=1e-5),
        pytest.approx(-0.03, rel=1e-3),
    )
    assert "at step 0, position 3: token 3 against nothing" in result.message
    assert (result.rule, result.gates, result.passed) == ("free_run", False, False)
