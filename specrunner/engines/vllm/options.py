"""What a vLLM session is started with: the engine's keywords, our own options, the environment. Imports nothing heavy.

Every option of the spec goes to `vllm.LLM` as it is (`max_num_seqs` is 1 unless stated: raise it for a case with
`batch`), except these, which the adapter keeps:

    specrunner_attention      `causal`, or `block_causal`: a block sees itself and every earlier block. The default is
                              the engine's own (causal), and block_causal for a block-diffusion model that runs on its
                              causal parent's code
    specrunner_block_length   tokens in a block under block_causal, or of the plugin whose scheduler decodes; default:
                              `block_length` of the model's config, or 32
    specrunner_threshold      the threshold at which that plugin was built to decode; default: 0.9, the dLLM plugin's.
                              It reaches no engine: a request that decodes at another one is an error
    specrunner_environment    environment variables of the engine, e.g. {VLLM_PLUGINS: dllm}
    num_threads               OpenMP threads
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specrunner.devices import resolve_device
from specrunner.errors import ConfigurationError, ModelUnsupported
from specrunner.folders import hub_folder, hub_home
from specrunner.requests import DTYPE_BYTES, Session
from specrunner.spec.model import Decode

OWN_OPTIONS = (
    "specrunner_attention",
    "specrunner_block_length",
    "specrunner_threshold",
    "specrunner_environment",
    "num_threads",
)

MODEL_OPTIONS: Mapping[str, str] = {"model": "id", "model_weights": "path", "hf_config_path": "path"}
"""Options that say what a spec's `model` says, and its field (see `Capabilities`)."""

CASE_OPTIONS: Mapping[str, str] = {"dtype": "dtype"}
"""Options that say what a case says, and its field."""

CHECKPOINT_OPTIONS: Mapping[str, str] = {
    "tokenizer": "tokenizer_revision",
    "speculative_config.model": "speculative_config.revision",
    "spec_model": "speculative_config.revision",
    "default_mm_loras": "",
}
"""Options that name further checkpoints, and what states their revision."""

STANDINS: Mapping[str, str] = {"LLaDA2MoeModelLM": "BailingMoeV2ForCausalLM"}
"""Block-diffusion architectures that vLLM lacks, and the causal architecture in its tree with the same layers."""

EXTENSION = "specrunner.engines.vllm.worker.CaptureExtension"
DEFAULT_MODEL_LENGTH = 4096
DEFAULT_BLOCK_LENGTH = 32
PLUGIN_THRESHOLD = 0.9
"""Confidence from which on the dLLM plugin accepts a position."""
LONGEST_SOCKET_FOLDER = 107 - len("/00000000-0000-0000-0000-000000000000")
"""Characters of a folder in which vLLM can put its Unix sockets, each named by a UUID."""
KV_CACHE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class PluginRule:
    """What a plugin's scheduler decodes by, which no request can change.

    Attributes:
        threshold: confidence from which on a masked position is accepted.
        block_length: tokens in a block.
    """

    threshold: float
    block_length: int


