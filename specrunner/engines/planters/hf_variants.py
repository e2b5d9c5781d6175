"""Legitimate ways for `hf` to compute the same: other orders of summation, shapes and kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.nn import functional

from specrunner.engines.planters.hf_attention import replace_attention
from specrunner.engines.planters.hf_parts import change_code, change_method, change_modules, find_model, linears
from specrunner.engines.planters.patching import Planter, all_of, replaced

Tensor = torch.Tensor
Linear = Callable[[Any, Tensor], Tensor]

OTHER_ROWS, CHUNK = 5, 16
"""Rows of another request in the batch; tokens that a chunked prefill takes at once."""


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _linear(compute: Linear) -> Planter:
    return change_modules(linears, lambda module, _original: lambda hidden: compute(module, hidden))


def _in_a_batch(module: Any, hidden: Tensor) -> Tensor:
    rows = hidden.reshape(-1, hidden.shape[-1])
    others = rows.flip(0).repeat(OTHER_ROWS, 1)[: OTHER_ROWS * max(1, len(rows) // 2) + 3]
    together = functional.linear(torch.cat([others, rows]), module.weight)
    return together[len(others) :].view(*hidden.shape[:-1], -1)


def _in_chunks(module: Any, hidden: Tensor) -> Tensor:
    parts = hidden.split(CHUNK, dim=-2)
    return torch.cat([functional.linear(part.contiguous(), module.weight) for part in parts], dim=-2)


def _row_by_row(module: Any, hidden: Tensor) -> Tensor:
    rows = hidden.reshape(-1, hidden.shape[-1])
    return torch.stack([module.weight @ row for row in rows]).view(*hidden.shape[:-1], -1)


def _inputs_in_halves(module: Any, hidden: Tensor) -> Tensor:
    half = hidden.shape[-1] // 2
    left, right = module.weight[:, :half], module.weight[:, half:]
    return functional.linear(hidden[..., :half], left) + functional.linear(hidden[..., half:], right)


def _inputs_in_halves_wide(module: Any, hidden: Tensor) -> Tensor:
    half, wide, weight = hidden.shape[-1] // 2, hidden.float(), module.weight.float()
    parts = [functional.linear(wide[..., rows], weight[:, rows]) for rows in (slice(half, None), slice(half))]
    return (parts[0] + parts[1]).to(hidden.dtype)


def _outputs_in_parts(module: Any, hidden: Tensor) -> Tensor:
    return torch.cat([functional.linear(hidden, part) for part in module.weight.chunk(4)], dim=-1)


def _other_kernel(engine: Any) -> Any:
    config = find_model(engine).config
    other = {"sdpa": "eager", "eager": "sdpa"}[config._attn_implementation]
    return replaced(config, "_attn_implementation_internal", other)


def _padded_keys(attend: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, length: int) -> Tensor:
    mask = functional.pad(mask.expand(-1, -1, q.shape[2], -1), (3, 4), value=float("-inf"))
    result: Tensor = attend(q, functional.pad(k, (0, 0, 3, 4)), functional.pad(v, (0, 0, 3, 4)), mask, scale)
    return result


def _queries_in_chunks(attend: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, length: int) -> Tensor:
    mask = mask.expand(-1, -1, q.shape[2], -1)
    parts = zip(q.split(CHUNK, dim=2), mask.split(CHUNK, dim=2), strict=True)
    return torch.cat([attend(part, k, v, rows, scale) for part, rows in parts], dim=2)


def _running_softmax(attend: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, length: int) -> Tensor:
    """Attend page after page with a running maximum and sum (Dao et al., FlashAttention, algorithm 1)."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    mask = mask.expand(-1, -1, q.shape[2], -1).float()
    largest = mask.new_full((*q.shape[:-1], 1), -1e30)
    total, context = torch.zeros_like(largest), mask.new_zeros(q.shape)
    for page in range(0, k.shape[2], CHUNK):
        keys = slice(page, page + CHUNK)
        scores = (q @ k[:, :, keys].transpose(-1, -2)).float() * scale + mask[..., keys]
        new = torch.maximum(largest, scores.amax(-1, keepdim=True))
        powers, shrink = (scores - new).exp(), (largest - new).exp()
        total = total * shrink + powers.sum(-1, keepdim=True)
        context = context * shrink + (powers.to(v.dtype) @ v[:, :, keys]).float()
        largest = new
    result: Tensor = (context / total).to(v.dtype)
    return result


