"""LLaDA2.0 for Hugging Face Transformers: the model and its block-diffusion decoding.

Written from the published facts of LLaDA2.0 (configs, model cards and the behaviour of its implementations), with the
hub's weight names and config keys. Shapes in the docstrings: B batch, T tokens, H hidden, E experts, K experts per
token, L block length, V vocabulary.

Over 400 lines, since Transformers loads a published checkpoint's model from one file, beside that of its configuration.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from .configuration_llada2_moe import LLaDA2MoeConfig


def block_causal_mask(positions: Tensor, block_length: int) -> Tensor:
    """Return who may see whom: a token sees its own block and every earlier one.

    Args:
        positions: [B, T] absolute positions from 0.
        block_length: tokens per block.

    Returns:
        bool [B, 1, T queries, T keys], True where the query may attend to the key.
    """
    block = positions // block_length
    return block[:, None, None, :] <= block[:, None, :, None]


def additive_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a 4-D attention mask into the form that is added to the scores: 0 where visible, -inf elsewhere.

    Args:
        mask: [B or 1, heads or 1, T, T]; bool or integer (true: visible), or floating point, already additive.
        dtype: the scores' dtype.

    Raises:
        ValueError: a floating-point mask with positive entries, which is a 0/1 mask in the wrong dtype.
    """
    if mask.is_floating_point():
        if bool((mask > 0).any()):
            raise ValueError("a floating-point attention mask is added to the scores: pass a 0/1 mask as bool")
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask.bool(), float("-inf"))


class LLaDA2MoeRMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the normed values, in the dtype and shape of `hidden`."""
        wide = hidden.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(hidden.dtype)


class LLaDA2MoeRotaryEmbedding(nn.Module):
    """Rotary angles for the first `partial_rotary_factor` of a head's dimensions.

    The frequencies are made anew in float32 at each call: a buffer would be rounded by `model.to(torch.bfloat16)`.
    """

    def __init__(self, config: LLaDA2MoeConfig) -> None:
        super().__init__()
        self.rotary_dim = int(config.head_dim * config.partial_rotary_factor)
        self.theta = config.rope_theta

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin, float32 [B, 1, T, rotary_dim / 2]."""
        exponent = torch.arange(0, self.rotary_dim, 2, dtype=torch.float32, device=positions.device) / self.rotary_dim
        angles = positions[:, None, :, None].float() * self.theta**-exponent
        return angles.cos(), angles.sin()


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the leading dimensions of `states` [B, heads, T, head_dim], dimension i with i + rotary_dim / 2."""
    half = cos.shape[-1]
    cos, sin = cos.to(states.dtype), sin.to(states.dtype)
    first, second, rest = states.split([half, half, states.shape[-1] - 2 * half], dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def attend_eager(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Compute attention step by step, the softmax in float32. `mask` is additive."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = (query @ key.transpose(-1, -2)).float() * scale + mask.float()
    return scores.softmax(-1).to(value.dtype) @ value


def attend_sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Compute attention with torch's fused kernel. `mask` is additive."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=True)


ATTENTION = {"eager": attend_eager, "sdpa": attend_sdpa}


class LLaDA2MoeAttention(nn.Module):
    """Grouped-query attention with a norm per head on queries and keys."""

    def __init__(self, config: LLaDA2MoeConfig) -> None:
        super().__init__()
        self.config = config
        self.head_dim = config.head_dim
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        fused = (self.heads + 2 * self.kv_heads) * self.head_dim
        self.query_key_value = nn.Linear(config.hidden_size, fused, bias=False)
        self.query_layernorm = LLaDA2MoeRMSNorm(self.head_dim, config.rms_norm_eps)
        self.key_layernorm = LLaDA2MoeRMSNorm(self.head_dim, config.rms_norm_eps)
        self.dense = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor, mask: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Attend over [B, T, H] under an additive mask, with the angles of the rotary embedding."""
        batch, tokens, _ = hidden.shape
        fused = self.query_key_value(hidden).view(batch, tokens, self.heads + 2 * self.kv_heads, self.head_dim)
        query, key, value = fused.split([self.heads, self.kv_heads, self.kv_heads], dim=2)
        query, key = self.query_layernorm(query), self.key_layernorm(key)
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        attend = ATTENTION[self.config._attn_implementation]
        context = attend(query, key, value, mask, self.head_dim**-0.5)
        return self.dense(context.transpose(1, 2).reshape(batch, tokens, self.heads * self.head_dim))


