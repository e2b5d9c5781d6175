"""What a SGLang session is started with: the mode, the engine's keywords, the environment. Imports nothing heavy.

Every option of the spec goes to SGLang (`ServerArgs`) as it is (a block-diffusion model takes one prompt at a time
unless `max_running_requests` says more: raise it for a case with `batch`), except these, which the adapter keeps:

    specrunner_mode           `runner`: SGLang's ModelRunner in the worker itself; `engine`: the full Engine, whose
                              scheduler is a process of its own. The default is `runner`, and `engine` where a
                              scheduler is needed: for block diffusion, and for more than one rank
    specrunner_block_length   tokens in a block of a block-diffusion model; default: `block_length` of the model's
                              config, else SGLang's own. A request that decodes with another one is an error
    specrunner_environment    environment variables of the engine, e.g. {SGLANG_ENABLE_DETERMINISTIC_INFERENCE: 1}
    num_threads               OpenMP threads
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specrunner.devices import resolve_device
from specrunner.errors import ModelUnsupported
from specrunner.requests import Session

OWN_OPTIONS = ("specrunner_mode", "specrunner_block_length", "specrunner_environment", "num_threads")
MODES = ("runner", "engine")

MODEL_OPTIONS: Mapping[str, str] = {
    "model_path": "id",
    "modelopt_checkpoint_restore_path": "path",
    "decrypted_config_file": "path",
    "decrypted_draft_config_file": "path",
}
"""Options that say what a spec's `model` says, and its field (see `Capabilities`)."""

CASE_OPTIONS: Mapping[str, str] = {"dtype": "dtype", "device": "device"}
"""Options that say what a case says, and its field."""

CHECKPOINT_OPTIONS: Mapping[str, str] = {
    "tokenizer_path": "",
    "speculative_draft_model_path": "speculative_draft_model_revision",
    "lora_paths": "",
    "uno_lora_path": "",
    "kt_weight_path": "",
}
"""Options that name further checkpoints, and what states their revision."""

ALGORITHMS: Mapping[str, str] = {"low_confidence": "LowConfidence"}
"""SGLang's names of the decoding algorithms that a spec can ask of a block-diffusion model."""

DEFAULT_BLOCK_LENGTH = 32
"""What SGLang takes for LLaDA2 when nothing states a block length."""

MASK_ID = 156895
"""The mask token that SGLang has written into its code for LLaDA2."""

DEFAULT_TOKENS = 2048
"""Tokens that the key-value cache holds on a CPU; SGLang would take most of the machine's memory."""

SOCKET_PATH_LIMIT = 107
"""Bytes in the path of a Unix socket (Linux)."""

CPU_ENVIRONMENT: Mapping[str, str] = {"SGLANG_USE_CPU_ENGINE": "1", "TORCHDYNAMO_DISABLE": "1"}
"""What SGLang needs on a CPU. It would compile its routers with torch.compile, which takes a C++ compiler and a minute
of every session; uncompiled they are the same PyTorch code."""

RANKS = ("tp_size", "pp_size", "dp_size", "ep_size", "nnodes")


@dataclass(frozen=True, slots=True)
class SglangSetup:
    """How one session drives SGLang.

    Attributes:
        mode: one of `MODES`.
        keywords: arguments of `ServerArgs`; `dllm_algorithm_config` is filled in by `write_algorithm`.
        block_length: tokens in a block of a block-diffusion model, else None.
        algorithm: parameters of its decoding algorithm, for SGLang's YAML file; None without one.
        mask_id: its mask token as the checkpoint's config states it, or None.
    """

    mode: str
    keywords: Mapping[str, Any]
    block_length: int | None = None
    algorithm: Mapping[str, Any] | None = None
    mask_id: int | None = None

    def read_mask_id(self) -> int:
        """Return the mask token that SGLang decodes with."""
        return MASK_ID if self.mask_id is None else self.mask_id


