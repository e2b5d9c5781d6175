"""LLaDA2.0 in plain numpy float64: the oracle that engines are held against.

Written from the published facts of the model, to be read beside them. It shares no code with the Hugging Face
modeling file of the tiny checkpoint: the two are independent readings of one specification.
Letters in shapes: T tokens, H hidden, E experts, K experts per token, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from specrunner.models.checkpoint import Checkpoint
from specrunner.models.llada2_config import LLaDA2Config
from specrunner.models.llada2_decoding import DenoisingPass, Sampler, decode_blocks

Array = NDArray[Any]
Attention = Literal["block_causal", "causal", "bidirectional"]
OnTensor = Callable[[str, Array], None]


class LLaDA2:
    """A LLaDA2 checkpoint, computed in float64.

    Args:
        config: the architecture.
        weights: the checkpoint's tensors, read when they are needed.
    """

    def __init__(self, config: LLaDA2Config, weights: Checkpoint) -> None:
        self.config = config
        self.weights = weights

    @classmethod
    def load(cls, path: Path, *, cache_bytes: int = 2 << 30) -> LLaDA2:
        """Open a checkpoint directory.

        Args:
            path: holds `config.json` and safetensors weights, in one file or in shards.
            cache_bytes: memory for weights already decoded to float64.

        Raises:
            ModelUnavailable: a file or a config key is missing.
            ModelUnsupported: the config asks for something that the oracle does not compute.
        """
        return cls(LLaDA2Config.read(Path(path) / "config.json"), Checkpoint(Path(path), cache_bytes))

    def forward(
        self,
        token_ids: Sequence[int],
        *,
        mask: Array | None = None,
        block_length: int | None = None,
        attention: Attention = "block_causal",
        on_tensor: OnTensor | None = None,
        lead: Mapping[str, Array] | None = None,
    ) -> Array:
        """Compute the logits of one sequence, at absolute positions from 0.

        Args:
            token_ids: T token ids, masks included.
            mask: bool [T queries, T keys], True where the query sees the key; in place of `attention`.
            block_length: tokens per block, the config's when None.
            attention: which geometry to use without a mask.
            on_tensor: called with each tensor's name and value, in model order (see `specrunner.spec.tensor_names`).
            lead: tensors of another engine by name: what it has of `embeddings`, `layers.{i}.output` and `final_norm`
                feeds the next module in place of our own, and `router.expert_ids` with `router.expert_weights` are
                taken in place of our own choice.

        Returns:
            float64 [T, V]. Row t predicts position t itself: there is no shift.

        Raises:
            ValueError: no tokens, too many, an id outside the vocabulary, or a mask of another shape.
        """
        report, lead = on_tensor or (lambda name, value: None), lead or {}
        ids = self._check_ids(token_ids)
        visible = self.geometry(len(ids), attention, block_length) if mask is None else np.asarray(mask, dtype=bool)
        if visible.shape != (len(ids), len(ids)):
            raise ValueError(f"the mask has the shape {visible.shape}, not {(len(ids), len(ids))}")
        size = self.config.hidden_size
        stream = self.weights.read("model.word_embeddings.weight", [self.config.vocab_size, size])[ids]
        report("embeddings", stream)
        stream = lead.get("embeddings", stream)
        for layer in range(self.config.num_hidden_layers):
            normed = self._norm(stream, f"layers.{layer}.input_layernorm")
            stream = stream + self._attend(layer, normed, visible, report)
            normed = self._norm(stream, f"layers.{layer}.post_attention_layernorm")
            if layer < self.config.first_k_dense_replace:
                change = self._feed_forward(normed, f"model.layers.{layer}.mlp")
            else:
                change = self._mix_experts(layer, normed, report, lead)
            report(f"layers.{layer}.mlp.output", change)
            stream = stream + change
            report(f"layers.{layer}.output", stream)
            stream = lead.get(f"layers.{layer}.output", stream)
        final = self._norm(stream, "norm")
        report("final_norm", final)
        final = lead.get("final_norm", final)
        logits: Array = final @ self.weights.read("lm_head.weight", [self.config.vocab_size, size]).T
        report("logits", logits)
        return logits

    def decode(
        self,
        token_ids: Sequence[int],
        *,
        max_new_tokens: int,
        block_length: int | None = None,
        threshold: float = 0.95,
        steps: int | None = None,
        mask_id: int | None = None,
        eos_id: int | None = None,
        accept: Literal["gt", "ge"] = "gt",
        may_predict_mask: bool = True,
        fallback: Literal["schedule", "best", "near_best"] = "schedule",
        eos_early_stop: bool = False,
        on_pass: Callable[[DenoisingPass], None] | None = None,
    ) -> list[int]:
        """Decode by block diffusion at temperature 0 (see `decode_blocks` for the rules).

        Args:
            token_ids: the prompt.
            max_new_tokens: upper bound on what is returned.
            block_length: tokens per block, the config's when None.
            threshold: probability above which a masked position is filled.
            steps: passes per block at most, `block_length` when None.
            mask_id: the mask's token id, the config's when None.
            eos_id: the end of sequence, the config's when None.
            accept: whether the threshold is compared with `>` (Hugging Face, SGLang) or `>=`.
            may_predict_mask: whether the mask id may be predicted, as Hugging Face and SGLang allow.
            fallback: what a pass fills when too few positions are above the threshold (see `Sampler`).
            eos_early_stop: whether to stop within a block, as soon as all before an end of sequence is filled.
            on_pass: called after each forward pass of a block.

        Returns:
            The new tokens, up to and including the first end of sequence.
        """
        length = self._block_length(block_length)
        mask_id = self.config.mask_token_id if mask_id is None else mask_id
        if mask_id is None:
            raise ValueError("the config does not state mask_token_id: pass mask_id")
        sampler = Sampler(
            block_length=length,
            threshold=threshold,
            steps=length if steps is None else steps,
            mask_id=mask_id,
            eos_id=self.config.eos_token_id if eos_id is None else eos_id,
            accept=accept,
            may_predict_mask=may_predict_mask,
            fallback=fallback,
            eos_early_stop=eos_early_stop,
        )

        def predict(ids: list[int]) -> Array:
            return self.forward(ids, block_length=length)[-length:]

        return decode_blocks(predict, list(token_ids), max_new_tokens, sampler, on_pass)

    def geometry(self, tokens: int, attention: Attention, block_length: int | None = None) -> Array:
        """Return the attention mask, bool [queries, keys]: q sees k iff floor(k / L) <= floor(q / L) (block-causal)."""
        position = np.arange(tokens)
        if attention == "bidirectional":
            return np.ones((tokens, tokens), dtype=bool)
        if attention == "causal":
            return position[None, :] <= position[:, None]
        if attention == "block_causal":
            block = position // self._block_length(block_length)
            return block[None, :] <= block[:, None]
        raise ValueError(f"attention must be block_causal, causal or bidirectional, not {attention!r}")

    def _attend(self, layer: int, hidden: Array, visible: Array, report: OnTensor) -> Array:
        """Grouped-query attention of one layer; `hidden` is the normed stream [T, H], the result [T, H]."""
        config, tokens, name = self.config, len(hidden), f"layers.{layer}.attention"
        heads, kv_heads, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        rows = (heads + 2 * kv_heads) * size
        projected = hidden @ self.weights.read(f"model.{name}.query_key_value.weight", [rows, config.hidden_size]).T
        queries, keys, values = np.split(projected, [heads * size, (heads + kv_heads) * size], axis=1)
        queries = self._norm(queries.reshape(tokens, heads, size), f"{name}.query_layernorm")
        keys = self._norm(keys.reshape(tokens, kv_heads, size), f"{name}.key_layernorm")
        report(f"{name}.query", queries.reshape(tokens, -1))
        report(f"{name}.key", keys.reshape(tokens, -1))
        report(f"{name}.value", values)
        queries, keys = rotate(queries, config), rotate(keys, config)
        values = values.reshape(tokens, kv_heads, size)
        context = np.empty((tokens, heads, size))
        for head in range(heads):
            shared = head // (heads // kv_heads)  # consecutive query heads share one key-value head
            scores = queries[:, head] @ keys[:, shared].T / np.sqrt(size)
            context[:, head] = softmax(np.where(visible, scores, -np.inf)) @ values[:, shared]
        dense = self.weights.read(f"model.{name}.dense.weight", [config.hidden_size, heads * size])
        output: Array = context.reshape(tokens, -1) @ dense.T
        report(f"{name}.output", output)
        return output

    def _mix_experts(self, layer: int, hidden: Array, report: OnTensor, lead: Mapping[str, Array]) -> Array:
        """The mixture of experts of one layer, [T, H] to [T, H]."""
        config, name = self.config, f"model.layers.{layer}.mlp"
        logits = hidden @ self.weights.read(f"{name}.gate.weight", [config.num_experts, config.hidden_size]).T
        bias = self.read_router_bias(layer)
        routes = [route(row, bias, config) for row in logits]
        expert_ids = np.stack([ids for ids, _ in routes])
        expert_weights = np.stack([weights for _, weights in routes])
        report(f"layers.{layer}.router.logits", logits)
        report(f"layers.{layer}.router.expert_ids", expert_ids)
        report(f"layers.{layer}.router.expert_weights", expert_weights)
        if f"layers.{layer}.router.expert_ids" in lead:
            expert_ids = lead[f"layers.{layer}.router.expert_ids"]
            expert_weights = lead[f"layers.{layer}.router.expert_weights"]
        mixed = np.zeros_like(hidden)
        for expert in np.unique(expert_ids):
            tokens, slots = np.nonzero(expert_ids == expert)
            output = self._feed_forward(hidden[tokens], f"{name}.experts.{expert}")
            mixed[tokens] += expert_weights[tokens, slots][:, None] * output
        return mixed + self._feed_forward(hidden, f"{name}.shared_experts")

    def read_router_bias(self, layer: int) -> Array:
        """Return what a layer's router adds to its scores for the choice alone, float64 [E]."""
        return self.weights.read(f"model.layers.{layer}.mlp.gate.expert_bias", [self.config.num_experts])

    def _feed_forward(self, hidden: Array, name: str) -> Array:
        """SwiGLU: down(silu(gate(x)) * up(x))."""
        size = self.config.hidden_size
        gate = hidden @ self.weights.read(f"{name}.gate_proj.weight", [None, size]).T
        up = hidden @ self.weights.read(f"{name}.up_proj.weight", [None, size]).T
        output: Array = (gate * sigmoid(gate) * up) @ self.weights.read(f"{name}.down_proj.weight", [size, None]).T
        return output

    def _norm(self, values: Array, name: str) -> Array:
        """RMSNorm over the last axis."""
        weight = self.weights.read(f"model.{name}.weight", [values.shape[-1]])
        normed: Array = values / np.sqrt(np.mean(values**2, axis=-1, keepdims=True) + self.config.rms_norm_eps) * weight
        return normed

    def _block_length(self, block_length: int | None) -> int:
        length = self.config.block_length if block_length is None else block_length
        if length is None:
            raise ValueError("the config does not state block_length: pass it")
        if length < 1:
            raise ValueError(f"block_length must be 1 or more, not {length}")
        return length

    def _check_ids(self, token_ids: Sequence[int]) -> Array:
        ids = np.asarray(token_ids, dtype=np.int64)
        if ids.ndim != 1 or not len(ids):
            raise ValueError("token_ids must be one sequence of at least one token")
        if len(ids) > self.config.max_position_embeddings:
            raise ValueError(f"{len(ids)} tokens exceed max_position_embeddings {self.config.max_position_embeddings}")
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            raise ValueError(f"a token id lies outside the vocabulary of {self.config.vocab_size}")
        return ids