@dataclass(frozen=True, slots=True)
class EngineSetup:
    """How one session drives vLLM.

    Attributes:
        keywords: arguments of `vllm.LLM`.
        attention: `causal`, `block_causal`, or `engine` where a scheduler or worker of a plugin decides.
        block_length: tokens in a block under `block_causal`, else None.
        standin: the architecture whose code runs instead of the checkpoint's, or None.
        plugin: how block diffusion decodes where a plugin decides, else None.
    """

    keywords: Mapping[str, Any]
    attention: str
    block_length: int | None
    standin: str | None
    plugin: PluginRule | None = None


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a model configuration that describes the language model."""
    nested = config.get("text_config")
    return nested if isinstance(nested, Mapping) else config


def kv_bytes_per_token(config: Mapping[str, Any], dtype: str) -> int:
    """Bytes that keys and values of one token take in all layers (an upper bound where layers share or compress)."""
    text = text_config(config)
    heads = text.get("num_attention_heads") or 1
    head_dim = text.get("head_dim") or (text.get("hidden_size") or 0) // heads
    kv_heads = text.get("num_key_value_heads") or heads
    return 2 * (text.get("num_hidden_layers") or 0) * kv_heads * head_dim * DTYPE_BYTES.get(dtype, 4)


def plan_setup(
    session: Session, model_path: str, config: Mapping[str, Any], supported: frozenset[str], has_tokenizer: bool
) -> EngineSetup:
    """Choose the engine's keywords: the spec's options over defaults that suit captures and bound the memory.

    Args:
        session: what to load.
        model_path: directory or hub id.
        config: the checkpoint's `config.json`.
        supported: architectures in vLLM's registry, plugins included.
        has_tokenizer: whether the checkpoint has tokenizer files.

    Raises:
        ConfigurationError: an option of ours with a value it cannot have.
        ModelUnsupported: block_causal together with options that break blocks up.
    """
    options = {name: value for name, value in session.options.items() if name not in OWN_OPTIONS}
    architecture = next(iter(config.get("architectures") or ()), "")
    standin = STANDINS.get(architecture) if architecture not in supported else None
    attention = choose_attention(session.options, options, standin)
    block_length = choose_block_length(session.options, config) if attention == "block_causal" else None
    plugin = None
    if attention == "engine":
        plugin = PluginRule(choose_threshold(session.options), choose_block_length(session.options, config))
    longest = text_config(config).get("max_position_embeddings") or DEFAULT_MODEL_LENGTH
    length = options.get("max_model_len") or min(int(longest), DEFAULT_MODEL_LENGTH)
    # A block of the KV cache holds up to 256 tokens, and vLLM keeps one for itself.
    needed = (length + 512) * kv_bytes_per_token(config, session.dtype)
    keywords: dict[str, Any] = {
        "model": model_path,
        "dtype": session.dtype,
        "revision": session.model.revision,
        "trust_remote_code": session.model.trust_remote_code,
        "enforce_eager": True,
        "max_model_len": length,
        "max_num_batched_tokens": block_length or length,
        "max_num_seqs": 1,
        "enable_chunked_prefill": block_length is not None,
        "enable_prefix_caching": False,
        "async_scheduling": False,
        "kv_cache_memory_bytes": max(KV_CACHE_BYTES, math.ceil(needed)),
        "seed": 0,
        "disable_log_stats": True,
        "skip_tokenizer_init": not has_tokenizer,
        "worker_extension_cls": EXTENSION,
    }
    if block_length is not None:
        refuse_broken_blocks(options, block_length)
        sequences = int(options.get("max_num_seqs", 1))
        if sequences > 1:
            keywords |= {
                "max_num_batched_tokens": block_length * sequences,
                "long_prefill_token_threshold": block_length,
            }
    if "worker_extension_cls" in options:
        raise ConfigurationError("the option worker_extension_cls of vllm is the adapter's own: captures run in it")
    keywords |= options
    draft = options.get("speculative_config") or ({} if options.get("spec_method") else None)
    if isinstance(draft, Mapping) and not (draft.get("model") or options.get("spec_model")):
        # The draft is part of the model then, and vLLM would take it from the default branch.
        keywords["speculative_config"] = {"revision": session.model.revision, **draft}
    if standin is not None:
        overrides = options.get("hf_overrides") or {}
        if not isinstance(overrides, Mapping):
            raise ConfigurationError("the option hf_overrides of vllm has to be a mapping")
        keywords["hf_overrides"] = {"architectures": [standin], **overrides}
    return EngineSetup(keywords, attention, block_length, standin, plugin)


def has_plugin(options: Mapping[str, Any]) -> bool:
    """Tell whether a plugin's scheduler or worker takes the place of vLLM's."""
    return "scheduler_cls" in options or "worker_cls" in options


def choose_attention(own: Mapping[str, Any], options: Mapping[str, Any], standin: str | None) -> str:
    """Return the attention mode; see the module's docstring for the defaults."""
    stated = own.get("specrunner_attention")
    if stated not in (None, "causal", "block_causal"):
        raise ConfigurationError(f"the option specrunner_attention is causal or block_causal, not {stated!r}")
    plugged = has_plugin(options)
    if stated == "block_causal" and plugged:
        raise ConfigurationError("specrunner_attention: block_causal excludes scheduler_cls and worker_cls")
    if stated is not None:
        return str(stated)
    if plugged:
        return "engine"
    return "block_causal" if standin is not None else "causal"


