"""Faults of `hf` in mask, RoPE, the norms of queries and keys, keys and values, and the attention's scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from specrunner.engines.planters.hf_parts import (
    change_code,
    change_modules,
    change_weights,
    find_code,
    find_model,
    layers,
)
from specrunner.engines.planters.patching import Planter, all_of, replaced

Tensor = torch.Tensor


def _mask(see: Callable[[Tensor, Tensor, int], Tensor]) -> Planter:
    """Replace the geometry; `see(queries, keys, block_length)` gets positions [..., T, 1] and [..., 1, T]."""

    def make(_code: Any, _original: Any) -> Any:
        def mask(positions: Tensor, block_length: int) -> Tensor:
            queries, keys = positions[:, None, :, None], positions[:, None, None, :]
            return see(queries, keys, block_length).expand(-1, 1, positions.shape[1], positions.shape[1])

        return mask

    return change_code("block_causal_mask", make)


def _blocks(queries: Tensor, keys: Tensor, length: int) -> Tensor:
    return keys // length <= queries // length


def _from_the_end(queries: Tensor, keys: Tensor, length: int) -> Tensor:
    shift = -queries.shape[-2] % length
    return _blocks(queries + shift, keys + shift, length)


MASKS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "mask-causal": lambda q, k, length: k <= q,
    "mask-bidirectional": lambda q, k, length: k < k + 1 + 0 * q,
    "mask-block-doubled": lambda q, k, length: _blocks(q, k, 2 * length),
    "mask-block-halved": lambda q, k, length: _blocks(q, k, length // 2),
    "mask-blocks-from-the-end": _from_the_end,
    "mask-own-block-hidden": lambda q, k, length: (k // length < q // length) | (k == q),
    "mask-prefix-hidden": lambda q, k, length: k // length == q // length,
    "mask-window": lambda q, k, length: _blocks(q, k, length) & (q - k < 24),
}


def _zero_one(_code: Any, _original: Any) -> Any:
    return lambda mask, dtype: mask.to(dtype)


def _angles(change: Callable[[Any, Tensor], tuple[Tensor, Tensor]]) -> Planter:
    """Replace the rotary embedding; `change(module, positions)` returns angles [B, 1, T, half]."""

    def make(module: Any, _original: Any) -> Any:
        def forward(positions: Tensor) -> tuple[Tensor, Tensor]:
            return change(module, positions)

        return forward

    return change_modules(lambda model: [model.model.rotary_emb], make)


def _turn(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    angles = positions[:, None, :, None].float() * frequencies.to(positions.device)
    return angles.cos(), angles.sin()


def _frequencies(module: Any, theta: float | None = None, dimensions: int | None = None) -> Tensor:
    size = dimensions or module.rotary_dim
    return (theta or module.theta) ** -(torch.arange(0, size, 2, dtype=torch.float32) / size)


def _positions_restart(engine: Any) -> Any:
    length = find_model(engine).config.block_length
    return _angles(lambda module, at: _turn(at % length, _frequencies(module)))(engine)


def _interleave(_code: Any, _original: Any) -> Any:
    def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        cos, sin, half = cos.to(states.dtype), sin.to(states.dtype), cos.shape[-1]
        first, second, rest = states[..., : 2 * half : 2], states[..., 1 : 2 * half : 2], states[..., 2 * half :]
        turned = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1).flatten(-2)
        return torch.cat([turned, rest], dim=-1)

    return rotate


def _whole_head(engine: Any) -> Any:
    model = find_model(engine)
    return replaced(model.model.rotary_emb, "rotary_dim", model.config.head_dim)


def _attention(
    prepare: Callable[[Any, Any, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
) -> Planter:
    """Replace the order of norm and RoPE; `prepare(code, module, query, key, cos, sin)` gets [B, T, heads, D]."""

    def plant(engine: Any) -> Any:
        code = find_code(engine)

        def forward(self: Any, hidden: Tensor, mask: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            batch, tokens, _ = hidden.shape
            fused = self.query_key_value(hidden).view(batch, tokens, -1, self.head_dim)
            query, key, value = fused.split([self.heads, self.kv_heads, self.kv_heads], dim=2)
            query, key = prepare(code, self, query, key, cos, sin)
            attend = code.ATTENTION[self.config._attn_implementation]
            context = attend(query, key, value.transpose(1, 2), mask, self.head_dim**-0.5)
            result: Tensor = self.dense(context.transpose(1, 2).reshape(batch, tokens, self.heads * self.head_dim))
            return result

        return replaced(code.LLaDA2MoeAttention, "forward", forward)

    return plant


def _norm_after_rope(code: Any, module: Any, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> Any:
    query, key = code.rotate(query.transpose(1, 2), cos, sin), code.rotate(key.transpose(1, 2), cos, sin)
    # the norm's own output is what a hook sees, in the layout in which it sees it otherwise
    query, key = module.query_layernorm(query.transpose(1, 2)), module.key_layernorm(key.transpose(1, 2))
    return query.transpose(1, 2), key.transpose(1, 2)


def _keys_unrotated(code: Any, module: Any, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> Any:
    query = code.rotate(module.query_layernorm(query).transpose(1, 2), cos, sin)
    return query, module.key_layernorm(key).transpose(1, 2)


def _swap_norms(model: Any) -> Any:
    for layer in layers(model):
        query, key = layer.attention.query_layernorm.weight, layer.attention.key_layernorm.weight
        yield query, key.data
        yield key, query.data


def replace_attention(change: Callable[[Any, Tensor, Tensor, Tensor, Tensor, float, int], Tensor]) -> Planter:
    """Replace the attention itself; `change(attend, query, key, value, mask, scale, block_length)`."""

    def plant(engine: Any) -> Any:
        code, length = find_code(engine), find_model(engine).config.block_length

        def wrap(attend: Any) -> Any:
            return lambda query, key, value, mask, scale: change(attend, query, key, value, mask, scale, length)

        return replaced(code, "ATTENTION", {name: wrap(attend) for name, attend in code.ATTENTION.items()})

    return plant


def _one_slot_off(attend: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, length: int) -> Tensor:
    result: Tensor = attend(q, k, torch.cat([v[:, :, :1], v[:, :, :-1]], dim=2), mask, scale)
    return result


def _first_page_twice(attend: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, length: int) -> Tensor:
    if k.shape[2] >= 2 * length:
        k, v = (torch.cat([x[:, :, :length], x[:, :, :length], x[:, :, 2 * length :]], dim=2) for x in (k, v))
    result: Tensor = attend(q, k, v, mask, scale)
    return result


def _first_page_lost(attend: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, length: int) -> Tensor:
    mask = mask.expand(-1, -1, q.shape[2], -1).clone()
    mask[..., 2 * length :, :length] = float("-inf")
    result: Tensor = attend(q, k, v, mask, scale)
    return result


def _eight_bits(attend: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, length: int) -> Tensor:
    k, v = (x.to(torch.float8_e4m3fn).to(x.dtype) for x in (k, v))
    result: Tensor = attend(q, k, v, mask, scale)
    return result


def _heads_in_turn(attend: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, length: int) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    result: Tensor = attend(q, k.repeat(1, groups, 1, 1), v.repeat(1, groups, 1, 1), mask, scale)
    return result


def _softmaxes_summed(attend: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, length: int) -> Tensor:
    block = torch.arange(q.shape[2], device=q.device) // length
    own = (block[:, None] == block[None, :]) & (mask > float("-inf"))
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = (q @ k.transpose(-1, -2)).float() * scale + mask.float()
    parts = [scores.masked_fill(~own, float("-inf")), scores.masked_fill(own, float("-inf"))]
    return sum(part.softmax(-1).nan_to_num().to(v.dtype) @ v for part in parts)  # type: ignore[return-value]


def _low_softmax(attend: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, length: int) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = (q @ k.transpose(-1, -2) * scale + mask.to(q.dtype)).bfloat16()
    powers = (scores - scores.amax(-1, keepdim=True)).exp()
    return (powers / powers.cumsum(-1)[..., -1:]).to(v.dtype) @ v


def _rescale(factor: Callable[[Tensor], float]) -> Planter:
    return replace_attention(lambda attend, q, k, v, mask, scale, length: attend(q, k, v, mask, scale * factor(q)))


def _norms(name: str) -> Any:
    return lambda model: [getattr(layer.attention, name) for layer in layers(model)]


def _both_norms_off(engine: Any) -> Any:
    return all_of(change_modules(_norms(name), _identity)(engine) for name in ("query_layernorm", "key_layernorm"))


def _identity(_module: Any, _original: Any) -> Any:
    return lambda hidden: hidden


PLANTERS: dict[str, Planter] = {
    **{name: _mask(see) for name, see in MASKS.items()},
    "mask-zero-one": change_code("additive_mask", _zero_one),
    "rope-interleaved": change_code("rotate", _interleave),
    "rope-whole-head": _whole_head,
    "rope-default-theta": _angles(lambda module, at: _turn(at, _frequencies(module, theta=10_000.0))),
    "rope-positions-restart": _positions_restart,
    "rope-frequencies-rounded": _angles(lambda module, at: _turn(at, _frequencies(module).bfloat16().float())),
    "rope-reversed": change_code("rotate", lambda code, rotate: lambda states, cos, sin: rotate(states, cos, -sin)),
    "rope-keys-unrotated": _attention(_keys_unrotated),
    "rope-offset": _angles(lambda module, at: _turn(at + 1, _frequencies(module))),
    "qk_norm-dropped": _both_norms_off,
    "qk_norm-queries-bare": change_modules(_norms("query_layernorm"), _identity),
    "qk_norm-swapped": change_weights(_swap_norms),
    "qk_norm-after-rope": _attention(_norm_after_rope),
    "kv_cache-one-slot-off": replace_attention(_one_slot_off),
    "kv_cache-first-page-twice": replace_attention(_first_page_twice),
    "kv_cache-first-page-lost": replace_attention(_first_page_lost),
    "kv_cache-eight-bits": replace_attention(_eight_bits),
    "kv_cache-heads-in-turn": replace_attention(_heads_in_turn),
    "kv_cache-softmaxes-summed": replace_attention(_softmaxes_summed),
    "scaling-attention-dropped": _rescale(lambda q: q.shape[-1] ** 0.5),
    "scaling-attention-by-width": _rescale(lambda q: q.shape[1] ** -0.5),
    "dtype-softmax-rounded": replace_attention(_low_softmax),
}
"""Context managers by the fault's name."""
