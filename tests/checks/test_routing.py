"""Expert choice, its margins, and the comparison of expert sets."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specrunner.checks.routing import Router, choose_experts, compare_routing, score_noise


def read_choice(scores: list[float], k: int, n_group: int, topk_group: int) -> tuple[list[int], float, float]:
    """Read the group-limited choice plainly: experts, margin at the k-th score, margin at the group cut."""
    size = len(scores) // n_group
    groups = [sum(sorted(scores[g * size : (g + 1) * size])[-2:]) for g in range(n_group)]
    order = sorted(range(n_group), key=lambda g: (-groups[g], g))
    group_margin = groups[order[topk_group - 1]] - groups[order[topk_group]] if topk_group < n_group else math.inf
    allowed = [e for e in range(len(scores)) if e // size in order[:topk_group]]
    allowed.sort(key=lambda e: (-scores[e], e))
    margin = scores[allowed[k - 1]] - scores[allowed[k]] if k < len(allowed) else math.inf
    return sorted(allowed[:k]), margin, group_margin


@st.composite
def routers(draw: Any) -> tuple[Router, torch.Tensor]:
    n_group, size, tokens = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    topk_group = draw(st.integers(1, n_group))
    k = draw(st.integers(1, topk_group * size))
    experts = n_group * size
    logit = st.one_of(st.floats(-4, 4, width=16), st.sampled_from([0.0, 1.0]))
    row = st.lists(logit, min_size=experts, max_size=experts)
    bias = draw(st.one_of(st.none(), row))
    router = Router(
        k,
        n_group,
        topk_group,
        draw(st.sampled_from(["sigmoid", "softmax"])),
        None if bias is None else torch.tensor(bias),
    )
    return router, torch.tensor(draw(st.lists(row, min_size=tokens, max_size=tokens)))


def read_scores(logits: torch.Tensor, router: Router) -> list[list[float]]:
    bias = [0.0] * logits.shape[1] if router.bias is None else router.bias.tolist()
    rows = []
    for row in logits.tolist():
        if router.score == "sigmoid":
            scores = [1 / (1 + math.exp(-x)) for x in row]
        else:
            total = math.fsum(math.exp(x) for x in row)
            scores = [math.exp(x) / total for x in row]
        rows.append([score + b for score, b in zip(scores, bias, strict=True)])
    return rows


@settings(deadline=None, max_examples=150)
@given(routers())
def test_choice_follows_the_plain_reading(drawn: tuple[Router, torch.Tensor]) -> None:
    router, logits = drawn
    choice = choose_experts(logits, router)
    for token, scores in enumerate(read_scores(logits, router)):
        experts, margin, group_margin = read_choice(scores, router.experts_per_token, router.n_group, router.topk_group)
        assert float(choice.expert_margin[token]) == pytest.approx(margin, abs=1e-12) or group_margin < 1e-12
        assert float(choice.group_margin[token]) == pytest.approx(group_margin, abs=1e-12)
        if margin > 1e-12 and group_margin > 1e-12:
            assert choice.expert_ids[token].tolist() == experts


@settings(deadline=None, max_examples=150)
@given(routers(), st.floats(1e-4, 0.5), st.randoms(use_true_random=False))
def test_noise_never_changes_a_decisive_choice(drawn: tuple[Router, torch.Tensor], noise: float, random: Any) -> None:
    """The theorem behind `decisive`: disturb every biased score by up to the noise, the worst ways included."""
    router, logits = drawn
    choice = choose_experts(logits, router)
    decisive = choice.decisive(noise)
    for token, scores in enumerate(read_scores(logits, router)):
        if not decisive[token]:
            continue
        chosen = choice.expert_ids[token].tolist()
        worst = [s - noise if e in chosen else s + noise for e, s in enumerate(scores)]
        drawn_noise = [s + random.choice([-noise, noise, random.uniform(-noise, noise)]) for s in scores]
        for disturbed in (worst, drawn_noise):
            found, _, _ = read_choice(disturbed, router.experts_per_token, router.n_group, router.topk_group)
            assert found == chosen


def test_noise_of_half_the_margin_can_change_the_choice() -> None:
    # So that `decisive` is not merely always false: it is true just above the margin's need, and false below it.
    router = Router(1, bias=torch.tensor([0.5, 0.0]))
    choice = choose_experts(torch.tensor([[0.0, 0.0]]), router)
    assert choice.expert_margin.tolist() == [0.5]
    assert choice.decisive(0.2499).tolist() == [True]
    assert choice.decisive(0.25).tolist() == [False]
    grouped = choose_experts(torch.tensor([[0.0, 0.0]]), Router(1, 2, 1, bias=torch.tensor([0.5, 0.0])))
    assert grouped.group_margin.tolist() == [0.5]
    assert grouped.expert_margin.tolist() == [math.inf]
    assert grouped.decisive(0.12).tolist() == [True]
    assert grouped.decisive(0.125).tolist() == [False]


def test_negative_biased_scores_do_not_let_dropped_groups_in() -> None:
    bias = torch.tensor([-2.0, -2.0, -9.0, -9.0])
    assert choose_experts(torch.zeros(1, 4), Router(2, 2, 1, bias=bias)).expert_ids.tolist() == [[0, 1]]


def test_nan_is_never_decisive() -> None:
    choice = choose_experts(torch.tensor([[0.0, math.nan, 1.0], [0.0, 1.0, 5.0]]), Router(1))
    assert choice.decisive(0.0).tolist() == [False, True]


@pytest.mark.parametrize(
    "router", [Router(1, 3), Router(1, 2, 3), Router(1, 2, 0), Router(0), Router(3, 2, 1), Router(1, score="relu")]
)
def test_impossible_routers(router: Router) -> None:
    with pytest.raises(ValueError, match=r"experts|score"):
        choose_experts(torch.zeros(1, 4), router)


def test_score_noise_is_of_biased_scores() -> None:
    router = Router(1, bias=torch.tensor([1.0, 0.0]))
    noise = score_noise(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 0.0]]), router)
    assert noise.tolist() == pytest.approx([1 / (1 + math.exp(-1)) - 0.5])


def test_scores_of_other_shapes_have_no_noise() -> None:
    with pytest.raises(ValueError, match=r"shapes \[2, 2\] and \[1, 2\]"):
        score_noise(torch.zeros(2, 2), torch.zeros(1, 2), Router(1))
    with pytest.raises(ValueError, match=r"a bias of shape \[1\] for 2 experts"):
        choose_experts(torch.zeros(1, 2), Router(1, bias=torch.zeros(1)))


def judge(candidate: Any, reference: Any, limits: dict[str, float | None], decisive: Any = None) -> tuple[bool, str]:
    ids = [torch.as_tensor(side) for side in (candidate, reference)]
    mask = None if decisive is None else torch.tensor(decisive)
    result = compare_routing("layers.1.router.expert_ids", *ids, limits, decisive=mask)
    assert bool(result.message) != result.passed
    assert result.rule == "routing"
    json.dumps(dict(result.measurements), allow_nan=False)
    return result.passed, result.message


IDS = [[1, 2], [3, 4], [5, 6], [7, 0]]
ONE_WRONG = [[2, 1], [3, 4], [5, 9], [0, 7]]


def test_agreement_is_of_sets_and_by_token() -> None:
    assert judge(ONE_WRONG, IDS, {"all": 0.75})[0]
    assert judge(ONE_WRONG, IDS, {"all": 0.76}) == (
        False,
        "experts agree on 0.75 of the tokens, fewer than 0.76; first at token 2: [5, 9] against [5, 6]",
    )


def test_decisive_tokens_are_judged_apart() -> None:
    limits: dict[str, float | None] = {"decisive": 1.0, "all": None}
    assert judge(ONE_WRONG, IDS, limits, [True, True, False, True])[0]
    passed, message = judge(ONE_WRONG, IDS, limits, [True, False, True, True])
    assert not passed
    assert "of the decisive tokens" in message
    assert "first at token 2" in message
    assert not judge(ONE_WRONG, IDS, {"decisive": 1.0, "all": 1.0}, [True, True, False, True])[0]


@pytest.mark.parametrize(
    ("candidate", "reference", "limits", "decisive", "message"),
    [
        (IDS, IDS, {"decisive": 0.0}, [False] * 4, "no token is decisive"),
        (IDS, IDS, {"decisive": 1.0}, None, "logits are needed"),
        (IDS, IDS, {"decisive": 1.0}, [True], "decisive tokens of shape [1]"),
        (IDS, IDS, {}, None, "bounds nothing"),
        (IDS, IDS, {"decisive": None, "all": None}, None, "bounds nothing"),
        (IDS[:1], IDS, {"all": 0.0}, None, "shape [1, 2] differs"),
        (torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, 2, dtype=torch.int64), {"all": 0.0}, None, "nothing"),
        (torch.tensor(IDS).float(), IDS, {"all": 0.0}, None, "not integers"),
        ([[1, 1]], [[1, 2]], {"all": 0.0}, None, "twice"),
        ([[1, 2]], [[1, 1]], {"all": 0.0}, None, "twice"),
    ],
)
def test_what_never_passes(candidate: Any, reference: Any, limits: Any, decisive: Any, message: str) -> None:
    passed, found = judge(candidate, reference, limits, decisive)
    assert not passed
    assert message in found


def test_order_within_a_token_does_not_matter() -> None:
    for order in itertools.permutations([3, 1, 2]):
        assert judge([list(order)], [[1, 2, 3]], {"all": 1.0})[0]


def test_one_expert_twice_is_seen_wherever_it_stands() -> None:
    once, twice = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[1, 2, 3], [4, 5, 4]])
    assert compare_routing("x", once, once, {"all": 1.0}).passed
    assert compare_routing("x", twice, once, {"all": 0.0}).message == "the candidate chose one expert twice for a token"
    assert compare_routing("x", once, twice, {"all": 0.0}).message == "the reference chose one expert twice for a token"
