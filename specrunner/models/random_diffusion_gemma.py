"""A tiny random DiffusionGemma: text alone is computed, and its vision tower is as small as the configuration allows.

Layout and weight names are those that Transformers writes: the decoder's weights, which the encoder shares, but for the
scalar that each of the encoder's layers has of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from specrunner.models.random_weights import (
    DENSE_WIDTH,
    EOS,
    EXPERT_WIDTH,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    PROJECTIONS,
    VOCABULARY,
    Weights,
    write_byte_tokenizer,
)

CANVAS_LENGTH = 16
EXPERTS = 16
GLOBAL_HEAD_DIM = 64
LAYER_TYPES = ("sliding_attention", "sliding_attention", "full_attention")
VISION = {"hidden_size": 32, "intermediate_size": 64, "heads": 2, "head_dim": 16, "patch": 16, "positions": 64}


def build_diffusion_gemma(folder: Path) -> None:
    """Write a DiffusionGemma: 3 layers, windows of 16 in the first two, 16 experts beside a dense path, 4 a token."""
    from safetensors.numpy import save_file

    weights = Weights()
    weights.normal("model.decoder.embed_tokens.weight", VOCABULARY, HIDDEN, scale=0.2)
    for index, kind in enumerate(LAYER_TYPES):
        _add_layer(weights, index, kind == "full_attention")
    weights.norm("model.decoder.norm", HIDDEN)
    weights.norm("model.decoder.self_conditioning.pre_norm", HIDDEN)
    weights.feed_forward("model.decoder.self_conditioning", DENSE_WIDTH, PROJECTIONS)
    _add_vision(weights)
    save_file(weights.state, folder / "model.safetensors", metadata={"format": "pt"})
    write_byte_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(_make_config(), indent=2) + "\n", encoding="utf-8")


def _add_layer(weights: Weights, index: int, is_global: bool) -> None:
    layer = f"model.decoder.layers.{index}"
    for side in ("model.encoder.language_model", "model.decoder"):
        weights.normal(f"{side}.layers.{index}.layer_scalar", 1, scale=0.1, center=1.0)
    for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
        weights.norm(f"{layer}.{name}_layernorm", HIDDEN)
    for name in ("post_feedforward_layernorm_1", "post_feedforward_layernorm_2", "pre_feedforward_layernorm_2"):
        weights.norm(f"{layer}.{name}", HIDDEN)
    head_dim, kv_heads = (GLOBAL_HEAD_DIM, 1) if is_global else (HEAD_DIM, KV_HEADS)
    attention = f"{layer}.self_attn"
    weights.linear(f"{attention}.q_proj", HEADS * head_dim, HIDDEN)
    weights.linear(f"{attention}.k_proj", kv_heads * head_dim, HIDDEN)
    if not is_global:  # where keys serve as values
        weights.linear(f"{attention}.v_proj", kv_heads * head_dim, HIDDEN)
    weights.linear(f"{attention}.o_proj", HIDDEN, HEADS * head_dim)
    weights.norm(f"{attention}.q_norm", head_dim)
    weights.norm(f"{attention}.k_norm", head_dim)
    weights.feed_forward(f"{layer}.mlp", DENSE_WIDTH, PROJECTIONS)
    weights.normal(f"{layer}.router.scale", HIDDEN, scale=0.2, center=1.0)
    weights.normal(f"{layer}.router.per_expert_scale", EXPERTS, scale=0.2, center=1.0)
    weights.linear(f"{layer}.router.proj", EXPERTS, HIDDEN, gain=12.0)
    weights.normal(f"{layer}.experts.gate_up_proj", EXPERTS, 2 * EXPERT_WIDTH, HIDDEN, scale=HIDDEN**-0.5)
    weights.normal(f"{layer}.experts.down_proj", EXPERTS, HIDDEN, EXPERT_WIDTH, scale=2 * EXPERT_WIDTH**-0.5)


def _add_vision(weights: Weights) -> None:
    """Add the tower that no case looks through: Transformers refuses a checkpoint without it."""
    hidden, inner = VISION["hidden_size"], VISION["intermediate_size"]
    tower = "model.encoder.vision_tower"
    weights.linear(f"{tower}.patch_embedder.input_proj", hidden, 3 * VISION["patch"] ** 2)
    weights.normal(f"{tower}.patch_embedder.position_embedding_table", 2, VISION["positions"], hidden)
    layer = f"{tower}.encoder.layers.0"
    for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
        weights.norm(f"{layer}.{name}_layernorm", hidden)
    for name in ("q", "k", "v", "o"):
        weights.linear(f"{layer}.self_attn.{name}_proj.linear", hidden, hidden)
    for name in ("q", "k"):
        weights.norm(f"{layer}.self_attn.{name}_norm", VISION["head_dim"])
    for name, rows, columns in (("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)):
        weights.linear(f"{layer}.mlp.{name}_proj.linear", rows, columns)
    weights.linear("model.encoder.embed_vision.embedding_projection", HIDDEN, hidden)


def _make_config() -> dict[str, Any]:
    text = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": EOS,
        "eos_token_id": EOS,
        "final_logit_softcapping": 30.0,
        "head_dim": HEAD_DIM,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": HIDDEN,
        "intermediate_size": DENSE_WIDTH,
        "layer_types": list(LAYER_TYPES),
        "max_position_embeddings": 2048,
        "model_type": "diffusion_gemma_text",
        "moe_intermediate_size": EXPERT_WIDTH,
        "num_attention_heads": HEADS,
        "num_experts": EXPERTS,
        "num_hidden_layers": len(LAYER_TYPES),
        "num_key_value_heads": KV_HEADS,
        "pad_token_id": EOS,
        "per_layer_config": {
            str(index): {"head_dim": GLOBAL_HEAD_DIM, "num_key_value_heads": 1}
            for index, kind in enumerate(LAYER_TYPES)
            if kind == "full_attention"
        },
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1e6, "rope_type": "proportional"},
            "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
        },
        "sliding_window": 16,
        "tie_word_embeddings": True,
        "top_k_experts": 4,
        "vocab_size": VOCABULARY,
    }
    vision = {
        "head_dim": VISION["head_dim"],
        "hidden_size": VISION["hidden_size"],
        "intermediate_size": VISION["intermediate_size"],
        "model_type": "gemma4_vision",
        "num_attention_heads": VISION["heads"],
        "num_hidden_layers": 1,
        "num_key_value_heads": VISION["heads"],
        "patch_size": VISION["patch"],
        "position_embedding_size": VISION["positions"],
    }
    return {
        "architectures": ["DiffusionGemmaForBlockDiffusion"],
        "boi_token_id": VOCABULARY - 3,
        "canvas_length": CANVAS_LENGTH,
        "dtype": "float32",
        "eoi_token_id": VOCABULARY - 2,
        "image_token_id": VOCABULARY - 1,
        "model_type": "diffusion_gemma",
        "text_config": text,
        "tie_word_embeddings": True,
        "vision_config": vision,
    }