class LLaDA2MoeMLP(nn.Module):
    """A SwiGLU feed-forward network: the dense layers', an expert's or the shared expert's."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return down(silu(gate(x)) * up(x)), [..., H] to [..., H]."""
        return self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class LLaDA2MoeGate(nn.Module):
    """The router: sigmoid scores, experts chosen within the best groups; float32 whatever the model's dtype."""

    def __init__(self, config: LLaDA2MoeConfig) -> None:
        super().__init__()
        self.groups = config.n_group
        self.kept_groups = config.topk_group
        self.experts_per_token = config.num_experts_per_tok
        self.routed_scaling_factor = config.routed_scaling_factor
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        self.register_buffer("expert_bias", torch.zeros(config.num_experts, dtype=torch.float32))

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Route each token.

        Args:
            hidden: [tokens, H].

        Returns:
            expert ids, int64 [tokens, K], ascending within a token; their weights, float32 [tokens, K], normalised and
            scaled; the router's logits, float32 [tokens, E].
        """
        with torch.autocast(hidden.device.type, enabled=False):
            logits = F.linear(hidden.float(), self.weight.float())
        scores = logits.sigmoid()
        ranked = scores + self.expert_bias.float()
        grouped = ranked.unflatten(-1, (self.groups, -1))
        best_groups = grouped.topk(2, dim=-1).values.sum(-1).topk(self.kept_groups, dim=-1).indices
        dropped = torch.ones(grouped.shape[:-1], dtype=torch.bool, device=hidden.device).scatter(-1, best_groups, False)
        candidates = grouped.masked_fill(dropped[..., None], float("-inf")).flatten(-2)
        expert_ids = candidates.topk(self.experts_per_token, dim=-1).indices.sort(dim=-1).values
        weights = scores.gather(-1, expert_ids)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        weights = weights * self.routed_scaling_factor
        return expert_ids, weights, logits


class LLaDA2MoeSparseMoeBlock(nn.Module):
    """The mixture of experts: routed experts, summed in float32, and one shared expert that sees every token."""

    def __init__(self, config: LLaDA2MoeConfig) -> None:
        super().__init__()
        self.gate = LLaDA2MoeGate(config)
        self.experts = nn.ModuleList(
            LLaDA2MoeMLP(config.hidden_size, config.moe_intermediate_size) for _ in range(config.num_experts)
        )
        shared_size = config.moe_shared_expert_intermediate_size * config.num_shared_experts
        self.shared_experts = LLaDA2MoeMLP(config.hidden_size, shared_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """Mix the experts of each token, [B, T, H] to [B, T, H]."""
        flat = hidden.reshape(-1, hidden.shape[-1])
        expert_ids, weights, _ = self.gate(flat)
        routed = self.run_experts(flat, expert_ids, weights)
        return (routed + self.shared_experts(flat)).view(hidden.shape)

    def run_experts(self, hidden: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted sum of each token's experts, [tokens, H] in `hidden`'s dtype.

        The (token, expert) pairs are sorted by expert, so that each expert runs once, on all of its tokens.
        """
        order = expert_ids.flatten().argsort(stable=True)
        counts = expert_ids.flatten().bincount(minlength=len(self.experts)).tolist()
        inputs = hidden[order // expert_ids.shape[-1]].split(counts)
        pairs = zip(self.experts, inputs, strict=True)
        outputs = torch.cat([expert(rows) for expert, rows in pairs if len(rows)])
        outputs = outputs[order.argsort()].view(*expert_ids.shape, hidden.shape[-1])
        return (outputs.float() * weights[..., None]).sum(dim=-2).to(hidden.dtype)


class LLaDA2MoeDecoderLayer(nn.Module):
    """One pre-norm layer; the first `first_k_dense_replace` layers have a dense feed-forward network."""

    def __init__(self, config: LLaDA2MoeConfig, index: int) -> None:
        super().__init__()
        self.input_layernorm = LLaDA2MoeRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = LLaDA2MoeAttention(config)
        self.post_attention_layernorm = LLaDA2MoeRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp: nn.Module
        if index < config.first_k_dense_replace:
            self.mlp = LLaDA2MoeMLP(config.hidden_size, config.intermediate_size)
        else:
            self.mlp = LLaDA2MoeSparseMoeBlock(config)

    def forward(self, hidden: Tensor, mask: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return the residual stream after this layer, [B, T, H]."""
        hidden = hidden + self.attention(self.input_layernorm(hidden), mask, cos, sin)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class LLaDA2MoePreTrainedModel(PreTrainedModel):
    """What Transformers has to know to load LLaDA2.0."""

    config_class = LLaDA2MoeConfig
    base_model_prefix = "model"
    _no_split_modules = ("LLaDA2MoeDecoderLayer",)
    _supports_sdpa = True
    _keep_in_fp32_modules_strict = ("expert_bias",)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding | LLaDA2MoeGate):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, LLaDA2MoeRMSNorm):
            nn.init.ones_(module.weight)
        if isinstance(module, LLaDA2MoeGate):
            nn.init.zeros_(module.expert_bias)


class LLaDA2MoeModel(LLaDA2MoePreTrainedModel):
    """The stack of layers, from token ids to the final norm."""

    def __init__(self, config: LLaDA2MoeConfig) -> None:
        super().__init__(config)
        config.require_stated()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.rotary_emb = LLaDA2MoeRotaryEmbedding(config)
        self.layers = nn.ModuleList(LLaDA2MoeDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = LLaDA2MoeRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the token embeddings."""
        return self.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embeddings."""
        self.word_embeddings = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool = False,
        **unused: Any,
    ) -> BaseModelOutput:
        """Run the stack.

        Args:
            input_ids: [B, T] token ids, or None with `inputs_embeds`.
            attention_mask: None: block-causal over all tokens; 2-D [B, T]: block-causal over the tokens marked 1; 4-D
                [B or 1, heads or 1, T, T]: used as it is, bool (True: visible) or additive.
            position_ids: [B or 1, T] absolute positions, from 0 when None.
            inputs_embeds: [B, T, H], in place of `input_ids`.
            output_hidden_states: also return the embeddings and the residual stream after each layer.
            unused: `use_cache` and other switches of Transformers that have no meaning here.
        """
        if unused.get("past_key_values") is not None:
            raise ValueError("there is no key-value cache: pass the whole sequence")
        hidden = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if position_ids is None:
            position_ids = torch.arange(hidden.shape[1], device=hidden.device)[None]
        if attention_mask is None or attention_mask.dim() == 2:
            mask = block_causal_mask(position_ids, self.config.block_length)
            if attention_mask is not None:
                mask = mask & attention_mask.bool()[:, None, None, :]
        else:
            mask = attention_mask
        mask = additive_mask(mask, hidden.dtype)
        cos, sin = self.rotary_emb(position_ids)
        residuals = [hidden]
        for layer in self.layers:
            hidden = layer(hidden, mask, cos, sin)
            residuals.append(hidden)
        return BaseModelOutput(
            last_hidden_state=self.norm(hidden), hidden_states=tuple(residuals) if output_hidden_states else None
        )


@dataclass(frozen=True)
class DenoisingPass:
    """What one forward of block-diffusion decoding saw and did.

    Attributes:
        block_start: absolute position of the block's first token.
        tokens_before: int64 [L], the block before the pass, masks included.
        logits: float32 [L, V].
        accepted: bool [L], the positions filled by this pass.
        tokens_after: int64 [L], the block after the pass.
    """

    block_start: int
    tokens_before: Tensor
    logits: Tensor
    accepted: Tensor
    tokens_after: Tensor


class LLaDA2MoeModelLM(LLaDA2MoePreTrainedModel):
    """LLaDA2.0 with its head. The logits are not shifted: those of a masked position predict that position."""

    def __init__(self, config: LLaDA2MoeConfig) -> None:
        super().__init__(config)
        self.model = LLaDA2MoeModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the token embeddings."""
        return self.model.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embeddings."""
        self.model.word_embeddings = value

    def get_output_embeddings(self) -> nn.Linear:
        """Return the head."""
        return self.lm_head

    def forward(self, input_ids: Tensor | None = None, **options: Any) -> CausalLMOutput:
        """Return float32 logits [B, T, V]; `options` are those of `LLaDA2MoeModel.forward`."""
        output = self.model(input_ids, **options)
        logits = self.lm_head(output.last_hidden_state).float()
        return CausalLMOutput(logits=logits, hidden_states=output.hidden_states)

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor,
        max_new_tokens: int = 64,
        block_length: int | None = None,
        threshold: float = 0.95,
        steps: int | None = None,
        mask_id: int | None = None,
        eos_id: int | None = None,
        on_pass: Callable[[DenoisingPass], None] | None = None,
    ) -> Tensor:
        """Decode by block diffusion at temperature 0.

        Block after block starts as masks (the tail of a prompt that ends inside a block shares it). A pass predicts the
        whole block and fills the masked positions whose probability exceeds `threshold`; when these are fewer than the
        schedule asks for, the most probable ones instead. Ties go to the lower token id and the earlier position.

        Args:
            inputs: [1, T] token ids of the prompt.
            max_new_tokens: upper bound on what is returned.
            block_length: tokens per block, `config.block_length` when None.
            threshold: probability above which a position is filled, compared with `>`.
            steps: passes per block at most, `block_length` when None: then at least one position per pass.
            mask_id: the mask's token id, from the config when None.
            eos_id: decoding stops after the block that holds it, from the config when None.
            on_pass: called after each pass.

        Returns:
            int64 [1, n], the new tokens up to and including the first end-of-sequence, at most `max_new_tokens`.
        """
        if inputs.dim() != 2 or inputs.shape[0] != 1:
            raise ValueError(f"decoding takes one prompt at a time, of shape [1, tokens], not {list(inputs.shape)}")
        length = self.config.block_length if block_length is None else block_length
        steps = length if steps is None else steps
        mask_id = self.config.mask_token_id if mask_id is None else mask_id
        eos_id = self.config.eos_token_id if eos_id is None else eos_id
        prompt = inputs.shape[1]
        blocks = -(-(prompt + max_new_tokens) // length)
        tokens = torch.full((blocks * length,), mask_id, dtype=torch.long, device=inputs.device)
        tokens[:prompt] = inputs[0]
        end = prompt
        for start in range(prompt // length * length, len(tokens), length):
            end = start + length
            self._denoise(tokens[:end], start, length, threshold, steps, mask_id, on_pass)
            if bool((tokens[max(start, prompt) : end] == eos_id).any()):
                break
        new = tokens[prompt : min(end, prompt + max_new_tokens)]
        stops = (new == eos_id).nonzero()
        return new[: int(stops[0]) + 1 if len(stops) else None][None]

    def _denoise(
        self,
        tokens: Tensor,
        start: int,
        length: int,
        threshold: float,
        steps: int,
        mask_id: int,
        on_pass: Callable[[DenoisingPass], None] | None,
    ) -> None:
        """Fill the masks of the block that ends `tokens`, in place."""
        block = tokens[start:]
        mask = block_causal_mask(torch.arange(len(tokens), device=tokens.device)[None], length)
        for step in range(steps):
            masked = block == mask_id
            if not bool(masked.any()):
                return
            logits = self(tokens[None], attention_mask=mask).logits[0, start:]
            predicted = logits.argmax(-1)
            confidence = logits.softmax(-1).gather(-1, predicted[:, None])[:, 0]
            quota = min(length // steps + (step < length % steps), int(masked.sum()))
            accepted = masked & (confidence > threshold)
            if int(accepted.sum()) < quota:
                ranking = confidence.masked_fill(~masked, -1.0).argsort(descending=True, stable=True)
                accepted = torch.zeros_like(masked).index_fill(0, ranking[:quota], True)
            before = block.clone()
            block[accepted] = predicted[accepted]
            if on_pass is not None:
                on_pass(DenoisingPass(start, before, logits, accepted, block.clone()))
