"""The configuration of LLaDA2.0, a block-diffusion mixture-of-experts language model."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

STATED = (
    "block_length",
    "first_k_dense_replace",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "mask_token_id",
    "max_position_embeddings",
    "moe_intermediate_size",
    "moe_router_enable_expert_bias",
    "moe_shared_expert_intermediate_size",
    "n_group",
    "norm_topk_prob",
    "num_attention_heads",
    "num_experts",
    "num_experts_per_tok",
    "num_hidden_layers",
    "num_key_value_heads",
    "num_shared_experts",
    "partial_rotary_factor",
    "rms_norm_eps",
    "rope_theta",
    "routed_scaling_factor",
    "router_dtype",
    "score_function",
    "topk_group",
    "use_bias",
    "use_qk_norm",
    "use_qkv_bias",
    "vocab_size",
)
"""The keys that the model reads. None has a default: implementations disagree, so a dropped key must be loud."""


class LLaDA2MoeConfig(PretrainedConfig):
    """LLaDA2.0's configuration; every key of `STATED` must be in `config.json`.

    Args:
        stated: the keys of `STATED`, and any other key of `config.json`, kept as it is.
    """

    model_type = "llada2_moe"
    keys_to_ignore_at_inference = ("past_key_values",)

    def __init__(self, **stated: Any) -> None:
        for key in STATED:
            setattr(self, key, stated.pop(key, None))
        if stated.pop("rope_scaling", None) is not None:
            raise ValueError("rope_scaling is not supported: LLaDA2.0 uses plain RoPE")
        stated.pop("rope_parameters", None)
        self.rope_parameters = {
            "rope_type": "default",
            "rope_theta": self.rope_theta,
            "partial_rotary_factor": self.partial_rotary_factor,
        }
        super().__init__(**stated)

    def require_stated(self) -> None:
        """Check that the model can be built from this configuration.

        Raises:
            ValueError: a key is missing, or has a value that this implementation does not compute.
        """
        missing = [key for key in STATED if getattr(self, key) is None]
        if missing:
            raise ValueError(f"config.json does not state {', '.join(missing)}")
        fixed = {
            "hidden_act": "silu",
            "score_function": "sigmoid",
            "router_dtype": "fp32",
            "norm_topk_prob": True,
            "moe_router_enable_expert_bias": True,
            "use_qk_norm": True,
            "use_bias": False,
            "use_qkv_bias": False,
        }
        wrong = [f"{key}={getattr(self, key)!r}" for key, value in fixed.items() if getattr(self, key) != value]
        if wrong:
            raise ValueError(f"not supported: {', '.join(wrong)}")