def plan_setup(
    session: Session, model_path: str, config: Mapping[str, Any], algorithms: tuple[str, ...]
) -> SglangSetup:
    """Choose mode and keywords: the spec's options over defaults that suit captures.

    Args:
        session: what to load.
        model_path: directory or hub id.
        config: the checkpoint's `config.json`.
        algorithms: how the architecture decodes, by its name map.

    Raises:
        ModelUnsupported: options that contradict each other or the architecture.
    """
    options = dict(session.options)
    mode = options.pop("specrunner_mode", None)
    stated_length = options.pop("specrunner_block_length", None)
    for name in OWN_OPTIONS:
        options.pop(name, None)
    device = resolve_device(session.device)
    keywords: dict[str, Any] = {
        "model_path": model_path,
        "revision": session.model.revision,
        "trust_remote_code": session.model.trust_remote_code,
        "dtype": session.dtype,
        "device": device,
        "random_seed": 0,
        "skip_tokenizer_init": True,
        "skip_server_warmup": True,
        "sampling_backend": "pytorch",
        "grammar_backend": "none",
        "disable_cuda_graph": True,
        "disable_radix_cache": True,
        "disable_overlap_schedule": True,
        "sleep_on_idle": True,  # else a scheduler without work takes a whole processor from the other sessions
    }
    if device == "cpu":
        keywords |= {"attention_backend": "torch_native", "max_total_tokens": DEFAULT_TOKENS}
    diffusion = "low_confidence" in algorithms
    scheduler_needed = diffusion or any(int(options.get(name, 1)) > 1 for name in RANKS)
    mode = mode or ("engine" if scheduler_needed else "runner")
    if mode not in MODES:
        raise ModelUnsupported(f"specrunner_mode is {mode!r}", help=f"it can be {' or '.join(MODES)}")
    if mode == "runner" and scheduler_needed:
        raise ModelUnsupported(
            "specrunner_mode is runner, and block diffusion or several ranks need SGLang's scheduler"
        )
    if not diffusion:
        if stated_length is not None:
            raise ModelUnsupported("specrunner_block_length is set, and the model does not decode by block diffusion")
        return SglangSetup(mode, keywords | options)
    algorithm = {"block_size": int(stated_length or config.get("block_length") or DEFAULT_BLOCK_LENGTH)}
    given = options.pop("dllm_algorithm_config", None)
    if isinstance(given, str):
        import yaml

        given = yaml.safe_load(Path(given).read_text(encoding="utf-8"))
    algorithm |= given or {}
    mask_id = config.get("mask_token_id")
    return SglangSetup(
        mode,
        keywords | {"dllm_algorithm": ALGORITHMS["low_confidence"]} | options,
        block_length=int(algorithm["block_size"]),
        algorithm=algorithm,
        mask_id=None if mask_id is None else int(mask_id),
    )


def plan_environment(session: Session, workspace: Path) -> dict[str, str]:
    """Choose the environment variables of a worker: caches and sockets in its workspace, stand-ins on a CPU."""
    variables = {
        "HF_MODULES_CACHE": str(workspace / "modules"),
        "SGLANG_CACHE_DIR": str(workspace / "cache"),
        "TRITON_CACHE_DIR": str(workspace / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(workspace / "inductor"),
        "TOKENIZERS_PARALLELISM": "false",
    }
    temporary = workspace / "tmp"
    if len(str(temporary / "tmp01234567")) <= SOCKET_PATH_LIMIT:
        temporary.mkdir(parents=True, exist_ok=True)
        variables["TMPDIR"] = str(temporary)
    if resolve_device(session.device) == "cpu":
        variables |= CPU_ENVIRONMENT
        variables["PYTHONPATH"] = str(Path(__file__).parent / "standins")
    if "num_threads" in session.options:
        variables["OMP_NUM_THREADS"] = str(session.options["num_threads"])
    own = session.options.get("specrunner_environment") or {}
    return variables | {str(name): str(value) for name, value in own.items()}
