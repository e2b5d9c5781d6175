"""How served routers choose, read off stand-ins with the names that vLLM and SGLang use."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from specrunner.engines.name_maps import Entry, HookPoint
from specrunner.engines.served_routers import describe_choice, describe_routers, read_biases

BIAS = torch.tensor([0.5, -0.5, 0.25, 0.0])
GROUPED = {
    "scoring_func": "sigmoid",
    "top_k": 2,
    "num_expert_group": 2,
    "topk_group": 1,
    "e_score_correction_bias": BIAS,
}


def router(**changes: Any) -> Any:
    return SimpleNamespace(**GROUPED | changes)


@pytest.mark.parametrize(
    ("changes", "groups", "bias"),
    [
        ({}, (2, 1), True),
        ({"use_grouped_topk": False}, (1, 1), True),  # as SGLang's config and vLLM's CPU router say
        ({"num_expert_group": None, "topk_group": None, "e_score_correction_bias": None}, (1, 1), False),
        ({"e_score_correction_bias": None, "correction_bias": BIAS}, (2, 1), True),
    ],
)
def test_a_choice_is_described(changes: dict[str, Any], groups: tuple[int, int], bias: bool) -> None:
    facts = describe_choice(router(renormalize=True, routed_scaling_factor=2.5, **changes))
    assert facts == {
        "score": "sigmoid",
        "bias": bias,
        "experts_per_token": 2,
        "n_group": groups[0],
        "topk_group": groups[1],
        "renormalize": True,
        "routed_scaling_factor": 2.5,
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"custom_routing_function": len},
        {"scoring_func": "sqrtsoftplus"},
        {"num_shared_topk_slots": 1},
        {"num_fused_shared_experts": 1},
        {"e_score_correction_bias": None},  # groups are then ranked by their best expert
        {"top_k": None},
    ],
)
def test_what_has_no_description_is_not_guessed(changes: dict[str, Any]) -> None:
    assert describe_choice(router(**changes)) is None


class Model(nn.Module):
    """Two layers: a router behind an attribute, as in vLLM, and one behind a config, as in SGLang."""

    def __init__(self, second: Any) -> None:
        super().__init__()
        self.first, self.second = nn.Module(), nn.Module()
        self.first.router = router()
        self.second.topk_config = second


POINTS = [
    HookPoint("layers.0.router.expert_ids", "first", Entry("first", method="router.select_experts")),
    HookPoint("layers.1.router.expert_ids", "second", Entry("second")),
]


def test_layers_must_choose_alike() -> None:
    assert describe_routers(Model(router()), POINTS) == describe_choice(router())
    assert describe_routers(Model(router(top_k=1)), POINTS) is None
    assert describe_routers(Model(router()), []) is None


def test_biases_come_with_the_logits_of_their_layer() -> None:
    model = Model(router(e_score_correction_bias=None))
    names = ["layers.0.router.logits", "layers.1.router.logits", "layers.1.output"]
    found = read_biases(model, POINTS, names)
    assert list(found) == ["layers.0.router.expert_bias"]
    assert torch.equal(found["layers.0.router.expert_bias"], BIAS)
    assert found["layers.0.router.expert_bias"].data_ptr() != BIAS.data_ptr()
    assert read_biases(model, POINTS, names[1:]) == {}
