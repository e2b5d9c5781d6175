"""All planters of `oracle`: faults and variants of our own LLaDA2 in numpy."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np

from specrunner.engines.base import Engine
from specrunner.engines.planters.patching import Planter, replaced
from specrunner.models import llada2, llada2_decoding

Array = Any


def _model(engine: Engine) -> Any:
    return engine._model  # type: ignore[attr-defined]


def _config(**changes: Any) -> Planter:
    """Give the model a configuration with other values."""
    return lambda engine: replaced(_model(engine), "config", replace(_model(engine).config, **changes))


def _method(name: str, make: Callable[[Any, Any], Any]) -> Planter:
    """Shadow a method by `make(model, original)`."""
    return lambda engine: replaced(_model(engine), name, make(_model(engine), getattr(_model(engine), name)))


def _function(name: str, make: Callable[[Any, Any], Any]) -> Planter:
    """Replace a function that the model calls by `make(model, original)`."""
    return lambda engine: replaced(llada2, name, make(_model(engine), getattr(llada2, name)))


def _weights(change: Callable[[str, Callable[[str], Array], Array], Array]) -> Planter:
    """Read other weights; `change(name, read, values)` may read any tensor by `read(name)`."""

    def plant(engine: Engine) -> AbstractContextManager[None]:
        weights = _model(engine).weights
        original = weights.read

        def read(name: str, shape: Any) -> Array:
            return change(name, lambda other: original(other, shape), original(name, shape))

        return replaced(weights, "read", read)

    return plant


def _rename(name: str, left: str, right: str) -> str:
    return name.replace(left, right) if left in name else name.replace(right, left)


def _bfloat16(values: Array) -> Array:
    """Round to bfloat16, ties to even, through float32."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return rounded.astype(np.uint32).view(np.float32).astype(np.float64)


def _mask(see: Callable[[Array, Array, int], Array]) -> Planter:
    """Replace the geometry; `see(queries, keys, block_length)` gets positions [T, 1] and [1, T]."""

    def make(model: Any, _original: Any) -> Any:
        def geometry(tokens: int, attention: str, block_length: int | None = None) -> Array:
            at = np.arange(tokens)
            seen = see(at[:, None], at[None, :], model._block_length(block_length))
            return np.broadcast_to(seen, (tokens, tokens))

        return geometry

    return _method("geometry", make)


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


def _rope(change: Callable[[Array, Array, Array, Any], Array]) -> Planter:
    """Replace RoPE; `change(heads, positions, frequencies, config)`."""

    def rotate(heads: Array, config: Any) -> Array:
        half = config.rotary_dim // 2
        return change(heads, np.arange(len(heads)), config.rope_theta ** (-np.arange(half) / half), config)

    return _function("rotate", lambda _model, _original: rotate)


def _interleave(heads: Array, positions: Array, frequencies: Array, config: Any) -> Array:
    half = len(frequencies)
    order = np.concatenate([np.arange(0, 2 * half, 2), np.arange(1, 2 * half, 2)])
    turned = heads.copy()
    turned[..., order] = _turn(heads[..., order], positions, frequencies)
    return turned


def _norms(change: Callable[[str, Array, Callable[[Array], Array]], Array]) -> Planter:
    """Replace norms; `change(name, values, norm)`."""
    return _method(
        "_norm", lambda _model, norm: lambda values, name: change(name, values, lambda other: norm(other, name))
    )


def _is_layer_norm(name: str) -> bool:
    return name.endswith(("input_layernorm", "post_attention_layernorm"))


def _softmax(change: Callable[[Any, Any, Array], Array]) -> Planter:
    """Replace the attention's softmax; `change(model, softmax, scores)`, masked scores being -inf."""
    return _function("softmax", lambda model, softmax: lambda scores: change(model, softmax, scores))


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


def _routes(choose: Callable[[Any, Array, Array, Any], tuple[Array, Array]]) -> Planter:
    """Replace the router; `choose(route, logits, bias, config)`."""
    return _function("route", lambda _model, route: lambda logits, bias, config: choose(route, logits, bias, config))


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


def _mix(change: Callable[[Any, Array, Array, Array], tuple[Array, Array]], *, backwards: bool = False) -> Planter:
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

    return _method("_mix_experts", make)


def _rerouted(model: Any, logits: Array, ids: Array, weights: Array) -> tuple[Array, Array]:
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    ids = np.sort(np.argsort(-shares, axis=1, kind="stable")[:, : ids.shape[1]], axis=1)
    weights = np.take_along_axis(shares, ids, axis=1)
    return ids, weights / weights.sum(axis=1, keepdims=True) * model.config.routed_scaling_factor


