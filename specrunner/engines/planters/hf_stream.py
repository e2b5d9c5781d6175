"""Faults of `hf` in the norms, the residual stream, the precision of products, and the head."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.nn import functional

from specrunner.engines.planters.hf_parts import (
    change_method,
    change_modules,
    change_weights,
    find_model,
    layers,
    linears,
)
from specrunner.engines.planters.patching import Planter, all_of, replaced

Tensor = torch.Tensor


def _other_eps(engine: Any) -> Any:
    norms = [module for module in find_model(engine).modules() if type(module).__name__.endswith("RMSNorm")]
    return all_of(replaced(norm, "eps", 1e-5) for norm in norms)


def _layer_norms(model: Any) -> list[Any]:
    return [norm for layer in layers(model) for norm in (layer.input_layernorm, layer.post_attention_layernorm)]


def _plus_one(model: Any) -> Iterable[tuple[Any, Tensor]]:
    for norm in [*_layer_norms(model), model.model.norm]:
        yield norm.weight, norm.weight.data + 1


def _exchanged(model: Any) -> Iterable[tuple[Any, Tensor]]:
    for layer in layers(model):
        first, second = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        yield first, second.data
        yield second, first.data


def _centred(norm: Any, original: Any) -> Any:
    return lambda hidden: original(hidden - hidden.mean(-1, keepdim=True))


def _rounded_norm(_original: Any) -> Any:
    def forward(self: Any, hidden: Tensor) -> Tensor:
        low = hidden.bfloat16()
        mean = low.square().cumsum(-1)[..., -1:] / low.shape[-1]
        result: Tensor = self.weight * (low * (mean + self.eps).rsqrt()).to(hidden.dtype)
        return result

    return forward


def _normed_residual(_original: Any) -> Any:
    def forward(self: Any, hidden: Tensor, mask: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        normed = self.input_layernorm(hidden)
        hidden = normed + self.attention(normed, mask, cos, sin)
        result: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return result

    return forward


def _rounded_residual(original: Any) -> Any:
    def forward(self: Any, hidden: Tensor, *rest: Any) -> Tensor:
        result: Tensor = original(self, hidden.bfloat16().to(hidden.dtype), *rest)
        return result

    return forward


def _tf32(values: Tensor) -> Tensor:
    """Round float32 to the ten bits of mantissa that TF32 keeps."""
    bits = values.float().contiguous().view(torch.int32)
    return ((bits + 0x1000) & -0x2000).view(torch.float32).to(values.dtype)


def _ten_bits(module: Any, _original: Any) -> Any:
    return lambda hidden: functional.linear(_tf32(hidden), _tf32(module.weight.data), module.bias)


def _no_residual(_original: Any) -> Any:
    def forward(self: Any, hidden: Tensor, mask: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        hidden = hidden + self.attention(self.input_layernorm(hidden), mask, cos, sin)
        result: Tensor = self.mlp(self.post_attention_layernorm(hidden))
        return result

    return forward


def _attention_exchanged(engine: Any) -> Any:
    one, other = (layer.attention for layer in list(layers(find_model(engine)))[-2:])
    return all_of([replaced(one, "forward", other.forward), replaced(other, "forward", one.forward)])


def _scaled_embeddings(module: Any, original: Any) -> Any:
    return lambda ids: original(ids) * module.embedding_dim**0.5


def _head(make: Any) -> Planter:
    return change_modules(lambda model: [model.lm_head], make)


PLANTERS: dict[str, Planter] = {
    "embeddings-scaled": change_modules(lambda model: [model.model.word_embeddings], _scaled_embeddings),
    "layers-residual-dropped": change_method("LLaDA2MoeDecoderLayer", "forward", _no_residual),
    "layers-attention-exchanged": _attention_exchanged,
    "norms-other-eps": _other_eps,
    "norms-plus-one": change_weights(_plus_one),
    "norms-exchanged": change_weights(_exchanged),
    "norms-centred": change_modules(_layer_norms, _centred),
    "norms-final-dropped": change_modules(lambda model: [model.model.norm], lambda _module, _original: lambda x: x),
    "norms-residual-after": change_method("LLaDA2MoeDecoderLayer", "forward", _normed_residual),
    "dtype-norm-rounded": change_method("LLaDA2MoeRMSNorm", "forward", _rounded_norm),
    "dtype-residual-rounded": change_method("LLaDA2MoeDecoderLayer", "forward", _rounded_residual),
    "dtype-ten-bits": change_modules(linears, _ten_bits),
    "head-tied": change_weights(lambda model: [(model.lm_head.weight, model.model.word_embeddings.weight.data)]),
    "head-shifted": _head(lambda _module, original: lambda hidden: original(hidden).roll(1, -2)),
    "head-one-row-off": _head(lambda _module, original: lambda hidden: original(hidden).roll(1, -1)),
    "head-rescaled": _head(lambda _module, original: lambda hidden: original(hidden) * 0.5),
}
"""Context managers by the fault's name."""
