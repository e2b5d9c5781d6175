"""Tiny checkpoints with random weights: mixtures of experts in the layouts that engines load from the hub.

Norms are not 1, biases are not 0, and projections are scaled so that activations stay near 1, routers choose clearly
but not always the same experts, and next-token distributions are neither flat nor spikes. The values are those of
bfloat16, as in published checkpoints: then two dtypes differ by their arithmetic alone.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

HIDDEN = 128
HEADS = 4
KV_HEADS = 2
HEAD_DIM = 32
DENSE_WIDTH = 256
EXPERT_WIDTH = 64
VOCABULARY = 512
EOS = 256
LAYERS = 3

COMMON: dict[str, Any] = {
    "attention_dropout": 0.0,
    "bos_token_id": EOS,
    "dtype": "float32",
    "eos_token_id": EOS,
    "head_dim": HEAD_DIM,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "initializer_range": 0.02,
    "max_position_embeddings": 2048,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": KV_HEADS,
    "output_router_logits": False,
    "pad_token_id": EOS,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": VOCABULARY,
}
"""Config keys that all of them share; each builder adds its own."""


class Weights:
    """The growing state of a checkpoint. Every tensor has its own seed, made from its name."""

    def __init__(self) -> None:
        self.state: dict[str, np.ndarray] = {}

    def normal(self, name: str, *shape: int, scale: float = 1.0, center: float = 0.0) -> None:
        """Add a tensor of normal numbers with standard deviation `scale` around `center`."""
        import numpy as np

        draw = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
        self.state[name] = round_to_bfloat16((center + scale * draw).astype(np.float32))

    def linear(self, name: str, rows: int, columns: int, gain: float = 1.0) -> None:
        """Add a projection [rows, columns] whose outputs have `gain` times the size of its inputs."""
        self.normal(f"{name}.weight", rows, columns, scale=gain * columns**-0.5)

    def norm(self, name: str, size: int) -> None:
        """Add a norm's weight, near 1."""
        self.normal(f"{name}.weight", size, scale=0.2, center=1.0)

    def frame(self) -> None:
        """Add embeddings, final norm and head."""
        self.normal("model.embed_tokens.weight", VOCABULARY, HIDDEN)
        self.norm("model.norm", HIDDEN)
        self.linear("lm_head", VOCABULARY, HIDDEN, gain=3.0)

    def attention(self, layer: str, bias: bool = False) -> None:
        """Add one layer's norms and attention projections."""
        self.norm(f"{layer}.input_layernorm", HIDDEN)
        self.norm(f"{layer}.post_attention_layernorm", HIDDEN)
        for name, rows in (("q", HEADS * HEAD_DIM), ("k", KV_HEADS * HEAD_DIM), ("v", KV_HEADS * HEAD_DIM)):
            self.linear(f"{layer}.self_attn.{name}_proj", rows, HIDDEN)
            if bias:
                self.normal(f"{layer}.self_attn.{name}_proj.bias", rows, scale=0.1)
        self.linear(f"{layer}.self_attn.o_proj", HIDDEN, HEADS * HEAD_DIM)
        if bias:
            self.normal(f"{layer}.self_attn.o_proj.bias", HIDDEN, scale=0.1)

    def feed_forward(self, module: str, width: int, names: tuple[str, str, str]) -> None:
        """Add a gated feed-forward network; `names` are those of gate, up and down."""
        gate, up, down = names
        self.linear(f"{module}.{gate}", width, HIDDEN)
        self.linear(f"{module}.{up}", width, HIDDEN)
        self.linear(f"{module}.{down}", HIDDEN, width, gain=2.0)


PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def round_to_bfloat16(array: np.ndarray) -> np.ndarray:
    """Round float32 values to the nearest that bfloat16 has, ties to even; the dtype stays float32."""
    import numpy as np

    bits = array.view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)


def build_qwen3_moe(folder: Path) -> None:
    """Write a Qwen3-MoE: 16 experts, 4 a token, weights normalised, a norm per head on queries and keys."""
    experts = 16
    weights = Weights()
    weights.frame()
    for index in range(LAYERS):
        layer = f"model.layers.{index}"
        weights.attention(layer)
        weights.norm(f"{layer}.self_attn.q_norm", HEAD_DIM)
        weights.norm(f"{layer}.self_attn.k_norm", HEAD_DIM)
        weights.linear(f"{layer}.mlp.gate", experts, HIDDEN, gain=1.5)
        for expert in range(experts):
            weights.feed_forward(f"{layer}.mlp.experts.{expert}", EXPERT_WIDTH, PROJECTIONS)
    config = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "intermediate_size": DENSE_WIDTH,
        "mlp_only_layers": [],
        "model_type": "qwen3_moe",
        "moe_intermediate_size": EXPERT_WIDTH,
        "norm_topk_prob": True,
        "num_experts": experts,
        "num_experts_per_tok": 4,
        "rope_theta": 1e6,
        "sliding_window": None,
        "use_sliding_window": False,
    }
    write_checkpoint(folder, config, weights)


