"""LLaDA2.0-mini's exact configuration with fewer layers and random weights: real vocabulary, head sizes and experts.

Weights are drawn, rounded to bfloat16 and written some rows at a time, so that building takes little memory. There is
no tokenizer: a spec gives token ids.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

SHIPPED = Path(__file__).parent / "tiny_llada2"
LAYERS = 2

MINI: dict[str, Any] = {
    "eos_token_id": 156892,
    "pad_token_id": 156892,
    "mask_token_id": 156895,
    "block_length": 32,
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "moe_intermediate_size": 512,
    "moe_shared_expert_intermediate_size": 512,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "rotary_dim": 64,
    "partial_rotary_factor": 0.5,
    "rope_theta": 600000.0,
    "rms_norm_eps": 1e-6,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "num_shared_experts": 1,
    "n_group": 8,
    "topk_group": 4,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
    "max_position_embeddings": 32768,
    "vocab_size": 157184,
}
"""What mini states otherwise than tiny-llada2, whose keys are the same; the number of layers is ours."""

Draw = tuple[str, tuple[int, ...], float, float]
"""A tensor: its name, shape, standard deviation and mean."""


def build_mini(folder: Path) -> None:
    """Write the checkpoint: one dense layer, and one with 256 experts."""
    write_config(folder, MINI)
    draws = list(list_tensors(MINI, LAYERS))
    largest = 1 << 30
    shards: list[list[Draw]] = [[]]
    for draw in draws:
        if shards[-1] and sum(count_bytes(shape) for _, shape, _, _ in [*shards[-1], draw]) > largest:
            shards.append([])
        shards[-1].append(draw)
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        write_shard(folder / name, shard)
    index = {
        "metadata": {"total_size": sum(count_bytes(shape) for _, shape, _, _ in draws)},
        "weight_map": {draw[0]: name for name, shard in zip(names, shards, strict=True) for draw in shard},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def build_unscaled_mini(folder: Path) -> None:
    """Write the same with a `routed_scaling_factor` of 1.0, on the same bytes where the file system can share them."""
    from specrunner.catalogue.recipes import find_recipe
    from specrunner.models.recipes import build_recipe

    source = build_recipe(find_recipe("llada2-mini-2layer"))
    for file in source.glob("*.safetensors*"):
        try:
            os.link(file, folder / file.name)
        except OSError:
            shutil.copyfile(file, folder / file.name)
    write_config(folder, MINI | {"routed_scaling_factor": 1.0})


def write_config(folder: Path, changes: dict[str, Any]) -> None:
    """Write `config.json` and the modeling files that tiny-llada2 has."""
    config = json.loads((SHIPPED / "config.json").read_text(encoding="utf-8"))
    config |= changes | {"num_hidden_layers": LAYERS, "max_window_layers": LAYERS}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for name in ("configuration_llada2_moe.py", "modeling_llada2_moe.py"):
        shutil.copyfile(SHIPPED / name, folder / name)


def list_tensors(config: dict[str, Any], layers: int) -> Iterator[Draw]:
    """Yield every tensor of a LLaDA2 checkpoint, in model order.

    The scales keep activations near 1, let the router choose clearly but not always the same experts, and give
    distributions that are neither flat nor spikes. Norms are not 1 and the router's bias is not 0, so that a norm or a
    bias which is left out shows.
    """
    hidden, head = config["hidden_size"], config["head_dim"]
    heads, kv_heads, experts = config["num_attention_heads"], config["num_key_value_heads"], config["num_experts"]

    def linear(name: str, rows: int, columns: int, gain: float = 1.0) -> Draw:
        return f"{name}.weight", (rows, columns), gain * columns**-0.5, 0.0

    def norm(name: str, size: int) -> Draw:
        return f"{name}.weight", (size,), 0.2, 1.0

    def feed_forward(name: str, width: int) -> Iterator[Draw]:
        yield linear(f"{name}.gate_proj", width, hidden)
        yield linear(f"{name}.up_proj", width, hidden)
        yield linear(f"{name}.down_proj", hidden, width, gain=2.0)

    yield "model.word_embeddings.weight", (config["vocab_size"], hidden), 1.0, 0.0
    for index in range(layers):
        layer = f"model.layers.{index}"
        yield norm(f"{layer}.input_layernorm", hidden)
        yield linear(f"{layer}.attention.query_key_value", (heads + 2 * kv_heads) * head, hidden)
        yield norm(f"{layer}.attention.query_layernorm", head)
        yield norm(f"{layer}.attention.key_layernorm", head)
        yield linear(f"{layer}.attention.dense", hidden, heads * head)
        yield norm(f"{layer}.post_attention_layernorm", hidden)
        if index < config["first_k_dense_replace"]:
            yield from feed_forward(f"{layer}.mlp", config["intermediate_size"])
            continue
        yield linear(f"{layer}.mlp.gate", experts, hidden, gain=1.5)
        yield f"{layer}.mlp.gate.expert_bias", (experts,), 0.05, 0.0
        yield from feed_forward(f"{layer}.mlp.shared_experts", config["moe_shared_expert_intermediate_size"])
        for expert in range(experts):
            yield from feed_forward(f"{layer}.mlp.experts.{expert}", config["moe_intermediate_size"])
    yield norm("model.norm", hidden)
    yield linear("lm_head", config["vocab_size"], hidden, gain=3.0)


def count_bytes(shape: tuple[int, ...]) -> int:
    """Return what a tensor takes in bfloat16."""
    size = 2
    for extent in shape:
        size *= extent
    return size


def write_shard(file: Path, draws: list[Draw]) -> None:
    """Write a safetensors file in bfloat16, tensor by tensor: eight bytes of length, a JSON header, the tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape, _, _ in draws:
        offsets = [position, position + count_bytes(shape)]
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": offsets}
        position = offsets[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as target:
        target.write(struct.pack("<Q", len(text)) + text)
        for draw in draws:
            for part in draw_rows(draw):
                target.write(part.tobytes())


def draw_rows(draw: Draw, values: int = 1 << 24) -> Iterator[np.ndarray]:
    """Yield a tensor's values as the upper halves of float32, some rows at a time.

    Args:
        draw: the tensor. Every tensor has its own seed, made from its name.
        values: at most so many at once.
    """
    import numpy as np

    name, shape, scale, center = draw
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    width = shape[-1]
    rows = shape[0] if len(shape) > 1 else 1
    step = max(1, values // width)
    for start in range(0, rows, step):
        part = generator.standard_normal((min(step, rows - start), width), dtype=np.float32)
        bits = (part * np.float32(scale) + np.float32(center)).view(np.uint32)
        # To the nearest value of bfloat16, ties to even.
        bits += np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        yield (bits >> np.uint32(16)).astype("<u2")
