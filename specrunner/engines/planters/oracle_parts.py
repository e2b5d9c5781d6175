"""Parts of our own LLaDA2 in numpy that a fault can change, each by one function that makes a planter."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np

from specrunner.engines.base import Engine
from specrunner.engines.planters.patching import Planter, replaced
from specrunner.models import llada2

Array = Any


def find_model(engine: Engine) -> Any:
    """Return the model of an oracle that has loaded one."""
    return engine._model  # type: ignore[attr-defined]


def change_config(**changes: Any) -> Planter:
    """Give the model a configuration with other values."""
    return lambda engine: replaced(find_model(engine), "config", replace(find_model(engine).config, **changes))


def change_method(name: str, make: Callable[[Any, Any], Any]) -> Planter:
    """Shadow a method by `make(model, original)`."""
    return lambda engine: replaced(
        find_model(engine), name, make(find_model(engine), getattr(find_model(engine), name))
    )


def change_function(name: str, make: Callable[[Any, Any], Any]) -> Planter:
    """Replace a function that the model calls by `make(model, original)`."""
    return lambda engine: replaced(llada2, name, make(find_model(engine), getattr(llada2, name)))


def change_weights(change: Callable[[str, Callable[[str], Array], Array], Array]) -> Planter:
    """Read other weights; `change(name, read, values)` may read any tensor by `read(name)`."""
    return change_sized_weights(lambda _config: change)


def change_sized_weights(choose: Callable[[Any], Callable[[str, Callable[[str], Array], Array], Array]]) -> Planter:
    """Read other weights, as `change_weights` does, where which depends on the model's size: `choose(config)`."""

    def plant(engine: Engine) -> AbstractContextManager[None]:
        weights = find_model(engine).weights
        original = weights.read
        change = choose(find_model(engine).config)

        def read(name: str, shape: Any) -> Array:
            return change(name, lambda other: original(other, shape), original(name, shape))

        return replaced(weights, "read", read)

    return plant


def exchange_names(name: str, left: str, right: str) -> str:
    """Exchange two parts of a name: the one that is in it becomes the other."""
    return name.replace(left, right) if left in name else name.replace(right, left)


def round_bfloat16(values: Array) -> Array:
    """Round to bfloat16, ties to even, through float32."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return rounded.astype(np.uint32).view(np.float32).astype(np.float64)


def change_mask(see: Callable[[Array, Array, int], Array]) -> Planter:
    """Replace the geometry; `see(queries, keys, block_length)` gets positions [T, 1] and [1, T]."""

    def make(model: Any, _original: Any) -> Any:
        def geometry(tokens: int, attention: str, block_length: int | None = None) -> Array:
            at = np.arange(tokens)
            seen = see(at[:, None], at[None, :], model._block_length(block_length))
            return np.broadcast_to(seen, (tokens, tokens))

        return geometry

    return change_method("geometry", make)


def change_rope(change: Callable[[Array, Array, Array, Any], Array]) -> Planter:
    """Replace RoPE; `change(heads, positions, frequencies, config)`."""

    def rotate(heads: Array, config: Any) -> Array:
        half = config.rotary_dim // 2
        return change(heads, np.arange(len(heads)), config.rope_theta ** (-np.arange(half) / half), config)

    return change_function("rotate", lambda _model, _original: rotate)


def change_norms(change: Callable[[str, Array, Callable[[Array], Array]], Array]) -> Planter:
    """Replace norms; `change(name, values, norm)`."""
    return change_method(
        "_norm", lambda _model, norm: lambda values, name: change(name, values, lambda other: norm(other, name))
    )


def change_softmax(change: Callable[[Any, Any, Array], Array]) -> Planter:
    """Replace the attention's softmax; `change(model, softmax, scores)`, masked scores being -inf."""
    return change_function("softmax", lambda model, softmax: lambda scores: change(model, softmax, scores))


def change_routes(choose: Callable[[Any, Array, Array, Any], tuple[Array, Array]]) -> Planter:
    """Replace the router; `choose(route, logits, bias, config)`."""
    return change_function(
        "route", lambda _model, route: lambda logits, bias, config: choose(route, logits, bias, config)
    )


def change_mixture(
    change: Callable[[Any, Array, Array, Array], tuple[Array, Array]], *, backwards: bool = False
) -> Planter:
    """Give the experts other ids or weights than the router said; `change(model, logits, ids, weights)`."""

    def make(model: Any, _original: Any) -> Any:
        def mix_experts(layer: int, hidden: Array, report: Any, lead: Any) -> Array:
            config, name = model.config, f"model.layers.{layer}.mlp"
            logits = hidden @ model.weights.read(f"{name}.gate.weight", [config.num_experts, config.hidden_size]).T
            bias = model.weights.read(f"{name}.gate.expert_bias", [config.num_experts])
            routes = [llada2.route(row, bias, config) for row in logits]
            ids, weights = (np.stack(part) for part in zip(*routes, strict=True))
            report(f"layers.{layer}.router.logits", logits)
            report(f"layers.{layer}.router.expert_ids", ids)
            report(f"layers.{layer}.router.expert_weights", weights)
            if f"layers.{layer}.router.expert_ids" in lead:
                ids, weights = (lead[f"layers.{layer}.router.{name}"] for name in ("expert_ids", "expert_weights"))
            ids, weights = change(model, logits, ids, weights)
            mixed = np.zeros_like(hidden)
            for expert in sorted(np.unique(ids), reverse=backwards):
                tokens, slots = np.nonzero(ids == expert)
                output = model._feed_forward(hidden[tokens], f"{name}.experts.{expert}")
                mixed[tokens] += weights[tokens, slots][:, None] * output
            return mixed + model._feed_forward(hidden, f"{name}.shared_experts")

        return mix_experts

    return change_method("_mix_experts", make)


def change_shared_expert(change: Callable[[Array], Array]) -> Planter:
    """Change the shared expert's output, [tokens, hidden size]."""

    def make(_model: Any, original: Any) -> Any:
        def feed_forward(hidden: Array, name: str) -> Array:
            output = original(hidden, name)
            return change(output) if name.endswith("shared_experts") else output

        return feed_forward

    return change_method("_feed_forward", make)


def change_head(change: Callable[[Callable[[str], Array], Array], Array]) -> Planter:
    """Change the output head; `change(read, values)` may read any tensor by `read(name)`."""
    return change_weights(lambda name, read, values: change(read, values) if name == "lm_head.weight" else values)


def change_decode(change: Callable[[Any, dict[str, Any]], dict[str, Any]]) -> Planter:
    """Decode with other options; `change(model, options)` returns those that differ."""
    return change_method(
        "decode", lambda model, decode: lambda ids, **options: decode(ids, **options | change(model, options))
    )
