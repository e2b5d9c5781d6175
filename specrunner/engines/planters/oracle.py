"""All planters of `oracle`: faults and variants of our own LLaDA2 in numpy."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np

from specrunner.engines.base import Engine
from specrunner.engines.planters.oracle_parts import (
    change_config,
    change_decode,
    change_head,
    change_mask,
    change_method,
    change_mixture,
    change_norms,
    change_rope,
    change_routes,
    change_shared_expert,
    change_sized_weights,
    change_softmax,
    change_weights,
    exchange_names,
    round_bfloat16,
)
from specrunner.engines.planters.patching import Planter, replaced
from specrunner.errors import FaultInapplicable
from specrunner.models import llada2, llada2_decoding

Array = Any


def _from_the_end(queries: Array, keys: Array, length: int) -> Array:
    shift = -queries.shape[0] % length
    return (keys + shift) // length <= (queries + shift) // length


def _turn(heads: Array, positions: Array, frequencies: Array, sign: int = 1) -> Array:
    half = len(frequencies)
    angle = (positions[:, None] * frequencies)[:, None, :]
    turned = heads.copy()
    left, right, cos, sin = heads[..., :half], heads[..., half : 2 * half], np.cos(angle), sign * np.sin(angle)
    turned[..., :half] = left * cos - right * sin
    turned[..., half : 2 * half] = left * sin + right * cos
    return turned


def _interleave(heads: Array, positions: Array, frequencies: Array, config: Any) -> Array:
    half = len(frequencies)
    order = np.concatenate([np.arange(0, 2 * half, 2), np.arange(1, 2 * half, 2)])
    turned = heads.copy()
    turned[..., order] = _turn(heads[..., order], positions, frequencies)
    return turned


def _is_layer_norm(name: str) -> bool:
    return name.endswith(("input_layernorm", "post_attention_layernorm"))


def _one_slot_off(_model: Any, softmax: Any, scores: Array) -> Array:
    shares = softmax(scores)
    moved = np.concatenate([shares[:, 1:], np.zeros_like(shares[:, :1])], axis=1)
    moved[:, 0] += shares[:, 0]
    return moved


def _summed(model: Any, softmax: Any, scores: Array) -> Array:
    block = np.arange(len(scores)) // model.config.block_length
    own = block[:, None] == block[None, :]
    before = np.where(own, -np.inf, scores)
    prefix = np.zeros_like(scores)
    rows = np.isfinite(before).any(axis=1)
    prefix[rows] = softmax(before[rows])
    return softmax(np.where(own, scores, -np.inf)) + prefix


def _running(_model: Any, _softmax: Any, scores: Array) -> Array:
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / np.cumsum(powers[:, ::-1], axis=-1)[:, -1:]


def _softmax_scores(route: Any, logits: Array, bias: Array, config: Any) -> tuple[Array, Array]:
    shares = np.exp(logits - logits.max())
    return _by_scores(route, shares / shares.sum(), bias, config)


def _by_scores(route: Any, scores: Array, bias: Array, config: Any) -> tuple[Array, Array]:
    """Route by given scores in (0, 1): `route` takes logits, whose sigmoid they are."""
    chosen: tuple[Array, Array] = route(np.log(scores) - np.log1p(-scores), bias, config)
    return chosen


def _group_by_best(route: Any, logits: Array, bias: Array, config: Any) -> tuple[Array, Array]:
    biased = (llada2.sigmoid(logits) + bias).reshape(config.n_group, -1)
    kept = np.argsort(-biased.max(axis=1), kind="stable")[: config.topk_group]
    lift = np.zeros_like(biased)
    lift[kept] = 10.0  # all of the kept groups before the others, whatever `route` thinks of groups
    chosen: tuple[Array, Array] = route(logits, bias + lift.ravel(), config)
    return chosen


def _bias_in_weights(route: Any, logits: Array, bias: Array, config: Any) -> tuple[Array, Array]:
    ids, _ = route(logits, bias, config)
    weights = (llada2.sigmoid(logits) + bias)[ids]
    return ids, weights / (weights.sum() + 1e-20) * config.routed_scaling_factor


def _one_fewer(route: Any, logits: Array, bias: Array, config: Any) -> tuple[Array, Array]:
    ids, _ = route(logits, bias, config)
    fewer, weights = route(logits, bias, replace(config, num_experts_per_tok=config.num_experts_per_tok - 1))
    return ids, np.array([weights[list(fewer).index(i)] if i in fewer else 0.0 for i in ids])


def _best_skipped(route: Any, logits: Array, bias: Array, config: Any) -> tuple[Array, Array]:
    more, _ = route(logits, bias, replace(config, num_experts_per_tok=config.num_experts_per_tok + 1))
    scores = llada2.sigmoid(logits)
    ids = np.sort(more[more != more[np.argmax((scores + bias)[more])]])
    return ids, scores[ids] / (scores[ids].sum() + 1e-20) * config.routed_scaling_factor


def _rerouted(model: Any, logits: Array, ids: Array, weights: Array) -> tuple[Array, Array]:
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    ids = np.sort(np.argsort(-shares, axis=1, kind="stable")[:, : ids.shape[1]], axis=1)
    weights = np.take_along_axis(shares, ids, axis=1)
    return ids, weights / weights.sum(axis=1, keepdims=True) * model.config.routed_scaling_factor


def _last_skipped(output: Array) -> Array:
    return np.concatenate([output[:-1], np.zeros_like(output[-1:])])


_erf = np.vectorize(math.erf)


def _gelu(model: Any, original: Any) -> Any:
    def feed_forward(hidden: Array, name: str) -> Array:
        if ".experts." not in name:
            return original(hidden, name)
        size = model.config.hidden_size
        gate = hidden @ model.weights.read(f"{name}.gate_proj.weight", [None, size]).T
        up = hidden @ model.weights.read(f"{name}.up_proj.weight", [None, size]).T
        active = 0.5 * gate * (1 + _erf(gate / math.sqrt(2)))
        return (active * up) @ model.weights.read(f"{name}.down_proj.weight", [size, None]).T

    return feed_forward


def _shard_missing(config: Any) -> Any:
    """Leave out the last of eight shards of the experts."""
    first = config.num_experts + -config.num_experts // 8

    def change(name: str, _read: Any, values: Array) -> Array:
        number = name.partition(".experts.")[2].partition(".")[0]
        return np.zeros_like(values) if number and int(number) >= first and "down_proj" in name else values

    return change


def _exchange_gate_up(name: str, read: Any, values: Array) -> Array:
    return read(exchange_names(name, "gate_proj", "up_proj")) if ".experts." in name and "down" not in name else values


def _exchange_norms(name: str, read: Any, values: Array) -> Array:
    layer_norm = "input_layernorm" in name or "post_attention_layernorm" in name
    return read(exchange_names(name, "input_layernorm", "post_attention_layernorm")) if layer_norm else values


def _swap_qk(name: str, read: Any, values: Array) -> Array:
    return (
        read(exchange_names(name, "query_layernorm", "key_layernorm"))
        if "query_layer" in name or "key_layer" in name
        else values
    )


def _plus_one(name: str, _read: Any, values: Array) -> Array:
    return values + 1 if _is_layer_norm(name.removesuffix(".weight")) or name == "model.norm.weight" else values


def _exchange_attention(config: Any) -> Any:
    """Exchange the attention of the last two layers."""
    if config.num_hidden_layers < 2:
        raise FaultInapplicable("one layer's attention has none to be exchanged with")
    left, right = (f".layers.{config.num_hidden_layers - back}." for back in (2, 1))

    def change(name: str, read: Any, values: Array) -> Array:
        moved = f"{left}attention." in name or f"{right}attention." in name
        return read(exchange_names(name, left, right)) if moved else values

    return change


def _scale_embeddings(name: str, _read: Any, values: Array) -> Array:
    return values * np.sqrt(values.shape[1]) if name == "model.word_embeddings.weight" else values


def _shift_logits(_model: Any, forward: Any) -> Any:
    def shifted(ids: Any, *, on_tensor: Any = None, **options: Any) -> Array:
        def report(name: str, value: Array) -> None:
            if on_tensor is not None:
                on_tensor(name, np.roll(value, 1, axis=0) if name == "logits" else value)

        return np.roll(forward(ids, on_tensor=report, **options), 1, axis=0)

    return shifted


def _length(model: Any, options: dict[str, Any]) -> int:
    return int(options.get("block_length") or model.config.block_length)


def _leftmost(_engine: Engine) -> AbstractContextManager[None]:
    original = llada2_decoding.denoise

    def denoise(block: Array, logits: Array, sampler: Any, step: int) -> tuple[Array, Array]:
        accepted, after = original(block, logits, sampler, step)
        confidence = 1.0 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)
        if not (confidence[accepted] > sampler.threshold).any():
            first = int(np.flatnonzero(block == sampler.mask_id)[0])
            accepted, after = np.arange(len(block)) == first, block.copy()
            after[first] = logits[first].argmax()
        return accepted, after

    return replaced(llada2_decoding, "denoise", denoise)


def _wide(values: Array, norm: Callable[[Array], Array]) -> Array:
    return norm(values.astype(np.longdouble)).astype(np.float64)


PLANTERS: dict[str, Planter] = {
    "embeddings-scaled": change_weights(_scale_embeddings),
    "layers-attention-exchanged": change_sized_weights(_exchange_attention),
    "mask-causal": change_mask(lambda q, k, length: k <= q),
    "mask-bidirectional": change_mask(lambda q, k, length: k > -1),
    "mask-block-doubled": change_mask(lambda q, k, length: k // (2 * length) <= q // (2 * length)),
    "mask-block-halved": change_mask(lambda q, k, length: k // (length // 2) <= q // (length // 2)),
    "mask-blocks-from-the-end": change_mask(_from_the_end),
    "mask-own-block-hidden": change_mask(lambda q, k, length: (k // length < q // length) | (k == q)),
    "mask-prefix-hidden": change_mask(lambda q, k, length: k // length == q // length),
    "mask-window": change_mask(lambda q, k, length: (k // length <= q // length) & (q - k < 24)),
    "rope-interleaved": change_rope(_interleave),
    "rope-whole-head": change_config(partial_rotary_factor=1.0),
    "rope-default-theta": change_config(rope_theta=10_000.0),
    "rope-positions-restart": change_rope(
        lambda heads, at, turns, config: _turn(heads, at % config.block_length, turns)
    ),
    "rope-frequencies-rounded": change_rope(lambda heads, at, turns, config: _turn(heads, at, round_bfloat16(turns))),
    "rope-reversed": change_rope(lambda heads, at, turns, config: _turn(heads, at, turns, sign=-1)),
    "rope-offset": change_rope(lambda heads, at, turns, config: _turn(heads, at + 1, turns)),
    "qk_norm-dropped": change_norms(
        lambda name, values, norm: values if name.endswith(("query_layernorm", "key_layernorm")) else norm(values)
    ),
    "qk_norm-queries-bare": change_norms(
        lambda name, values, norm: values if name.endswith("query_layernorm") else norm(values)
    ),
    "qk_norm-swapped": change_weights(_swap_qk),
    "kv_cache-one-slot-off": change_softmax(_one_slot_off),
    "kv_cache-softmaxes-summed": change_softmax(_summed),
    "routing-softmax": change_routes(_softmax_scores),
    "routing-no-groups": change_routes(
        lambda route, logits, bias, config: route(logits, bias, replace(config, topk_group=config.n_group))
    ),
    "routing-group-by-best": change_routes(_group_by_best),
    "routing-bias-ignored": change_routes(lambda route, logits, bias, config: route(logits, 0 * bias, config)),
    "routing-bias-in-weights": change_routes(_bias_in_weights),
    "routing-bias-before-sigmoid": change_routes(
        lambda route, logits, bias, config: route(logits + bias, 0 * bias, config)
    ),
    "routing-not-normalised": change_config(norm_topk_prob=False),
    "routing-one-expert-fewer": change_routes(_one_fewer),
    "routing-best-skipped": change_routes(_best_skipped),
    "experts-neighbours-exchanged": change_mixture(lambda model, logits, ids, weights: (ids ^ 1, weights)),
    "experts-weights-misplaced": change_mixture(lambda model, logits, ids, weights: (ids, np.roll(weights, 1, axis=1))),
    "experts-rerouted": change_mixture(_rerouted),
    "experts-gate-up-exchanged": change_weights(_exchange_gate_up),
    "experts-gelu": change_method("_feed_forward", _gelu),
    "experts-shard-missing": change_sized_weights(_shard_missing),
    "shared_expert-dropped": change_shared_expert(lambda output: 0 * output),
    "shared_expert-doubled": change_shared_expert(lambda output: 2 * output),
    "shared_expert-scaled": change_shared_expert(lambda output: 2.5 * output),
    "shared_expert-last-token-skipped": change_shared_expert(_last_skipped),
    "scaling-attention-dropped": change_softmax(
        lambda model, softmax, scores: softmax(scores * model.config.head_dim**0.5)
    ),
    "scaling-attention-by-width": change_softmax(
        lambda model, softmax, scores: softmax(scores * model.config.num_attention_heads**-0.5)
    ),
    "scaling-routed-dropped": change_mixture(
        lambda model, logits, ids, weights: (ids, weights / model.config.routed_scaling_factor)
    ),
    "scaling-routed-twice": change_mixture(
        lambda model, logits, ids, weights: (ids, weights * model.config.routed_scaling_factor)
    ),
    "norms-other-eps": change_config(rms_norm_eps=1e-5),
    "norms-plus-one": change_weights(_plus_one),
    "norms-exchanged": change_weights(_exchange_norms),
    "norms-centred": change_norms(
        lambda name, values, norm: (
            norm(values - values.mean(-1, keepdims=True)) if _is_layer_norm(name) else norm(values)
        )
    ),
    "norms-final-dropped": change_norms(lambda name, values, norm: values if name == "norm" else norm(values)),
    "dtype-router-rounded": change_routes(
        lambda route, logits, bias, config: route(round_bfloat16(logits), bias, config)
    ),
    "dtype-router-bias-rounded": change_routes(
        lambda route, logits, bias, config: route(logits, round_bfloat16(bias), config)
    ),
    "head-tied": change_head(lambda read, values: read("model.word_embeddings.weight")),
    "head-shifted": change_method("forward", _shift_logits),
    "head-one-row-off": change_head(lambda read, values: np.roll(values, 1, axis=0)),
    "head-rescaled": change_head(lambda read, values: 0.5 * values),
    "sampler-low-threshold": change_decode(lambda model, options: {"threshold": 0.01}),
    "sampler-wrong-mask-id": change_decode(lambda model, options: {"mask_id": 1}),
    "sampler-two-a-pass": change_decode(lambda model, options: {"steps": _length(model, options) // 2}),
    "sampler-leftmost": _leftmost,
    "sampler-at-least": change_decode(lambda model, options: {"accept": "ge"}),
    "decoding-eos-ignored": change_decode(lambda model, options: {"eos_id": -1}),
    "decoding-half-blocks": change_decode(lambda model, options: {"block_length": _length(model, options) // 2}),
    "variant-repeat": lambda _engine: nullcontext(),
    "variant-running-softmax": change_softmax(_running),
    "variant-experts-reversed": change_mixture(lambda model, logits, ids, weights: (ids, weights), backwards=True),
    "variant-wide-norms": change_norms(lambda name, values, norm: _wide(values, norm)),
}
"""Context managers by the fault's name."""
