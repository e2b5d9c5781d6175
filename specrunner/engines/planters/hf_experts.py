"""Faults of `hf` in the mixture of experts: routing, experts, the shared expert, and their scaling."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn import functional

from specrunner.engines.planters.hf_parts import change_method, change_modules, change_weights, mixtures
from specrunner.engines.planters.patching import Planter

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class Routing:
    """A router that deviates from the group-limited sigmoid router in the stated points alone."""

    score: Literal["sigmoid", "softmax"] = "sigmoid"
    bias: Literal["choice", "nowhere", "weights", "logits"] = "choice"
    group: Literal["two best", "best", "unlimited"] = "two best"
    skip: int = 0  # ranks left out before the chosen ones
    fewer: int = 0  # chosen experts whose weight is zero, the last ones
    normalise: bool = True
    factor: float = 1.0  # on top of the routed scaling factor
    dtype: torch.dtype = torch.float32

    def route(self, gate: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Do what `LLaDA2MoeGate.forward` does."""
        logits = functional.linear(hidden.to(self.dtype), gate.weight.to(self.dtype)).float()
        bias, count = gate.expert_bias.float(), gate.experts_per_token
        raw = logits + bias if self.bias == "logits" else logits
        scores = raw.sigmoid() if self.score == "sigmoid" else raw.softmax(-1)
        ranked = scores + bias if self.bias in ("choice", "weights") else scores
        if self.group != "unlimited":
            grouped = ranked.unflatten(-1, (gate.groups, -1))
            best = grouped.topk(2 if self.group == "two best" else 1, dim=-1).values.sum(-1)
            kept = best.topk(gate.kept_groups, dim=-1).indices
            dropped = torch.ones_like(best, dtype=torch.bool).scatter(-1, kept, False)
            ranked_in = grouped.masked_fill(dropped[..., None], float("-inf")).flatten(-2)
        else:
            ranked_in = ranked
        best_ids = ranked_in.topk(count + self.skip, dim=-1).indices[..., self.skip :]
        used = torch.arange(count, device=scores.device) < count - self.fewer
        weights = (ranked if self.bias == "weights" else scores).gather(-1, best_ids) * used
        if self.normalise:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        ids, order = best_ids.sort(dim=-1)
        return ids, weights.gather(-1, order) * gate.routed_scaling_factor * self.factor, logits


def _gate(routing: Routing) -> Planter:
    return change_method("LLaDA2MoeGate", "forward", lambda _original: lambda self, hidden: routing.route(self, hidden))


def _run(change: Callable[[Any, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]) -> Planter:
    """Give the experts other ids or weights than the router said; `change(mixture, hidden, ids, weights)`."""

    def make(original: Any) -> Any:
        def run_experts(self: Any, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
            ids, weights = change(self, hidden, ids, weights)
            result: Tensor = original(self, hidden, ids, weights)
            return result

        return run_experts

    return change_method("LLaDA2MoeSparseMoeBlock", "run_experts", make)


def _rerouted(mixture: Any, hidden: Tensor, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    routing = Routing(score="softmax", bias="nowhere", group="unlimited")
    ids, weights, _ = routing.route(mixture.gate, hidden)
    return ids, weights


def _over_capacity(mixture: Any, hidden: Tensor, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    capacity = max(1, int(1.25 * ids.numel() / len(mixture.experts)))
    chosen = functional.one_hot(ids.flatten(), len(mixture.experts))
    place = (chosen.cumsum(0) * chosen).sum(-1).view_as(ids)
    return ids, weights * (place <= capacity)


def _experts(make: Callable[[Any, Any], Any]) -> Planter:
    return change_modules(lambda model: [expert for mix in mixtures(model) for expert in mix.experts], make)


def _gate_and_up_exchanged(expert: Any, _original: Any) -> Any:
    return lambda hidden: expert.down_proj(functional.silu(expert.up_proj(hidden)) * expert.gate_proj(hidden))


def _gelu(expert: Any, _original: Any) -> Any:
    return lambda hidden: expert.down_proj(functional.gelu(expert.gate_proj(hidden)) * expert.up_proj(hidden))


def _shared(factor: float) -> Planter:
    return change_modules(
        lambda model: [mix.shared_experts for mix in mixtures(model)],
        lambda _module, original: lambda hidden: factor * original(hidden),
    )


def _shared_skips_masked(mix: Any, original: Any) -> Any:
    return lambda hidden: torch.cat([original(hidden[:-1]), torch.zeros_like(hidden[-1:])])


def _bias_rounded(model: Any) -> Iterable[tuple[Any, Tensor]]:
    for mix in mixtures(model):
        yield mix.gate.expert_bias, mix.gate.expert_bias.bfloat16().float()


def _one_expert_zero(model: Any) -> Iterable[tuple[Any, Tensor]]:
    for mix in mixtures(model):
        for expert in mix.experts[-len(mix.experts) // 8 :]:
            yield expert.down_proj.weight, torch.zeros_like(expert.down_proj.weight)


def _eight_bits(model: Any) -> Iterable[tuple[Any, Tensor]]:
    for mix in mixtures(model):
        for expert in mix.experts:
            for part in (expert.gate_proj, expert.up_proj, expert.down_proj):
                scale = part.weight.abs().amax().float() / 448
                yield part.weight, (part.weight.float() / scale).to(torch.float8_e4m3fn).float() * scale


PLANTERS: dict[str, Planter] = {
    "routing-softmax": _gate(Routing(score="softmax")),
    "routing-no-groups": _gate(Routing(group="unlimited")),
    "routing-group-by-best": _gate(Routing(group="best")),
    "routing-bias-ignored": _gate(Routing(bias="nowhere")),
    "routing-bias-in-weights": _gate(Routing(bias="weights")),
    "routing-bias-before-sigmoid": _gate(Routing(bias="logits")),
    "routing-not-normalised": _gate(Routing(normalise=False)),
    "routing-one-expert-fewer": _gate(Routing(fewer=1)),
    "routing-best-skipped": _gate(Routing(skip=1)),
    "experts-neighbours-exchanged": _run(lambda _mix, _hidden, ids, weights: (ids ^ 1, weights)),
    "experts-weights-misplaced": _run(lambda _mix, _hidden, ids, weights: (ids, weights.roll(1, -1))),
    "experts-rerouted": _run(_rerouted),
    "experts-over-capacity": _run(_over_capacity),
    "experts-gate-up-exchanged": _experts(_gate_and_up_exchanged),
    "experts-gelu": _experts(_gelu),
    "experts-shard-missing": change_weights(_one_expert_zero),
    "shared_expert-dropped": _shared(0.0),
    "shared_expert-doubled": _shared(2.0),
    "shared_expert-scaled": _shared(2.5),
    "shared_expert-last-token-skipped": change_modules(
        lambda model: [mix.shared_experts for mix in mixtures(model)], _shared_skips_masked
    ),
    "scaling-routed-dropped": _run(lambda mix, _hidden, ids, weights: (ids, weights / mix.gate.routed_scaling_factor)),
    "scaling-routed-twice": _run(lambda mix, _hidden, ids, weights: (ids, weights * mix.gate.routed_scaling_factor)),
    "dtype-router-rounded": _gate(Routing(dtype=torch.bfloat16)),
    "dtype-router-bias-rounded": change_weights(_bias_rounded),
    "dtype-experts-eight-bits": change_weights(_eight_bits),
}
"""Context managers by the fault's name."""
