"""The adapter of vLLM: its own engine, read through a worker extension; tokens come from its `generate`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specrunner.engines.base import Capabilities, Capture, Engine, ScoredPrompt, list_forward_patterns
from specrunner.engines.checkpoint_digest import start_describing
from specrunner.engines.checkpoint_files import has_tokenizer
from specrunner.engines.facts import list_ids, make_plain
from specrunner.engines.hf.checkpoint import resolve_folder
from specrunner.engines.name_maps import load_maps, tensor_templates
from specrunner.engines.prompts import encode_prompt
from specrunner.engines.vllm.failures import translate_failures
from specrunner.engines.vllm.options import (
    CASE_OPTIONS,
    CHECKPOINT_OPTIONS,
    MODEL_OPTIONS,
    PLUGIN_THRESHOLD,
    EngineSetup,
    check_rule,
    has_plugin,
    plan_environment,
    plan_setup,
)
from specrunner.engines.vllm.reading import PromptReader
from specrunner.engines.vllm.scoring import score_prompts
from specrunner.engines.vllm.subject import (
    UNMAPPED,
    check_device,
    check_model_class,
    choose_map,
    keep_chunks,
    name_scheduler,
    share_inspections,
)
from specrunner.errors import CaptureIncomplete, ModelUnsupported
from specrunner.spec.model import Decode, Prompt
from specrunner.spec.tensor_names import PASSES

if TYPE_CHECKING:
    from specrunner.requests import Request, Session

PRELOAD = ("torch", "transformers", "vllm", "vllm.entrypoints.llm", "vllm.v1.worker.cpu_model_runner")


class VllmEngine(Engine):
    """vLLM in this process (and, with tensor parallelism, in its workers): one request a capture."""

    name = "vllm"

    def __init__(self, session: Session, model_path: str, workspace: Path) -> None:
        super().__init__(session, model_path, workspace)
        self._llm: Any = None
        self._setup: EngineSetup | None = None
        self._architecture = ""
        self._map = UNMAPPED
        self._reader: PromptReader | None = None

    @classmethod
    def capabilities(cls) -> Capabilities:
        """State what vLLM can do; the device decides between its two environments."""
        dtypes = ("float32", "bfloat16", "float16")
        return Capabilities(
            dtypes={"cpu": dtypes, "cuda": dtypes},
            algorithms=("greedy", "low_confidence"),
            packages=("torch", "transformers", "vllm"),
            environments=("vllm-cuda", "vllm-cpu"),
            install_hint="specrunner engines install vllm",
            batches=True,
            lasting=True,
            preload=PRELOAD,
            model_options=MODEL_OPTIONS,
            case_options=CASE_OPTIONS,
            checkpoint_options=CHECKPOINT_OPTIONS,
        )

    @classmethod
    def decode_rules(cls, options: Mapping[str, Any]) -> Mapping[str, tuple[Any, ...]]:
        """Leave everything to our own loop; a plugin's scheduler decodes under the rule of the dLLM plugin.

        Its threshold is fixed, too: the option `specrunner_threshold` states what the plugin was built to do.
        """
        if not has_plugin(options):
            return {}
        return {
            "threshold": (options.get("specrunner_threshold", PLUGIN_THRESHOLD),),
            "steps": (None,),
            "accept": ("ge",),
            "fallback": ("near_best",),
            "exclude_mask_id": (True,),
            "eos_early_stop": (False,),
        }

    @classmethod
    def reveals_passes(cls, options: Mapping[str, Any]) -> bool:
        """Tell whether our own loop decodes: a plugin's scheduler keeps its steps to itself."""
        return not has_plugin(options)

    @classmethod
    def tensor_templates(cls, architecture: str) -> tuple[str, ...] | None:
        """Return the names in the architecture's name map, or None without one."""
        return tensor_templates(cls.name, architecture)

    @classmethod
    def worker_environment(cls, session: Session, workspace: Path) -> dict[str, str]:
        """Return variables that keep vLLM quiet, in one process and inside the workspace."""
        return plan_environment(session, workspace)

    def load(self) -> dict[str, Any]:
        """Start the engine, and make sure that it runs code of its own."""
        label = self.session.model.label
        with translate_failures(f"load {label}", self._log):
            folder = resolve_folder(self.session.model, self.model_path, self.session.options)
            checkpoint = start_describing(folder)
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            import torch
            import transformers
            import vllm
            from vllm.model_executor.models import ModelRegistry
            from vllm.platforms import current_platform
            from vllm.plugins import load_general_plugins

            check_device(self.session.device, current_platform.device_type)
            load_general_plugins()
            supported = frozenset(ModelRegistry.get_supported_archs())
            setup = plan_setup(self.session, self.model_path, config, supported, has_tokenizer(folder))
            self._setup = setup
            torch.set_float32_matmul_precision("highest")
            share_inspections(vllm.__version__)
            self._llm = vllm.LLM(**setup.keywords)
            described = self._llm.collective_rpc("specrunner_describe")[0]
            check_model_class(described["model_class"], described["bases"])
            patches = self._patch(setup, config)
        self._architecture = next(iter(config.get("architectures") or ()), "?")
        self._map = choose_map(described["bases"], self._architecture)
        self._reader = PromptReader(self._llm, self._map, self._architecture, self.workspace)
        router = self._describe_router()
        engine = self._llm.llm_engine.vllm_config
        return {
            "versions": {
                "vllm": vllm.__version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
            "architecture": self._architecture,
            "model_class": described["model_class"],
            "device": current_platform.device_name,
            "dtype": str(engine.model_config.dtype).removeprefix("torch."),
            "parameter_dtypes": described["parameter_dtypes"],
            "kv_cache_dtype": engine.cache_config.cache_dtype,
            "attention_backend": ",".join(described["attention_backends"]),
            "attention": setup.attention,
            "block_length": setup.block_length,
            "plugin_decode": None if setup.plugin is None else asdict(setup.plugin),
            "attention_windows": described["attention_windows"],
            "runner": described["runner"],
            "worker": described["worker"],
            "scheduler": name_scheduler(self._llm),
            "name_map": self._map.family,
            "router": router,
            "compiled": not engine.model_config.enforce_eager,
            "tensor_parallel_size": engine.parallel_config.tensor_parallel_size,
            "prefix_caching": engine.cache_config.enable_prefix_caching,
            "threads": torch.get_num_threads(),
            "plugins": os.environ.get("VLLM_PLUGINS"),
            "options": dict(self.session.options),
            "engine_arguments": {name: make_plain(value) for name, value in setup.keywords.items() if name != "model"},
            "patches": patches,
            **checkpoint.result(),
        }

    def capture(self, request: Request) -> Capture:
        """Send the prompt through the engine for the tensors, then let it decode."""
        with translate_failures("answer the request", self._log, self._lost):
            config = self._llm.llm_engine.vllm_config.model_config
            ids = encode_prompt(request.prompt, self._tokenizer(), config.get_vocab_size())
            self._check_length(len(ids), request.decode)
            capture = Capture(prompt_token_ids=ids)
            vocabulary = config.get_vocab_size()
            companions = [encode_prompt(prompt, self._tokenizer(), vocabulary) for prompt in request.companions]
            if companions:
                self._check_batch(capture, companions, request.decode)
            patterns = list_forward_patterns(request)
            if patterns:
                self._forward(capture, patterns, companions)
            if request.decode is not None:
                self._decode(capture, request.decode, request.tensors, companions)
            return capture

    def is_causal(self) -> bool:
        """Tell by the attention of this session, and by how the architecture decodes."""
        known = load_maps("hf").get(self._architecture)
        return (
            self._setup is not None
            and self._setup.attention == "causal"
            and (known is None or "greedy" in known.algorithms)
        )

    def read_text(self, token_ids: Sequence[int]) -> str | None:
        """Decode with the tokenizer that vLLM uses."""
        tokenizer = self._tokenizer()
        return None if tokenizer is None else str(tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def score_continuations(self, groups: Sequence[ScoredPrompt]) -> list[list[dict[str, Any]]] | None:
        """Let vLLM give the log-probabilities itself, of many prompts in one call."""
        with translate_failures("answer the request", self._log, self._lost):
            vocabulary = self._llm.llm_engine.vllm_config.model_config.get_vocab_size()
            for tokens, _ in groups:
                self._check_length(len(encode_prompt(Prompt(token_ids=tuple(tokens)), None, vocabulary)), None)
            return score_prompts(self._llm, groups)

    def close(self) -> None:
        """Shut the engine down, its workers included."""
        llm, self._llm = self._llm, None
        if llm is not None:
            llm.llm_engine.engine_core.shutdown()

    @property
    def _log(self) -> Path:
        return self.workspace / "worker.log"

    def _lost(self) -> bool:
        """Tell whether vLLM's executor has noticed that one of its worker processes is gone."""
        core = getattr(self._llm.llm_engine.engine_core, "engine_core", None)
        return bool(getattr(getattr(core, "model_executor", None), "is_failed", False))

    def _tokenizer(self) -> Any:
        """Return the tokenizer that vLLM itself uses, or None."""
        skipped = self._llm.llm_engine.vllm_config.model_config.skip_tokenizer_init
        return None if skipped else self._llm.get_tokenizer()

    def _patch(self, setup: EngineSetup, config: Mapping[str, Any]) -> list[str]:
        """Change the engine as the setup says; return one sentence for each change."""
        patches = []
        if setup.standin is not None:
            architecture = next(iter(config["architectures"]))
            patches.append(
                f"the architecture {architecture} runs as {setup.standin}, vLLM's causal parent (hf_overrides)"
            )
        if setup.attention == "block_causal":
            backends = self._llm.collective_rpc("specrunner_make_bidirectional")[0]
            patches.append(
                f"the attention metadata of {', '.join(backends)} says causal=False, and each prefill chunk is one "
                f"block of {setup.block_length} tokens, which sees the key-value cache and all of itself"
            )
            if int(setup.keywords["max_num_seqs"]) > 1:
                core = getattr(self._llm.llm_engine.engine_core, "engine_core", None)
                if core is None:
                    raise ModelUnsupported("max_num_seqs above 1 needs vLLM's scheduler in this process")
                keep_chunks(core.scheduler)
                patches.append("a request that is alone is prefilled block by block, too")
        return patches

    def _describe_router(self) -> dict[str, Any] | None:
        """Say how the model's routers choose, as they were built; None without a name map or without routers."""
        if not self._map.entries:
            return None
        described = self._llm.collective_rpc("specrunner_describe_router", args=(self._map.architectures[0],))
        router: dict[str, Any] | None = described[0]
        return router

    def _check_length(self, prompt: int, decode: Decode | None) -> None:
        """Refuse what vLLM would cut short without a word."""
        assert self._setup is not None
        limit = self._llm.llm_engine.vllm_config.model_config.max_model_len
        total = prompt + (decode.max_new_tokens if decode is not None else 1)
        if decode is not None and decode.algorithm == "low_confidence" and self._setup.block_length:
            total = -(-total // self._setup.block_length) * self._setup.block_length + 1
        if total > limit:
            raise ModelUnsupported(
                f"{prompt} prompt tokens with {total - prompt} to come are over max_model_len, {limit}",
                help="raise max_model_len in the engine's options",
            )

    def _check_batch(self, capture: Capture, companions: Sequence[Sequence[int]], decode: Decode | None) -> None:
        """Make sure that the engine takes all prompts at once."""
        sequences = int(self._llm.llm_engine.vllm_config.scheduler_config.max_num_seqs)
        if sequences <= len(companions):
            raise ModelUnsupported(
                f"a batch of {len(companions) + 1} prompts, and the session takes {sequences} at a time",
                help=f"set max_num_seqs: {len(companions) + 1} in the engine's options",
            )
        for ids in companions:
            self._check_length(len(ids), decode)
        capture.facts["batch"] = {"prompts": 1 + len(companions)}

    def _forward(self, capture: Capture, patterns: Sequence[str], companions: Sequence[Sequence[int]]) -> None:
        """Run the prompt once and put the tensors that `patterns` select into `capture`."""
        ids = capture.prompt_token_ids
        rows, tensors = self.reader.run_prompt(ids, patterns, companions=companions)
        chunks = next(iter(rows.values()), [])
        capture.facts["forwards"] = chunks
        assert self._setup is not None
        block = self._setup.block_length
        if block is not None and chunks != [min(block, len(ids) - start) for start in range(0, len(ids), block)]:
            raise CaptureIncomplete(f"the engine split {len(ids)} tokens into {chunks}, not into blocks of {block}")
        capture.tensors = tensors

    def _decode(
        self, capture: Capture, decode: Decode, patterns: Sequence[str], companions: Sequence[Sequence[int]]
    ) -> None:
        """Generate tokens; put them, their facts and the wanted passes into `capture`."""
        assert self._setup is not None
        if decode.algorithm == "low_confidence" and self._setup.attention == "causal":
            raise ModelUnsupported("low_confidence decoding needs specrunner_attention: block_causal, or a plugin")
        if decode.algorithm != "low_confidence" and self._setup.attention == "block_causal":
            raise ModelUnsupported(f"{decode.algorithm} decoding needs specrunner_attention: causal")
        if decode.algorithm == "low_confidence" and self._setup.plugin is not None:
            check_rule(decode, self._setup.plugin)
        if self._setup.attention == "block_causal":
            from specrunner.engines.vllm.denoising import denoise_blocks

            denoise_blocks(self, capture, decode, patterns, companions)
        else:
            self._generate(capture, decode, patterns, companions)
        tail = (capture.output_token_ids or [])[-1:]
        stopped = bool(self.eos_ids().intersection(tail)) and not decode.ignore_eos
        capture.facts["finish_reason"] = "stop" if stopped else "length"

    def _generate(
        self, capture: Capture, decode: Decode, patterns: Sequence[str], companions: Sequence[Sequence[int]]
    ) -> None:
        """Let the engine decode, by its own scheduler and sampler, at temperature 0."""
        from vllm import SamplingParams

        if any(pattern.startswith(PASSES) for pattern in patterns):
            raise CaptureIncomplete("the engine decodes by itself: the logits of its passes cannot be read")
        stop = list(self.stop) if self._tokenizer() is not None else []
        # The tokenizer's end of sequence may differ from the model's; the stop ids below are the latter.
        params = SamplingParams(
            temperature=0.0,
            max_tokens=decode.max_new_tokens,
            ignore_eos=True,
            stop_token_ids=[] if decode.ignore_eos else sorted(self.eos_ids()),
            # With stop texts vLLM ends behind the token that completes one, which its detokenizer has to find.
            detokenize=bool(stop),
            stop=stop,
        )
        prompts = [{"prompt_token_ids": list(prompt)} for prompt in (capture.prompt_token_ids, *companions)]
        answer = self._llm.generate(prompts, params, use_tqdm=False)[0]
        output = answer.outputs[0]
        capture.output_token_ids = [int(token) for token in output.token_ids]
        capture.facts["decode_loop"] = f"vllm's {name_scheduler(self._llm).rpartition('.')[2]}"
        capture.facts["engine_finish_reason"] = output.finish_reason
        capture.facts["cached_prompt_tokens"] = answer.num_cached_tokens or 0

    def eos_ids(self) -> set[int]:
        """Return the ids that end a sequence: the generation config's, else the model config's."""
        config = self._llm.llm_engine.vllm_config.model_config
        eos = config.try_get_generation_config().get("eos_token_id")
        if eos is None:
            eos = getattr(config.hf_text_config, "eos_token_id", None)
        return list_ids(eos)

    def mask_id(self) -> int:
        """Return the id that stands for a masked token.

        Raises:
            ModelUnsupported: the model's config names none.
        """
        config = self._llm.llm_engine.vllm_config.model_config.hf_text_config
        mask = getattr(config, "mask_token_id", None)
        if mask is None:
            raise ModelUnsupported("the model's config has no mask_token_id, which low_confidence decoding needs")
        return int(mask)

    @property
    def reader(self) -> PromptReader:
        """What reads tensors of the loaded model."""
        assert self._reader is not None
        return self._reader

    @property
    def prefix_caching(self) -> bool:
        """Whether the engine reuses keys and values of earlier requests."""
        return bool(self._llm.llm_engine.vllm_config.cache_config.enable_prefix_caching)

    @property
    def block_length(self) -> int:
        """Tokens in a block of this session; only under `block_causal`."""
        assert self._setup is not None and self._setup.block_length is not None
        return self._setup.block_length
