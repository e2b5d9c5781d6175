"""The bugs that can be planted, each with where it comes from.

Over 400 lines, since it is one list, read and searched as one.
"""

from __future__ import annotations

from specrunner.faults.model import EVERYWHERE, Fault

_HF = ("hf",)
_LOOPS = ("hf", "oracle", "vllm")
_SERVED = ("hf", "oracle", "vllm", "sglang")
_BELOW = "it moves no tensor further than the legitimate variants of bfloat16 do"
_SAME = "values are rounded to bfloat16 anyway"

_EMBEDDINGS = (
    Fault(
        "embeddings-scaled",
        "embeddings",
        "Gemma multiplies embeddings by the root of their width; code taken over from it does so to any model",
        _SERVED,
    ),
)
_MASK = (
    Fault("mask-causal", "mask", "validating vLLM's dLLM plugin met a prefill that had stayed causal"),
    Fault(
        "mask-bidirectional", "mask", "LLaDA 1 attends over everything; code taken over from it lets all tokens see all"
    ),
    Fault(
        "mask-block-doubled", "mask", "block lengths of 16 and 32 live in config, algorithm file and call, and differ"
    ),
    Fault("mask-block-halved", "mask", "the other half of the same slip: a kernel's tile taken for the model's block"),
    Fault(
        "mask-blocks-from-the-end",
        "mask",
        "dInfer and the hub's code cut blocks at absolute positions, left padding does not",
    ),
    Fault("mask-own-block-hidden", "mask", "a strict comparison of blocks, mended by adding the diagonal"),
    Fault(
        "mask-prefix-hidden",
        "mask",
        "a variable-length kernel given one sequence a block attends inside the block alone",
    ),
    Fault(
        "mask-window",
        "mask",
        "vLLM 0.32 puts gpt-oss's windows by a layer's parity (docs/findings/vllm-gpt-oss-windows.md)",
    ),
    Fault(
        "mask-zero-one",
        "mask",
        "the hub's eager attention wants a 0/1 mask, its SDPA one 0/-inf; the wrong one raises nothing",
        engines=_HF,
    ),
)
_ROPE = (
    Fault(
        "rope-interleaved", "rope", "vllm#747, vllm-ascend#12780: NeoX halves and GPT-J pairs mistaken for each other"
    ),
    Fault("rope-whole-head", "rope", "vllm#747: the whole head was turned where GPT-J and NeoX turn a part"),
    Fault("rope-default-theta", "rope", "vllm#9502, airllm#368: the config's theta was not read, and 10000 used"),
    Fault(
        "rope-positions-restart",
        "rope",
        "sequences packed for a variable-length kernel keep their own positions from 0",
    ),
    Fault(
        "rope-frequencies-rounded",
        "rope",
        "gpt-neox#1003, sglang-jax#1472: inverse frequencies in half precision",
        invisible={"bfloat16": _BELOW},
    ),
    Fault(
        "rope-reversed",
        "rope",
        "the sign of rotate_half exchanged in a port, an old mistake of checkpoint converters",
        _SERVED,
    ),
    Fault("rope-keys-unrotated", "rope", "keys written into the cache before RoPE, and read as if after", engines=_HF),
    Fault(
        "rope-offset",
        "rope",
        "positions from 1 instead of 0",
        invisible={EVERYWHERE: "RoPE is relative: the same offset on all positions cancels out"},
    ),
)
_QK_NORM = (
    Fault(
        "qk_norm-dropped",
        "qk_norm",
        "LLaDA2's configs do not state use_qk_norm, and the classes' defaults differ",
        _SERVED,
    ),
    Fault("qk_norm-queries-bare", "qk_norm", "one of the two norms missing from a weight map", _SERVED),
    Fault(
        "qk_norm-swapped",
        "qk_norm",
        "the two weights have one shape, so a loader that exchanges them is not told",
        _SERVED,
    ),
    Fault(
        "qk_norm-after-rope",
        "qk_norm",
        "Hunyuan norms after RoPE, Qwen3 before (allenai/OLMo#806); random weights cannot tell",
        engines=_HF,
    ),
)
_KV_CACHE = (
    Fault("kv_cache-one-slot-off", "kv_cache", "vllm#37076 suspects an accounting of blocks that is one token off"),
    Fault(
        "kv_cache-first-page-twice",
        "kv_cache",
        "tenstorrent/vllm#415, LMCache#4463: a hit in the prefix cache gives another page",
        engines=_HF,
    ),
    Fault(
        "kv_cache-first-page-lost",
        "kv_cache",
        "vllm#37076 also saw zeroed blocks; an evicted page is read no more",
        engines=_HF,
    ),
    Fault(
        "kv_cache-eight-bits",
        "kv_cache",
        "a cache in float8 that nobody asked for, as kv_cache_dtype=auto may choose",
        engines=_HF,
    ),
    Fault(
        "kv_cache-heads-in-turn",
        "kv_cache",
        "query heads shared out to key heads in turn (tile) instead of in groups (repeat)",
        engines=_HF,
    ),
    Fault(
        "kv_cache-softmaxes-summed",
        "kv_cache",
        "validating vLLM's dLLM plugin met prefix and block attention added without their sums",
    ),
    Fault(
        "kv_cache-stale-block",
        "kv_cache",
        "SGLang, dInfer and the plugin refresh a finished block's keys with one more forward",
        engines=_HF,
        decodes=True,
    ),
)
_ROUTING = (
    Fault("routing-softmax", "routing", "validating vLLM's dLLM plugin met a fused MoE that scored by softmax"),
    Fault("routing-no-groups", "routing", "n_group and topk_group dropped on the way to a fused kernel"),
    Fault(
        "routing-group-by-best",
        "routing",
        "DeepSeek-V2 rates a group by its best expert, V3 and LLaDA2 by the sum of two",
    ),
    Fault(
        "routing-bias-ignored",
        "routing",
        "vLLM 0.32 drops ERNIE 4.5's bias on a CPU (docs/findings/vllm-cpu-ernie-router-bias.md)",
        _SERVED,
    ),
    Fault(
        "routing-bias-in-weights", "routing", "vllm#12002: DeepSeek-V3's bias chose the experts and weighed them, too"
    ),
    Fault("routing-bias-before-sigmoid", "routing", "a bias added to the logits by a linear layer that has one"),
    Fault(
        "routing-not-normalised",
        "routing",
        "norm_topk_prob is true in LLaDA2's config and false in several classes' defaults",
    ),
    Fault("routing-one-expert-fewer", "routing", "a slot of the routed top-k taken by the fused shared expert"),
    Fault("routing-best-skipped", "routing", "ranks counted from one"),
)
_EXPERTS = (
    Fault(
        "experts-neighbours-exchanged",
        "experts",
        "an expert map that is off by a rank's position under expert parallelism",
        _SERVED,
    ),
    Fault(
        "experts-weights-misplaced", "experts", "ids sorted by expert, their weights left in the order of the scores"
    ),
    Fault("experts-rerouted", "experts", "the dLLM plugin's fused MoE chose again by softmax: top-1 0 %, KL 4.78"),
    Fault(
        "experts-over-capacity",
        "experts",
        "a fixed capacity, as in training, drops tokens of a popular expert",
        engines=_HF,
    ),
    Fault(
        "experts-gate-up-exchanged",
        "experts",
        "mlx-lm#767, vllm#29273: the halves of a fused gate-up projection taken for each other",
    ),
    Fault("experts-gelu", "experts", "hidden_act not handed to the experts' kernel"),
    Fault(
        "experts-shard-missing",
        "experts",
        "the last rank's experts left at zero by a loader that counts shards",
        _SERVED,
    ),
)
_SHARED_EXPERT = (
    Fault(
        "shared_expert-dropped",
        "shared_expert",
        "a weight map without shared_experts loads, and warns at most",
        _SERVED,
    ),
    Fault(
        "shared_expert-doubled",
        "shared_expert",
        "vllm#49122, sglang#35535: its output summed over ranks that each held all of it",
        _SERVED,
    ),
    Fault(
        "shared_expert-scaled",
        "shared_expert",
        "fused as one more routed expert, it gets the routed scaling factor, too",
    ),
    Fault(
        "shared_expert-last-token-skipped", "shared_expert", "vllm#37856: the shared expert saw a slice of the tokens"
    ),
)
_SCALING = (
    Fault(
        "scaling-attention-dropped",
        "scaling",
        "the scale folded into the query in one backend, left to the kernel in another",
    ),
    Fault(
        "scaling-attention-by-width",
        "scaling",
        "1/sqrt(hidden) in place of 1/sqrt(head_dim), where the two are usually tied",
    ),
    Fault(
        "scaling-routed-dropped",
        "scaling",
        "SGLang 0.5.23 on a CPU (docs/findings/sglang-cpu-scaling-factor.md), sglang-jax#1282",
    ),
    Fault("scaling-routed-twice", "scaling", "vllm#24118 (GSM8K .95 to .66), vllm#45037, sglang#35152"),
)
_NORMS = (
    Fault(
        "norms-other-eps",
        "norms",
        "torchtune#29: eps not handed down; LLaDA2 has 1e-6, its class's default 1e-5",
        engines=_SERVED,
        invisible={"bfloat16": _BELOW},
    ),
    Fault(
        "norms-plus-one",
        "norms",
        "Gemma and Qwen3-Next store weight - 1 (transformers#40796), others the weight",
        _SERVED,
    ),
    Fault("norms-exchanged", "norms", "input and post-attention norm mapped to each other's name", _SERVED),
    Fault("norms-centred", "norms", "a LayerNorm in place of an RMSNorm"),
    Fault("norms-final-dropped", "norms", "the last norm left to a head that does not do it", _SERVED),
    Fault(
        "norms-residual-after",
        "norms",
        "vLLM's and SGLang's fused add-and-norm return the stream apart; the normed one is added",
        engines=_HF,
    ),
)
_DTYPE = (
    Fault(
        "dtype-router-rounded",
        "dtype",
        "vllm#14027, vllm-ascend#9617: router logits in bfloat16",
        invisible={"bfloat16": _BELOW},
    ),
    Fault(
        "dtype-router-bias-rounded",
        "dtype",
        "vllm#23640, vllm#50761: the bias stored in the model's dtype; model.to(bfloat16) does it",
        invisible={"bfloat16": _BELOW},
    ),
    Fault("dtype-experts-eight-bits", "dtype", "experts quantised to float8 without being asked", engines=_HF),
    Fault(
        "dtype-softmax-rounded",
        "dtype",
        "an attention that leaves scores and softmax in bfloat16",
        engines=_HF,
        invisible={"bfloat16": _BELOW},
    ),
    Fault(
        "dtype-norm-rounded",
        "dtype",
        "norm statistics in bfloat16: one unit in one early norm moved a model's logits by 2.0",
        engines=_HF,
        invisible={"bfloat16": _BELOW},
    ),
    Fault(
        "dtype-residual-rounded",
        "dtype",
        "the residual stream kept in bfloat16 by a model loaded as float32",
        engines=_HF,
        invisible={"bfloat16": _SAME},
    ),
    Fault(
        "dtype-ten-bits",
        "dtype",
        "TF32 on by default makes a float32 reference a fake",
        engines=_HF,
        invisible={"bfloat16": "bfloat16 has seven bits of mantissa, TF32 keeps ten"},
    ),
)
_HEAD = (
    Fault(
        "head-tied", "head", "pegainfer#544, FastVLM-7B in mlx-vlm#1193: the embedding used in place of an untied head"
    ),
    Fault("head-shifted", "head", "a causal harness reads the logits one position early; LLaDA's are not shifted"),
    Fault("head-one-row-off", "head", "a vocabulary shard whose first row is the one before", ("hf", "oracle", "vllm")),
    Fault(
        "head-rescaled", "head", "a logits scale, as Cohere and Granite have one, applied to a model without", _SERVED
    ),
)
_LAYERS = (
    Fault(
        "layers-residual-dropped",
        "layers",
        "vLLM and SGLang return a layer's output and its residual apart; who takes the first alone loses the stream",
        engines=_HF,
    ),
    Fault(
        "layers-attention-exchanged",
        "layers",
        "a weight map that is off by one from some layer on; here the attention of the last two changes places",
        _SERVED,
    ),
)
_SAMPLER = (
    Fault(
        "sampler-low-threshold",
        "sampler",
        "validating vLLM's dLLM plugin met a threshold of .01 in place of .9",
        engines=_SERVED,
        decodes=True,
    ),
    Fault(
        "sampler-wrong-mask-id",
        "sampler",
        "validating vLLM's dLLM plugin met mask id 1 in place of 156895",
        engines=_LOOPS,
        decodes=True,
    ),
    Fault(
        "sampler-two-a-pass",
        "sampler",
        "half the denoising steps, so that each pass has to fill two positions",
        engines=_SERVED,
        decodes=True,
    ),
    Fault(
        "sampler-leftmost",
        "sampler",
        "where no position is sure, the first is filled and not the best",
        _SERVED,
        decodes=True,
    ),
    Fault(
        "sampler-at-least",
        "sampler",
        "`>` in Transformers and SGLang, `>=` in dInfer",
        engines=_LOOPS,
        decodes=True,
        invisible={EVERYWHERE: "no confidence equals the threshold to the last bit"},
    ),
)
_DECODING = (
    Fault(
        "decoding-tokens-rewritten",
        "decoding",
        "LLaDA2.1 edits accepted tokens, 2.0 does not",
        engines=_HF,
        decodes=True,
    ),
    Fault("decoding-eos-ignored", "decoding", "dInfer has no stop at the end of sequence", _LOOPS, decodes=True),
    Fault("decoding-half-blocks", "decoding", "the algorithm file's block length and the model's differ", decodes=True),
    Fault(
        "decoding-blocks-from-the-prompt",
        "decoding",
        "the first block begins at the prompt's end, not at the block's edge",
        engines=_HF,
        decodes=True,
    ),
    Fault(
        "decoding-prompt-tail-lost",
        "decoding",
        "sglang#12588 pads a prompt to whole blocks of masks; the tail inside one is masked with it",
        engines=_HF,
        decodes=True,
    ),
)

FAULTS: tuple[Fault, ...] = (
    *_EMBEDDINGS,
    *_MASK,
    *_ROPE,
    *_QK_NORM,
    *_KV_CACHE,
    *_ROUTING,
    *_EXPERTS,
    *_SHARED_EXPERT,
    *_SCALING,
    *_NORMS,
    *_LAYERS,
    *_DTYPE,
    *_HEAD,
    *_SAMPLER,
    *_DECODING,
)
"""The bugs, by area in the order of a forward."""
