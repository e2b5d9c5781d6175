"""How the routers of a served model choose their experts, read off the live objects that choose.

vLLM's routers and SGLang's `TopKConfig` name the same things a little differently. What a case needs to tell decisive
tokens is stated only where it is sure: a function of the model's own, fused shared experts, another score or another
way to rank groups than `checks.routing` computes give no fact, and then a case says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from specrunner.engines.name_maps import HookPoint

if TYPE_CHECKING:
    import torch

IDS = ".router.expert_ids"
LOGITS = ".router.logits"
BIAS = ".router.expert_bias"
SCORES = ("sigmoid", "softmax")


def find_routers(model: torch.nn.Module, points: Iterable[HookPoint]) -> dict[str, Any]:
    """Return by layer (`layers.3`) the object that chooses its experts: where the choice is hooked, or its config."""
    found = {}
    for point in points:
        if point.name.endswith(IDS):
            owner: Any = model.get_submodule(point.module)
            for part in (point.entry.method or "").split(".")[:-1]:
                owner = getattr(owner, part)
            found[point.name.removesuffix(IDS)] = getattr(owner, "topk_config", owner)
    return found


def describe_routers(model: torch.nn.Module, points: Iterable[HookPoint]) -> dict[str, Any] | None:
    """Return how a model's routers choose, the session fact `router`.

    Args:
        model: the live model.
        points: where its tensors are read, those of absent modules left out.

    Returns:
        As `name_maps.describe_router`, with `renormalize` and `routed_scaling_factor` as the engine states them; None
        for a dense model, for routers that differ between layers, and for a way to choose that has no description.
    """
    found = [describe_choice(router) for router in find_routers(model, points).values()]
    return found[0] if found and all(facts == found[0] for facts in found) else None


def describe_choice(router: Any) -> dict[str, Any] | None:
    """Return how one router chooses, or None where that has no description."""
    score, top_k = getattr(router, "scoring_func", None), getattr(router, "top_k", None)
    bias = find_bias(router)
    groups = getattr(router, "num_expert_group", None) or 1
    if not getattr(router, "use_grouped_topk", True):
        groups = 1
    own = getattr(router, "custom_routing_function", None) is not None
    shared = getattr(router, "num_shared_topk_slots", 0) or getattr(router, "num_fused_shared_experts", 0)
    # Without a bias both engines rank a group by its best expert, not by its two best.
    if own or shared or score not in SCORES or not isinstance(top_k, int) or (groups > 1 and bias is None):
        return None
    factor = getattr(router, "routed_scaling_factor", None)
    return {
        "score": score,
        "bias": bias is not None,
        "experts_per_token": top_k,
        "n_group": int(groups),
        "topk_group": int(router.topk_group) if groups > 1 else 1,
        "renormalize": bool(getattr(router, "renormalize", False)),
        "routed_scaling_factor": None if factor is None else float(factor),
    }


def find_bias(router: Any) -> torch.Tensor | None:
    """Return what a router adds to its scores for the choice alone, or None."""
    for name in ("e_score_correction_bias", "correction_bias"):
        bias: torch.Tensor | None = getattr(router, name, None)
        if bias is not None:
            return bias
    return None


def read_biases(
    model: torch.nn.Module, points: Iterable[HookPoint], names: Iterable[str]
) -> Mapping[str, torch.Tensor]:
    """Return `layers.{i}.router.expert_bias` for those layers whose router logits are among `names`, on the CPU."""
    layers = {name.removesuffix(LOGITS) for name in names if name.endswith(LOGITS)}
    found = {layer: find_bias(router) for layer, router in find_routers(model, points).items() if layer in layers}
    return {layer + BIAS: bias.detach().cpu().clone() for layer, bias in found.items() if bias is not None}