def _shared(change: Callable[[Array], Array]) -> Planter:
    def make(_model: Any, original: Any) -> Any:
        def feed_forward(hidden: Array, name: str) -> Array:
            output = original(hidden, name)
            return change(output) if name.endswith("shared_experts") else output

        return feed_forward

    return _method("_feed_forward", make)


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


def _shard_missing(name: str, _read: Any, values: Array) -> Array:
    number = name.partition(".experts.")[2].partition(".")[0]
    return np.zeros_like(values) if number and int(number) >= 28 and "down_proj" in name else values


def _exchange_gate_up(name: str, read: Any, values: Array) -> Array:
    return read(_rename(name, "gate_proj", "up_proj")) if ".experts." in name and "down" not in name else values


def _exchange_norms(name: str, read: Any, values: Array) -> Array:
    layer_norm = "input_layernorm" in name or "post_attention_layernorm" in name
    return read(_rename(name, "input_layernorm", "post_attention_layernorm")) if layer_norm else values


def _swap_qk(name: str, read: Any, values: Array) -> Array:
    return (
        read(_rename(name, "query_layernorm", "key_layernorm"))
        if "query_layer" in name or "key_layer" in name
        else values
    )


def _plus_one(name: str, _read: Any, values: Array) -> Array:
    return values + 1 if _is_layer_norm(name.removesuffix(".weight")) or name == "model.norm.weight" else values


def _exchange_attention(name: str, read: Any, values: Array) -> Array:
    """Exchange the attention of tiny-llada2's last two layers."""
    moved = ".layers.2.attention." in name or ".layers.3.attention." in name
    return read(_rename(name, ".layers.2.", ".layers.3.")) if moved else values


def _scale_embeddings(name: str, _read: Any, values: Array) -> Array:
    return values * np.sqrt(values.shape[1]) if name == "model.word_embeddings.weight" else values


def _head(change: Callable[[Callable[[str], Array], Array], Array]) -> Planter:
    return _weights(lambda name, read, values: change(read, values) if name == "lm_head.weight" else values)


def _shift_logits(_model: Any, forward: Any) -> Any:
    def shifted(ids: Any, *, on_tensor: Any = None, **options: Any) -> Array:
        def report(name: str, value: Array) -> None:
            if on_tensor is not None:
                on_tensor(name, np.roll(value, 1, axis=0) if name == "logits" else value)

        return np.roll(forward(ids, on_tensor=report, **options), 1, axis=0)

    return shifted