def _experts_reversed(_original: Any) -> Any:
    def run_experts(self: Any, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        total = torch.zeros_like(hidden, dtype=torch.float32)
        for number in reversed(range(len(self.experts))):
            tokens, slots = (ids == number).nonzero(as_tuple=True)
            if len(tokens):
                total[tokens] += self.experts[number](hidden[tokens]).float() * weights[tokens, slots][:, None]
        return total.to(hidden.dtype)

    return run_experts


def _all_experts(_original: Any) -> Any:
    def run_experts(self: Any, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        shares = weights.new_zeros(len(hidden), len(self.experts)).scatter(1, ids, weights)
        outputs = torch.stack([expert(hidden) for expert in self.experts], dim=1)
        return torch.einsum("te,teh->th", shares, outputs.float()).to(hidden.dtype)

    return run_experts


def _wide_norm(_original: Any) -> Any:
    def forward(self: Any, hidden: Tensor) -> Tensor:
        wide = hidden.float()
        wide = wide / (wide.square().mean(-1, keepdim=True) + self.eps).sqrt()
        normed: Tensor = (self.weight.float() * wide).to(hidden.dtype)
        return normed

    return forward


def _wide_rotation(_code: Any, rotate: Any) -> Any:
    return lambda states, cos, sin: rotate(states.float(), cos, sin).to(states.dtype)


def _fused_gate_up(_original: Any) -> Any:
    def forward(self: Any, hidden: Tensor) -> Tensor:
        weight = torch.cat([self.gate_proj.weight, self.up_proj.weight])
        gate, up = functional.linear(hidden, weight).chunk(2, dim=-1)
        result: Tensor = self.down_proj(functional.silu(gate) * up)
        return result

    return forward


def _wide_attention(attend: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, length: int) -> Tensor:
    result: Tensor = attend(q.float(), k.float(), v.float(), mask.float(), scale)
    return result.to(v.dtype)


def _scaled_queries(attend: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, length: int) -> Tensor:
    result: Tensor = attend(q * (scale * 1.44), k, v, mask, 1 / 1.44)  # kernels fold log2(e) in, and take exp2
    return result


def _narrow_sum(_original: Any) -> Any:
    def run_experts(self: Any, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        total = torch.zeros_like(hidden)
        for number, expert in enumerate(self.experts):
            tokens, slots = (ids == number).nonzero(as_tuple=True)
            if len(tokens):
                total[tokens] += (expert(hidden[tokens]).float() * weights[tokens, slots][:, None]).to(hidden.dtype)
        return total

    return run_experts


def _wide_activation(_original: Any) -> Any:
    def forward(self: Any, hidden: Tensor) -> Tensor:
        gate, up = self.gate_proj(hidden).float(), self.up_proj(hidden).float()
        result: Tensor = self.down_proj((functional.silu(gate) * up).to(hidden.dtype))
        return result

    return forward


def _wide_mixture(_original: Any) -> Any:
    def forward(self: Any, hidden: Tensor) -> Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])
        ids, weights, _ = self.gate(flat)
        total = self.shared_experts(flat).float()
        for slot in range(ids.shape[-1]):
            rows = [self.experts[int(number)](row[None]) for number, row in zip(ids[:, slot], flat, strict=True)]
            total = total + torch.cat(rows).float() * weights[:, slot, None]
        mixed: Tensor = total.to(hidden.dtype).view(hidden.shape)
        return mixed

    return forward


def _chunked(engine: Any) -> Any:
    return all_of([_linear(_in_chunks)(engine), replace_attention(_queries_in_chunks)(engine)])


PLANTERS: dict[str, Planter] = {
    "variant-repeat": lambda _engine: nullcontext(),
    "variant-threads": lambda _engine: _threads(3),
    "variant-batched": _linear(_in_a_batch),
    "variant-padded": replace_attention(_padded_keys),
    "variant-chunked-prefill": _chunked,
    "variant-row-by-row": _linear(_row_by_row),
    "variant-other-attention": _other_kernel,
    "variant-running-softmax": replace_attention(_running_softmax),
    "variant-row-parallel": _linear(_inputs_in_halves),
    "variant-split-sums": _linear(_inputs_in_halves_wide),
    "variant-column-parallel": _linear(_outputs_in_parts),
    "variant-experts-reversed": change_method("LLaDA2MoeSparseMoeBlock", "run_experts", _experts_reversed),
    "variant-all-experts": change_method("LLaDA2MoeSparseMoeBlock", "run_experts", _all_experts),
    "variant-fused-gate-up": change_method("LLaDA2MoeMLP", "forward", _fused_gate_up),
    "variant-narrow-sum": change_method("LLaDA2MoeSparseMoeBlock", "run_experts", _narrow_sum),
    "variant-wide-activation": change_method("LLaDA2MoeMLP", "forward", _wide_activation),
    "variant-wide-mixture": change_method("LLaDA2MoeSparseMoeBlock", "forward", _wide_mixture),
    "variant-wide-attention": replace_attention(_wide_attention),
    "variant-scaled-queries": replace_attention(_scaled_queries),
    "variant-wide-norms": change_method("LLaDA2MoeRMSNorm", "forward", _wide_norm),
    "variant-wide-rope": change_code("rotate", _wide_rotation),
}
"""Context managers by the variant's name."""
