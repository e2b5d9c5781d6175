"""The tiny LLaDA2 checkpoint, loaded through both of its implementations."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import specrunner.models
from specrunner.models.llada2 import LLaDA2

TINY = Path(specrunner.models.__file__).parent / "tiny_llada2"


@pytest.fixture(scope="session")
def tiny() -> Path:
    return TINY


@pytest.fixture(scope="session")
def oracle() -> LLaDA2:
    return LLaDA2.load(TINY)


@pytest.fixture(scope="session")
def held_out() -> list[dict[str, Any]]:
    return json.loads((TINY / "held_out.json").read_text(encoding="utf-8"))["prompts"]


@pytest.fixture(scope="session")
def load_hf() -> Callable[..., Any]:
    """Load a checkpoint directory through its own modeling file, as a user would."""
    torch = pytest.importorskip("torch", reason="needs `pip install specrunner[hf]`")
    transformers = pytest.importorskip("transformers", reason="needs `pip install specrunner[hf]`")
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    loaded: dict[tuple[Any, ...], Any] = {}

    def load(path: Path = TINY, dtype: str = "float32", attention: str = "sdpa") -> Any:
        key = (path, dtype, attention)
        if key not in loaded:
            loaded[key] = transformers.AutoModelForCausalLM.from_pretrained(
                path, trust_remote_code=True, dtype=getattr(torch, dtype), attn_implementation=attention
            ).eval()
        return loaded[key]

    return load


@pytest.fixture(scope="session")
def capture_hf() -> Callable[..., dict[str, np.ndarray]]:
    """Run a loaded model once, and return every tensor by our names, as float64."""
    import torch

    def capture(model: Any, token_ids: Sequence[int], **options: Any) -> dict[str, np.ndarray]:
        tensors: dict[str, np.ndarray] = {}

        def keep(module: Any, name: str, pick: Callable[[Any], Any] = lambda output: output[0].flatten(1)) -> Any:
            def hook(_module: Any, _inputs: Any, output: Any) -> None:
                value = pick(output)
                tensors[name] = (value.double() if value.is_floating_point() else value).numpy(force=True).copy()

            return module.register_forward_hook(hook)

        width = model.config.num_key_value_heads * model.config.head_dim
        handles = [keep(model.model.word_embeddings, "embeddings")]
        for i, layer in enumerate(model.model.layers):
            attention, mlp = layer.attention, layer.mlp
            handles += [
                keep(attention.query_layernorm, f"layers.{i}.attention.query"),
                keep(attention.key_layernorm, f"layers.{i}.attention.key"),
                keep(attention.query_key_value, f"layers.{i}.attention.value", lambda out: out[0, :, -width:]),
                keep(attention.dense, f"layers.{i}.attention.output"),
                keep(mlp, f"layers.{i}.mlp.output"),
                keep(layer, f"layers.{i}.output"),
            ]
            if i >= model.config.first_k_dense_replace:
                for place, part in enumerate(("expert_ids", "expert_weights", "logits")):
                    handles.append(keep(mlp.gate, f"layers.{i}.router.{part}", lambda out, place=place: out[place]))
        handles += [keep(model.model.norm, "final_norm"), keep(model.lm_head, "logits")]
        try:
            with torch.no_grad():
                model(torch.tensor([list(token_ids)]), **options)
        finally:
            for handle in handles:
                handle.remove()
        return tensors

    return capture


@pytest.fixture(scope="session")
def capture_oracle(oracle: LLaDA2) -> Callable[..., dict[str, np.ndarray]]:
    """Run the oracle once, and return every tensor in model order."""

    def capture(token_ids: Sequence[int], **options: Any) -> dict[str, np.ndarray]:
        tensors: dict[str, np.ndarray] = {}
        oracle.forward(token_ids, on_tensor=tensors.__setitem__, **options)
        return tensors

    return capture