def build_mixtral(folder: Path) -> None:
    """Write a Mixtral: 8 experts, 2 a token."""
    experts = 8
    weights = Weights()
    weights.frame()
    for index in range(LAYERS):
        layer = f"model.layers.{index}"
        weights.attention(layer)
        weights.linear(f"{layer}.block_sparse_moe.gate", experts, HIDDEN, gain=1.5)
        for expert in range(experts):
            weights.feed_forward(f"{layer}.block_sparse_moe.experts.{expert}", EXPERT_WIDTH, ("w1", "w3", "w2"))
    config = {
        "architectures": ["MixtralForCausalLM"],
        "intermediate_size": EXPERT_WIDTH,
        "model_type": "mixtral",
        "num_experts_per_tok": 2,
        "num_local_experts": experts,
        "rope_theta": 1e6,
        "router_jitter_noise": 0.0,
        "sliding_window": None,
    }
    write_checkpoint(folder, config, weights)


def build_ernie4_5_moe(folder: Path) -> None:
    """Write an ERNIE 4.5 MoE: the first layer dense, 16 experts, 4 a token, one shared, a large router bias."""
    experts = 16
    weights = Weights()
    weights.frame()
    for index in range(LAYERS):
        layer = f"model.layers.{index}"
        weights.attention(layer)
        if index == 0:
            weights.feed_forward(f"{layer}.mlp", DENSE_WIDTH, PROJECTIONS)
            continue
        weights.linear(f"{layer}.mlp.gate", experts, HIDDEN, gain=1.5)
        weights.normal(f"{layer}.mlp.moe_statics.e_score_correction_bias", 1, experts, scale=1.0 / experts)
        weights.feed_forward(f"{layer}.mlp.shared_experts", EXPERT_WIDTH, PROJECTIONS)
        for expert in range(experts):
            weights.feed_forward(f"{layer}.mlp.experts.{expert}", EXPERT_WIDTH, PROJECTIONS)
    config = {
        "architectures": ["Ernie4_5_MoeForCausalLM"],
        "intermediate_size": DENSE_WIDTH,
        "model_type": "ernie4_5_moe",
        "moe_intermediate_size": EXPERT_WIDTH,
        "moe_k": 4,
        "moe_layer_end_index": LAYERS - 1,
        "moe_layer_interval": 1,
        "moe_layer_start_index": 1,
        "moe_norm_min": 1e-12,
        "moe_num_experts": experts,
        "moe_num_shared_experts": 1,
        "rope_theta": 5e5,
        "use_bias": False,
    }
    write_checkpoint(folder, config, weights)


GPT_OSS_LAYER_TYPES = ("full_attention", "sliding_attention", "sliding_attention", "full_attention")


def build_gpt_oss(folder: Path) -> None:
    """Write a gpt-oss: 8 experts, 2 a token, attention sinks, windows of 16 tokens in the two middle layers.

    Experts are stored as it publishes them without quantisation: [experts, inputs, outputs], gate and up interleaved.
    """
    experts = 8
    weights = Weights()
    weights.frame()
    for index in range(len(GPT_OSS_LAYER_TYPES)):
        layer = f"model.layers.{index}"
        weights.attention(layer, bias=True)
        weights.normal(f"{layer}.self_attn.sinks", HEADS)
        weights.linear(f"{layer}.mlp.router", experts, HIDDEN, gain=1.5)
        weights.normal(f"{layer}.mlp.router.bias", experts, scale=0.5)
        gate_up = (experts, HIDDEN, 2 * EXPERT_WIDTH)
        weights.normal(f"{layer}.mlp.experts.gate_up_proj", *gate_up, scale=HIDDEN**-0.5)
        weights.normal(f"{layer}.mlp.experts.gate_up_proj_bias", experts, 2 * EXPERT_WIDTH, scale=0.1)
        weights.normal(f"{layer}.mlp.experts.down_proj", experts, EXPERT_WIDTH, HIDDEN, scale=EXPERT_WIDTH**-0.5)
        weights.normal(f"{layer}.mlp.experts.down_proj_bias", experts, HIDDEN, scale=0.1)
    config = {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "initial_context_length": 64,
        "intermediate_size": EXPERT_WIDTH,
        "layer_types": list(GPT_OSS_LAYER_TYPES),
        "max_position_embeddings": 2048,
        "model_type": "gpt_oss",
        "num_experts_per_tok": 2,
        "num_hidden_layers": len(GPT_OSS_LAYER_TYPES),
        "num_local_experts": experts,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 64,
        },
        "rope_theta": 150000.0,
        "sliding_window": 16,
        "swiglu_limit": 7.0,
    }
    write_checkpoint(folder, config, weights)


def write_checkpoint(folder: Path, config: dict[str, Any], weights: Weights) -> None:
    """Write weights, config and a byte tokenizer (ids 0 to 255, 256 ends a text) into `folder`."""
    from safetensors.numpy import save_file

    save_file(weights.state, folder / "model.safetensors", metadata={"format": "pt"})
    write_byte_tokenizer(folder)
    text = json.dumps(dict(sorted((COMMON | config).items())), indent=2)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")


def write_byte_tokenizer(folder: Path) -> None:
    """Write a tokenizer whose tokens are bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    special |= dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<|endoftext|>")
    (folder / "tokenizer_config.json").write_text(json.dumps(special, indent=2) + "\n", encoding="utf-8")
