"""The LLaDA2 configuration as the oracle reads it: strictly, without a default."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from specrunner.errors import ModelUnavailable, ModelUnsupported

FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("llada2_moe",),
    "hidden_act": ("silu",),
    "score_function": ("sigmoid",),
    "moe_router_enable_expert_bias": (True,),
    "use_bias": (False,),
    "use_qkv_bias": (False,),
    "tie_word_embeddings": (False,),
    "rope_scaling": (None,),
}
"""Keys that must be stated with one of these values, since the oracle computes nothing else."""

FIXED_IF_STATED: dict[str, tuple[Any, ...]] = {
    "use_qk_norm": (True,),
    "use_rmsnorm": (True,),
    "norm_head": (False,),
    "use_sliding_window": (False,),
    "router_dtype": ("fp32",),
}
"""Keys that the published configs do not all state."""

OPTIONAL = ("block_length", "mask_token_id")
"""Keys of ours that the published configs lack; without them the caller has to pass the value."""


@dataclass(frozen=True, slots=True)
class LLaDA2Config:
    """What the computation depends on; the names are those of `config.json`.

    Attributes:
        head_dim: dimensions of one head.
        partial_rotary_factor: share of them that RoPE turns.
        first_k_dense_replace: number of leading layers without experts.
        n_group: groups the experts are divided into, consecutive and of equal size.
        topk_group: groups a token may choose from.
        norm_topk_prob: whether the chosen experts' scores are divided by their sum.
        routed_scaling_factor: what the routed experts' weights are multiplied with.
        eos_token_id: the end-of-sequence token.
        block_length: tokens of a diffusion block, or None when `config.json` does not state it.
        mask_token_id: the mask's token id, or None likewise.
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float
    partial_rotary_factor: float
    rms_norm_eps: float
    first_k_dense_replace: int
    num_experts: int
    num_experts_per_tok: int
    num_shared_experts: int
    n_group: int
    topk_group: int
    norm_topk_prob: bool
    routed_scaling_factor: float
    vocab_size: int
    max_position_embeddings: int
    eos_token_id: int
    block_length: int | None
    mask_token_id: int | None

    def __post_init__(self) -> None:
        """Check what must divide and what must fit."""
        if self.num_attention_heads % self.num_key_value_heads:
            raise ModelUnsupported("num_attention_heads is not a multiple of num_key_value_heads")
        if self.num_experts % self.n_group or self.num_experts // self.n_group < 2:
            raise ModelUnsupported(f"{self.num_experts} experts do not form {self.n_group} groups of two or more")
        if not 0 < self.topk_group <= self.n_group:
            raise ModelUnsupported(f"topk_group {self.topk_group} is not between 1 and n_group {self.n_group}")
        if not 0 < self.num_experts_per_tok <= self.topk_group * self.num_experts // self.n_group:
            raise ModelUnsupported(f"the kept groups do not have {self.num_experts_per_tok} experts for a token")
        if self.num_shared_experts < 1:
            raise ModelUnsupported("a LLaDA2 layer has at least one shared expert")
        if self.rotary_dim % 2:
            raise ModelUnsupported(f"RoPE cannot turn {self.rotary_dim} dimensions, an odd number")

    @property
    def rotary_dim(self) -> int:
        """Return how many leading dimensions of a head RoPE turns."""
        return int(self.head_dim * self.partial_rotary_factor)

    @classmethod
    def read(cls, path: Path) -> LLaDA2Config:
        """Read `config.json`.

        Args:
            path: the file.

        Raises:
            ModelUnavailable: the file is not there, is not JSON, or lacks a key. Defaults differ between
                implementations, so none is assumed here.
            ModelUnsupported: a key has a value that the oracle does not compute.
        """
        try:
            stated = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelUnavailable(f"cannot read {path}: {error}") from error
        required = [field.name for field in fields(cls) if field.name not in OPTIONAL]
        missing = sorted(key for key in (*required, *FIXED) if key not in stated)
        if missing:
            raise ModelUnavailable(f"{path} does not state {', '.join(missing)}")
        allowed = FIXED | {key: values for key, values in FIXED_IF_STATED.items() if key in stated}
        for key, values in allowed.items():
            if stated[key] not in values:
                raise ModelUnsupported(f"{key} is {stated[key]!r} in {path}; the oracle computes {values[0]!r} alone")
        config = cls(**{key: stated[key] for key in required}, **{key: stated.get(key) for key in OPTIONAL})
        if stated.get("rotary_dim", config.rotary_dim) != config.rotary_dim:
            raise ModelUnsupported(f"rotary_dim and partial_rotary_factor contradict each other in {path}")
        return config