def _decode(change: Callable[[Any, dict[str, Any]], dict[str, Any]]) -> Planter:
    """Decode with other options; `change(model, options)` returns those that differ."""
    return _method(
        "decode", lambda model, decode: lambda ids, **options: decode(ids, **options | change(model, options))
    )


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
    "embeddings-scaled": _weights(_scale_embeddings),
    "layers-attention-exchanged": _weights(_exchange_attention),
    "mask-causal": _mask(lambda q, k, length: k <= q),
    "mask-bidirectional": _mask(lambda q, k, length: k > -1),
    "mask-block-doubled": _mask(lambda q, k, length: k // (2 * length) <= q // (2 * length)),
    "mask-block-halved": _mask(lambda q, k, length: k // (length // 2) <= q // (length // 2)),
    "mask-blocks-from-the-end": _mask(_from_the_end),
    "mask-own-block-hidden": _mask(lambda q, k, length: (k // length < q // length) | (k == q)),
    "mask-prefix-hidden": _mask(lambda q, k, length: k // length == q // length),
    "mask-window": _mask(lambda q, k, length: (k // length <= q // length) & (q - k < 24)),
    "rope-interleaved": _rope(_interleave),
    "rope-whole-head": _config(partial_rotary_factor=1.0),
    "rope-default-theta": _config(rope_theta=10_000.0),
    "rope-positions-restart": _rope(lambda heads, at, turns, config: _turn(heads, at % config.block_length, turns)),
    "rope-frequencies-rounded": _rope(lambda heads, at, turns, config: _turn(heads, at, _bfloat16(turns))),
    "rope-reversed": _rope(lambda heads, at, turns, config: _turn(heads, at, turns, sign=-1)),
    "rope-offset": _rope(lambda heads, at, turns, config: _turn(heads, at + 1, turns)),
    "qk_norm-dropped": _norms(
        lambda name, values, norm: values if name.endswith(("query_layernorm", "key_layernorm")) else norm(values)
    ),
    "qk_norm-queries-bare": _norms(
        lambda name, values, norm: values if name.endswith("query_layernorm") else norm(values)
    ),
    "qk_norm-swapped": _weights(_swap_qk),
    "kv_cache-one-slot-off": _softmax(_one_slot_off),
    "kv_cache-softmaxes-summed": _softmax(_summed),
    "routing-softmax": _routes(_softmax_scores),
    "routing-no-groups": _routes(
        lambda route, logits, bias, config: route(logits, bias, replace(config, topk_group=config.n_group))
    ),
    "routing-group-by-best": _routes(_group_by_best),
    "routing-bias-ignored": _routes(lambda route, logits, bias, config: route(logits, 0 * bias, config)),
    "routing-bias-in-weights": _routes(_bias_in_weights),
    "routing-bias-before-sigmoid": _routes(lambda route, logits, bias, config: route(logits + bias, 0 * bias, config)),
    "routing-not-normalised": _config(norm_topk_prob=False),
    "routing-one-expert-fewer": _routes(_one_fewer),
    "routing-best-skipped": _routes(_best_skipped),
    "experts-neighbours-exchanged": _mix(lambda model, logits, ids, weights: (ids ^ 1, weights)),
    "experts-weights-misplaced": _mix(lambda model, logits, ids, weights: (ids, np.roll(weights, 1, axis=1))),
    "experts-rerouted": _mix(_rerouted),
    "experts-gate-up-exchanged": _weights(_exchange_gate_up),
    "experts-gelu": _method("_feed_forward", _gelu),
    "experts-shard-missing": _weights(_shard_missing),
    "shared_expert-dropped": _shared(lambda output: 0 * output),
    "shared_expert-doubled": _shared(lambda output: 2 * output),
    "shared_expert-scaled": _shared(lambda output: 2.5 * output),
    "shared_expert-last-token-skipped": _shared(_last_skipped),
    "scaling-attention-dropped": _softmax(lambda model, softmax, scores: softmax(scores * model.config.head_dim**0.5)),
    "scaling-attention-by-width": _softmax(
        lambda model, softmax, scores: softmax(scores * model.config.num_attention_heads**-0.5)
    ),
    "scaling-routed-dropped": _mix(
        lambda model, logits, ids, weights: (ids, weights / model.config.routed_scaling_factor)
    ),
    "scaling-routed-twice": _mix(
        lambda model, logits, ids, weights: (ids, weights * model.config.routed_scaling_factor)
    ),
    "norms-other-eps": _config(rms_norm_eps=1e-5),
    "norms-plus-one": _weights(_plus_one),
    "norms-exchanged": _weights(_exchange_norms),
    "norms-centred": _norms(
        lambda name, values, norm: (
            norm(values - values.mean(-1, keepdims=True)) if _is_layer_norm(name) else norm(values)
        )
    ),
    "norms-final-dropped": _norms(lambda name, values, norm: values if name == "norm" else norm(values)),
    "dtype-router-rounded": _routes(lambda route, logits, bias, config: route(_bfloat16(logits), bias, config)),
    "dtype-router-bias-rounded": _routes(lambda route, logits, bias, config: route(logits, _bfloat16(bias), config)),
    "head-tied": _head(lambda read, values: read("model.word_embeddings.weight")),
    "head-shifted": _method("forward", _shift_logits),
    "head-one-row-off": _head(lambda read, values: np.roll(values, 1, axis=0)),
    "head-rescaled": _head(lambda read, values: 0.5 * values),
    "sampler-low-threshold": _decode(lambda model, options: {"threshold": 0.01}),
    "sampler-wrong-mask-id": _decode(lambda model, options: {"mask_id": 1}),
    "sampler-two-a-pass": _decode(lambda model, options: {"steps": _length(model, options) // 2}),
    "sampler-leftmost": _leftmost,
    "sampler-at-least": _decode(lambda model, options: {"accept": "ge"}),
    "decoding-eos-ignored": _decode(lambda model, options: {"eos_id": -1}),
    "decoding-half-blocks": _decode(lambda model, options: {"block_length": _length(model, options) // 2}),
    "variant-repeat": lambda _engine: nullcontext(),
    "variant-running-softmax": _softmax(_running),
    "variant-experts-reversed": _mix(lambda model, logits, ids, weights: (ids, weights), backwards=True),
    "variant-wide-norms": _norms(lambda name, values, norm: _wide(values, norm)),
}
"""Context managers by the fault's name."""
