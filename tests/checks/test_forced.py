"""The rule `near_tie` on captures: which logits judge which mismatch, and the free run beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from specrunner.checks.forced import describe_free_run, judge_forced
from specrunner.checks.sources import MemorySource, TensorSource
from specrunner.results import CheckResult
from specrunner.spec.model import Decode, Rule

REFERENCE = [3, 1, 4, 1, 5]
RULE = Rule("near_tie", {"kappa": 1.0, "max_share": 0.4})
GREEDY = Decode(5)


def row(**logits: float) -> torch.Tensor:
    """Logits over eight tokens; `t3=20.0` is the logit of token 3."""
    made = torch.zeros(8)
    for name, value in logits.items():
        made[int(name[1:])] = value
    return made


def sources(tensors: Mapping[str, torch.Tensor]) -> dict[str, TensorSource]:
    return {name: MemorySource(name, tensor) for name, tensor in tensors.items()}


TRACED = torch.stack([row(t3=20.0), row(t1=20.0), row(t4=20.0, t6=19.9), row(t1=20.0), row(t5=20.0)])


def judge(
    segments: Sequence[tuple[int, list[int]]],
    logits: Mapping[int, torch.Tensor],
    *,
    reference_ids: Sequence[int] | None = REFERENCE,
    traced: torch.Tensor | None = TRACED,
    dtype: str = "bfloat16",
) -> CheckResult:
    forced = sources({f"steps.{place}.logits": one[None] for place, one in logits.items()})
    facts = {"segments": [{"start": start, "token_ids": ids} for start, ids in segments]}
    reference = sources({} if traced is None else {"steps.logits": traced})
    return judge_forced(RULE, GREEDY, forced, facts, reference, {}, reference_ids, dtype=dtype, location="x:1")


def test_a_run_that_follows_the_reference_passes() -> None:
    result = judge([(0, REFERENCE)], {})
    assert (result.passed, result.measurements["followed"], result.location) == (True, 5, "x:1")
    assert result.limits["max_share"] == 0.4


def test_a_mismatch_is_judged_by_both_sides_logits_at_its_place() -> None:
    ours = {2: row(t4=19.9, t6=20.0)}
    result = judge([(0, [3, 1, 6, 0, 0]), (3, [1, 5])], ours)
    assert result.passed, result.message
    (tie,) = result.measurements["ties"]
    assert (tie["position"], tie["candidate_token"], tie["reference_token"]) == (2, 6, 4)
    assert (tie["reference_gap"], tie["candidate_gap"]) == (pytest.approx(0.1, abs=1e-6), pytest.approx(0.1, abs=1e-6))
    assert tie["reference_limit"] == 0.125
    assert not judge([(0, [3, 1, 6, 0, 0]), (3, [1, 5])], ours, dtype="float32").passed
    assert "no near tie" in judge([(0, [3, 1, 6, 0, 0]), (3, [1, 5])], {2: row(t4=19.0, t6=20.0)}).message


def test_the_place_of_a_later_mismatch_counts_from_the_start_of_the_run() -> None:
    traced = TRACED.clone()
    traced[4] = row(t5=20.0, t7=19.9)
    segments = [(0, [3, 1, 6]), (3, [1, 7]), (5, [])]
    logits = {2: row(t4=19.9, t6=20.0), 4: row(t5=19.9, t7=20.0)}
    result = judge(segments, logits, traced=traced)
    assert result.passed, result.message
    assert [(tie["position"], tie["candidate_token"]) for tie in result.measurements["ties"]] == [(2, 6), (4, 7)]


@pytest.mark.parametrize(
    ("logits", "traced"), [({}, TRACED), ({1: row(t1=20.0)}, TRACED), ({2: row(t4=19.9, t6=20.0)}, None)]
)
def test_a_mismatch_without_logits_fails(logits: dict[int, torch.Tensor], traced: torch.Tensor | None) -> None:
    result = judge([(0, [3, 1, 6, 0, 0]), (3, [1, 5])], logits, traced=traced)
    assert (result.passed, result.message) == (False, "mismatch at position 2 without logits to judge it by")


def test_a_run_that_ends_early_or_goes_on_is_no_tie() -> None:
    assert "the candidate ends after 2 tokens" in judge([(0, [3, 1])], {2: TRACED[2]}).message
    longer = [(0, [*REFERENCE, 6])]
    assert "the candidate ends after 6 tokens" in judge(longer, {}).message
    assert "compared nothing" in judge([], {}).message
    missing = judge([(0, REFERENCE)], {}, reference_ids=None)
    assert (missing.rule, missing.message, missing.passed) == ("evidence", "missing in reference", False)


BLOCKS = Decode(4, "low_confidence", 2, 0.9, True)
MASK = 7


def passed(block_start: int, before: list[int], accepted: dict[int, int]) -> dict[str, Any]:
    return {
        "block_start": block_start,
        "tokens_before": before,
        "accepted": list(accepted),
        "accepted_token_ids": list(accepted.values()),
    }


def test_block_diffusion_is_judged_pass_by_pass() -> None:
    sure = torch.stack([row(t3=20.0), row(t4=20.0)])
    trajectory = [
        passed(0, [MASK, MASK], {0: 3}),
        passed(0, [3, MASK], {1: 4}),
        passed(2, [MASK, MASK], {2: 3, 3: 4}),
    ]
    facts = {"trajectory": trajectory, "mask_token_id": MASK}
    unsure = torch.stack([row(t3=20.0), row(t4=0.1)])
    logits = [unsure, sure, sure]

    def judge_blocks(ours: list[torch.Tensor], theirs: list[torch.Tensor] = logits) -> CheckResult:
        forced = sources({f"steps.{number}.logits": one for number, one in enumerate(ours)})
        reference = sources({f"passes.{number}.logits": one for number, one in enumerate(theirs)})
        return judge_forced(RULE, BLOCKS, forced, {}, reference, facts, [3, 4, 3, 4], dtype="float32", location="x:1")

    result = judge_blocks(logits)
    assert (result.passed, result.measurements["passes"], result.measurements["decisions"]) == (True, 3, 4)
    wrong = judge_blocks([unsure, sure, torch.stack([row(t3=20.0), row(t5=20.0)])])
    assert wrong.message.startswith("mismatch at position 3 in pass 2 is no near tie: token 5 against 4")
    for ours, theirs in ((logits[:2], logits), (logits, logits[:2])):
        missing = judge_blocks(ours, theirs)
        assert (missing.rule, missing.passed) == ("evidence", False)
        assert missing.message == "no logits at pass 2 of the reference"


@pytest.mark.parametrize(("ours", "accepted", "facts", "message"), [
    (torch.zeros(2, 9), {0: 3}, {"mask_token_id": MASK}, "logits of shapes [2, 9] and [2, 8] for a block of 2 tokens"),
    (torch.zeros(1, 8), {0: 3}, {"mask_token_id": MASK}, "logits of shapes [1, 8] and [2, 8] for a block of 2 tokens"),
    (torch.zeros(2, 8), {0: 30}, {"mask_token_id": MASK}, "token 30 is outside the vocabulary of 8"),
    (torch.zeros(2, 8), {0: 3}, {}, "missing in reference: the mask token's id"),
])  # fmt: skip
def test_a_pass_that_does_not_fit_is_no_evidence(
    ours: torch.Tensor, accepted: dict[int, int], facts: dict[str, Any], message: str
) -> None:
    facts = {"trajectory": [passed(0, [MASK, MASK], accepted)], **facts}
    sides = sources({"steps.0.logits": ours}), sources({"passes.0.logits": torch.zeros(2, 8)})
    result = judge_forced(RULE, BLOCKS, sides[0], {}, sides[1], facts, [3, 4], dtype="float32", location="x:1")
    assert (result.passed, result.rule) == (False, "evidence")
    assert message in result.message


@pytest.mark.parametrize(("token", "ours", "message"), [
    (6, torch.zeros(9), "cannot be judged: logits of shapes (9,) and (8,)"),
    (60, torch.zeros(8), "cannot be judged: token 60 is outside the vocabulary of 8"),
])  # fmt: skip
def test_a_mismatch_that_does_not_fit_is_no_evidence(token: int, ours: torch.Tensor, message: str) -> None:
    result = judge([(0, [3, 1, token, 0, 0]), (3, [1, 5])], {2: ours})
    assert (result.passed, result.rule) == (False, "evidence")
    assert message in result.message


def test_logits_behind_the_end_of_a_side_judge_nothing() -> None:
    assert "the candidate ends after 6 tokens" in judge([(0, [*REFERENCE, 6])], {5: TRACED[0]}).message
    short = judge([(0, [3, 1, 6, 0, 0]), (3, [1, 5])], {2: TRACED[2]}, traced=TRACED[:2])
    assert short.message == "mismatch at position 2 without logits to judge it by"


def test_a_schedule_counts_the_steps_of_each_block() -> None:
    """Two steps a block of three: two positions in the first, one in the second; and so again in the next block."""
    decode = Decode(6, "low_confidence", 3, 0.99, True, steps=2)
    logits = torch.stack([row(t3=3.0), row(t4=2.5), row(t5=2.0)])
    trajectory = []
    for start in (0, 3):
        trajectory.append(passed(start, [MASK] * 3, {start: 3, start + 1: 4}))
        trajectory.append(passed(start, [3, 4, MASK], {start + 2: 5}))
    forced = sources({f"steps.{number}.logits": logits for number in range(4)})
    reference = sources({f"passes.{number}.logits": logits for number in range(4)})
    facts = {"trajectory": trajectory, "mask_token_id": MASK}
    result = judge_forced(RULE, decode, forced, {}, reference, facts, [3, 4, 5] * 2, dtype="float32", location="x:1")
    assert (result.passed, result.measurements["decisions"], result.message) == (True, 6, "")


@pytest.mark.parametrize(
    ("ours", "theirs", "agreement", "first", "message"),
    [
        ([1, 2, 3], [1, 2, 3], 1.0, None, ""),
        ([1, 9, 3], [1, 2, 3], 2 / 3, 1, "the free runs part at position 1 and share 2 of 3 tokens"),
        ([1, 2], [1, 2, 3, 4], 0.5, 2, "the free runs part at position 2 and share 2 of 4 tokens"),
        ([1, 2, 3, 4], [1, 2], 0.5, 2, "the free runs part at position 2 and share 2 of 4 tokens"),
        ([], [], 0.0, None, ""),
        (None, [5], 0.0, 0, "the free runs part at position 0 and share 0 of 1 tokens"),
    ],
)
def test_the_free_run_is_a_trend(
    ours: list[int] | None, theirs: list[int], agreement: float, first: int | None, message: str
) -> None:
    result = describe_free_run(ours, theirs, "x:1")
    assert (result.rule, result.gates, result.passed, result.message) == ("free_run", False, not message, message)
    assert (result.measurements["agreement"], result.measurements["first_mismatch"]) == (agreement, first)
    assert result.measurements["equal"] == (not message)
    assert (result.measurements["candidate_length"], result.measurements["reference_length"]) == (
        len(ours or ()),
        len(theirs),
    )


def test_a_long_free_run_is_kept_in_part() -> None:
    numbers = describe_free_run([1] * 2000, [1] * 1999, "").measurements
    assert [len(numbers[f"{side}_token_ids"]) for side in ("candidate", "reference")] == [1024, 1024]
    assert [numbers[f"{side}_length"] for side in ("candidate", "reference")] == [2000, 1999]