def choose_block_length(own: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    """Return the tokens of a block: as stated, as the model's config says, or 32."""
    length = own.get("specrunner_block_length")
    if length is None:
        length = config.get("block_length") or DEFAULT_BLOCK_LENGTH
    if not isinstance(length, int) or length < 1:
        raise ConfigurationError(f"the option specrunner_block_length is a positive number, not {length!r}")
    return length


def choose_threshold(own: Mapping[str, Any]) -> float:
    """Return the threshold of a plugin's scheduler: as stated, or the dLLM plugin's."""
    threshold = own.get("specrunner_threshold", PLUGIN_THRESHOLD)
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
        raise ConfigurationError(f"the option specrunner_threshold is a number from 0 to 1, not {threshold!r}")
    return float(threshold)


def check_rule(decode: Decode, plugin: PluginRule) -> None:
    """Refuse what a plugin's scheduler would do in its own way without a word.

    Raises:
        ModelUnsupported: another threshold or block length than the plugin's.
    """
    for name in ("threshold", "block_length"):
        asked, fixed = getattr(decode, name), getattr(plugin, name)
        if asked is not None and asked != fixed:
            raise ModelUnsupported(
                f"the request decodes with {name} {asked}, and the plugin's scheduler with {fixed}",
                help=f"state {name}: {fixed}, or specrunner_{name}: {asked} if the plugin was built to do that",
            )


def refuse_broken_blocks(options: Mapping[str, Any], block_length: int) -> None:
    """Reject engine options under which a prefill chunk would not be a block."""
    tokens = block_length * int(options.get("max_num_seqs", 1))
    wanted = {
        "max_num_batched_tokens": tokens,
        "enable_chunked_prefill": True,
        "long_prefill_token_threshold": block_length,
    }
    for name, value in wanted.items():
        if name in options and options[name] != value:
            raise ModelUnsupported(f"block_causal attention needs {name}: {value}, the spec says {options[name]}")


def plan_environment(session: Session, workspace: Path) -> dict[str, str]:
    """Return the environment variables of the worker: quiet, offline about usage, its files inside the workspace."""
    options = session.options
    sockets = str(workspace) if len(str(workspace)) <= LONGEST_SOCKET_FOLDER else "/tmp"
    variables = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_CACHE_ROOT": str(workspace / "vllm"),
        "VLLM_RPC_BASE_PATH": sockets,
        "TMPDIR": sockets,
        "TORCHINDUCTOR_CACHE_DIR": str(workspace / "inductor"),
        # Downloads and the token stay where the user has them; everything else of the hub's client is the session's.
        "HF_HOME": str(workspace / "huggingface"),
        "HF_HUB_CACHE": str(hub_folder(os.environ)),
        "HF_TOKEN_PATH": os.environ.get("HF_TOKEN_PATH", str(hub_home(os.environ) / "token")),
        "TOKENIZERS_PARALLELISM": "false",
    }
    if options.get("enforce_eager", True):
        variables["TORCH_COMPILE_DISABLE"] = "1"
    if resolve_device(session.device) == "cpu":
        # Spinning threads on a shared core cost vLLM two orders of magnitude.
        variables |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_WAIT_POLICY": "passive"}
        variables["OMP_NUM_THREADS"] = str(options.get("num_threads") or 1)
    else:
        # In every process: a float32 reference with TF32 products is none.
        variables["NVIDIA_TF32_OVERRIDE"] = "0"
    stated = options.get("specrunner_environment") or {}
    if not isinstance(stated, Mapping):
        raise ConfigurationError("the option specrunner_environment of vllm has to be a mapping")
    return variables | {str(name): str(value) for name, value in stated.items()}