def route(logits: Array, bias: Array, config: LLaDA2Config) -> tuple[Array, Array]:
    """Choose one token's experts.

    Args:
        logits: [E], the router's logits.
        bias: [E], added to the scores for the choice alone.
        config: the architecture.

    Returns:
        int64 [K] expert ids, ascending, and float64 [K] weights in the same order. Equal scores: the lower id wins.
    """
    scores = sigmoid(logits)
    biased = scores + bias
    groups = biased.reshape(config.n_group, -1)
    group_scores = np.sort(groups, axis=1)[:, -2:].sum(axis=1)
    kept = np.argsort(-group_scores, kind="stable")[: config.topk_group]
    allowed = np.full_like(groups, -np.inf)
    allowed[kept] = groups[kept]
    chosen = np.sort(np.argsort(-allowed.ravel(), kind="stable")[: config.num_experts_per_tok])
    weights = scores[chosen]
    if config.norm_topk_prob:
        weights = weights / (weights.sum() + 1e-20)
    return chosen, weights * config.routed_scaling_factor


def rotate(heads: Array, config: LLaDA2Config) -> Array:
    """Apply RoPE to [T, heads, head_dim]: in the rotary part, dimension i turns with dimension i + half of it."""
    half = config.rotary_dim // 2
    frequency = config.rope_theta ** (-np.arange(half) / half)
    angle = (np.arange(len(heads))[:, None] * frequency)[:, None, :]
    turned = heads.copy()
    left, right = heads[..., :half], heads[..., half : 2 * half]
    turned[..., :half] = left * np.cos(angle) - right * np.sin(angle)
    turned[..., half : 2 * half] = left * np.sin(angle) + right * np.cos(angle)
    return turned


def sigmoid(values: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * values))


def softmax(scores: Array) -> Array:
    """Softmax over the last axis; -inf becomes 0."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares: Array = powers / powers.sum(axis=-1, keepdims=True)
    return shares
