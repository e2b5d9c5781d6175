"""The adapter of Transformers: one forward for the tensors, a decoding loop for the tokens."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specrunner.catalogue.extras import install_command
from specrunner.engines.base import Capabilities, Capture, Engine, list_forward_patterns
from specrunner.engines.checkpoint_digest import start_describing
from specrunner.engines.denoising import OWN_LOOP, PassLog
from specrunner.engines.facts import describe_device, list_ids
from specrunner.engines.hf.batches import (
    denoise_together,
    follows_generate,
    generate_together,
    keep_first,
    pad_prompts,
)
from specrunner.engines.hf.checkpoint import (
    CASE_OPTIONS,
    CODE_OPTIONS,
    MODEL_OPTIONS,
    choose_device,
    load_model,
    load_tokenizer,
    resolve_folder,
    translate_errors,
)
from specrunner.engines.hooks import Geometry, Recorder, finish_tensors
from specrunner.engines.module_index import ModuleIndex
from specrunner.engines.name_maps import Entry, NameMap, decode_algorithms, describe_router, load_maps, tensor_templates
from specrunner.engines.prompts import encode_prompt
from specrunner.engines.versions import describe_versions
from specrunner.errors import ModelUnsupported
from specrunner.spec.model import Decode

if TYPE_CHECKING:
    import torch

    from specrunner.requests import Request, Session

PRELOAD = (
    "torch",
    "transformers",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.tokenization_auto",
)
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


class HfEngine(Engine):
    """Transformers in this process: one forward for the tensors, its own decoding loop for the tokens."""

    name = "hf"

    def __init__(self, session: Session, model_path: str, workspace: Path) -> None:
        super().__init__(session, model_path, workspace)
        self._model: Any = None
        self._tokenizer: Any = None
        self._map = NameMap("hf", "?", (), "num_hidden_layers", {})
        self._index: ModuleIndex | None = None

    @classmethod
    def capabilities(cls) -> Capabilities:
        """State what Transformers does; float64 is left out, since its norms and RoPE stay in float32."""
        dtypes = ("float32", "bfloat16", "float16")
        return Capabilities(
            dtypes={"cpu": dtypes, "cuda": dtypes},
            algorithms=("greedy", "low_confidence"),
            packages=("torch", "transformers"),
            install_hint=install_command("hf"),
            led=True,
            batches=True,
            lasting=True,
            preload=PRELOAD,
            model_options=MODEL_OPTIONS,
            case_options=CASE_OPTIONS,
            code_options=CODE_OPTIONS,
        )

    @classmethod
    def tensor_templates(cls, architecture: str) -> tuple[str, ...] | None:
        """Return what the architecture's name map knows."""
        return tensor_templates(cls.name, architecture)

    @classmethod
    def decode_algorithms(cls, architecture: str, options: Mapping[str, Any]) -> tuple[str, ...] | None:
        """Return what the architecture's name map says."""
        return decode_algorithms(cls.name, architecture)

    @classmethod
    def worker_environment(cls, session: Session, workspace: Path) -> dict[str, str]:
        """Give the session a place of its own for a checkpoint's code, which is copied before it is imported."""
        return {"HF_MODULES_CACHE": str(workspace / "modules")}

    def load(self) -> dict[str, Any]:
        """Load model and tokenizer; beside the usual facts come dtypes of parameters and buffers, flags and digests."""
        import torch

        options = dict(self.session.options)
        threads = options.pop("num_threads", None)
        if threads is not None:
            torch.set_num_threads(int(threads))
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        torch.manual_seed(0)
        silence_progress()

        device = choose_device(self.session.device)
        folder = resolve_folder(self.session.model, self.model_path, options)
        checkpoint = start_describing(folder)
        dtype = getattr(torch, self.session.dtype)
        self._model, unused = load_model(self.session.model, self.model_path, folder, dtype, device, options)
        own_code = options.get("specrunner_code") == "own"
        config = self._model.config if own_code else None
        self._tokenizer = load_tokenizer(self.session.model, self.model_path, folder, options, config)
        self._map = choose_map(type(self._model).__name__)
        return {
            "versions": describe_versions(PACKAGES),
            "architecture": type(self._model).__name__,
            "model_class": f"{type(self._model).__module__}.{type(self._model).__name__}",
            "device": describe_device(self._model.device),
            "dtype": self.session.dtype,
            "dtypes": count_dtypes(self._model),
            "attention_backend": self._model.config._attn_implementation,
            "experts_backend": self._experts_backend(),
            "name_map": self._map.family,
            "router": describe_router(self._map, self._model.config.get_text_config()),
            "parameters": sum(parameter.numel() for parameter in self._model.parameters()),
            "unused_weights": unused,
            "threads": torch.get_num_threads(),
            "flags": numerical_flags(),
            "options": dict(self.session.options),
            "patches": ["specrunner's own modeling files"] if own_code else [],
            "revision": folder.name if self.model_path == self.session.model.id else None,
            **checkpoint.result(),
        }

    def capture(self, request: Request) -> Capture:
        """Run one forward for the tensors, then a decode for the tokens."""
        import torch

        vocabulary = self._model.get_input_embeddings().weight.shape[0]
        with translate_errors("answer the request"), torch.inference_mode():
            ids = encode_prompt(request.prompt, self._tokenizer, vocabulary)
            capture = Capture(prompt_token_ids=ids)
            companions = [encode_prompt(prompt, self._tokenizer, vocabulary) for prompt in request.companions]
            if companions:
                self._check_batch(companions)
                capture.facts["batch"] = {"prompts": 1 + len(companions), "padding": "right"}
            patterns = list_forward_patterns(request)
            if patterns:
                capture.tensors = self._forward(ids, patterns, companions)
            if request.decode is not None:
                self._decode(capture, request.decode, request.tensors, companions)
            return capture

    def is_causal(self) -> bool:
        """Tell by how the architecture decodes."""
        return "greedy" in self._map.algorithms

    def capture_led(self, request: Request, reference: Mapping[str, Any], *, routing: bool) -> Capture:
        """Run one forward, each layer fed by the reference, with its experts replayed if asked."""
        from specrunner.engines.leading import lead_inputs, lead_routing

        index = self._index_modules()
        replayed = reference if routing else {}
        with lead_inputs(index, reference), lead_routing(index, replayed):
            return self.capture(request)

    def read_text(self, token_ids: Sequence[int]) -> str | None:
        """Decode with the checkpoint's tokenizer."""
        return None if self._tokenizer is None else str(self._tokenizer.decode(token_ids, skip_special_tokens=True))

    def close(self) -> None:
        """Drop model and tokenizer."""
        self._model = self._tokenizer = self._index = None

    def _check_batch(self, companions: Sequence[list[int]]) -> None:
        """Refuse a batch that a model with a canvas cannot have."""
        if getattr(self._model.config, "canvas_length", None) is not None and companions:
            raise ModelUnsupported(f"{type(self._model).__name__} is given one prompt at a time, with its canvas")

    def _forward(self, ids: list[int], patterns: Sequence[str], companions: Sequence[list[int]] = ()) -> dict[str, Any]:
        """Run the prompt once; return the tensors that `patterns` select."""
        index = self._index_modules()
        points = index.choose(patterns)
        recorder = Recorder(index, points, model_geometry(self._model.config.get_text_config()))
        try:
            inputs, rows = self._arrange_inputs(ids)
            if companions:
                inputs = pad_prompts([ids, *companions], self._model.device) | {"use_cache": False}
            self._model(**inputs)
            records = recorder.take()
        finally:
            recorder.remove()
        if companions:
            sizes = tuple(inputs["input_ids"].shape)
            records = {name: [keep_first(one, sizes, rows) for one in found] for name, found in records.items()}
        return finish_tensors(records, points, patterns, rows) | index.read_constants(points)

    def _index_modules(self) -> ModuleIndex:
        """Return the index of the loaded model's modules, as they are now."""
        if self._index is None:
            layers = getattr(self._model.config.get_text_config(), self._map.layers_key)
            self._index = ModuleIndex(self._model, self._map, layers)
        return self._index.refresh()

    def _arrange_inputs(self, ids: list[int]) -> tuple[dict[str, Any], int]:
        """Return the keywords of one forward over `ids`, and how many rows its tensors have.

        A model with a canvas (DiffusionGemma) gets the last `canvas_length` ids as its canvas, which it would draw at
        random otherwise, and the ids before them as its prompt; the tensors are of the canvas.
        """
        import torch

        tensor = torch.tensor([ids], device=self._model.device)
        canvas = getattr(self._model.config, "canvas_length", None)
        if canvas is None:
            return {"input_ids": tensor, "use_cache": False}, len(ids)
        if len(ids) <= canvas:
            raise ModelUnsupported(
                f"a prompt and a canvas of {canvas} tokens are needed, and there are {len(ids)} tokens"
            )
        return {"input_ids": tensor[:, :-canvas], "decoder_input_ids": tensor[:, -canvas:]}, canvas

    def _decode(
        self, capture: Capture, decode: Decode, patterns: tuple[str, ...], companions: Sequence[list[int]]
    ) -> None:
        """Generate tokens; put them, their facts and the wanted passes into `capture`."""
        if decode.algorithm not in self._map.algorithms:
            raise ModelUnsupported(
                f"{type(self._model).__name__} decodes by {' or '.join(self._map.algorithms)}, not {decode.algorithm}"
            )
        if decode.algorithm == "low_confidence":
            self._denoise(capture, decode, patterns, companions)
        elif companions:
            stops = set() if decode.ignore_eos else self._eos_ids()
            prompts = [capture.prompt_token_ids, *companions]
            capture.output_token_ids = generate_together(self._model, prompts, decode.max_new_tokens, stops)
        else:
            self._generate(capture, decode)
        stopped = set((capture.output_token_ids or [])[-1:]) & self._eos_ids()
        capture.facts["finish_reason"] = "stop" if stopped and not decode.ignore_eos else "length"

    def _generate(self, capture: Capture, decode: Decode) -> None:
        """Greedy decoding with the key-value cache; ties go to the lower id.

        `generate` is not used: a checkpoint's generation config may put penalties and sampling into it.
        """
        import torch

        stops = set() if decode.ignore_eos else self._eos_ids()
        tokens: list[int] = []
        step, cache = capture.prompt_token_ids, None
        while len(tokens) < decode.max_new_tokens and stops.isdisjoint(tokens[-1:]) and not self.has_stopped(tokens):
            inputs = torch.tensor([step], device=self._model.device)
            outputs = self._model(input_ids=inputs, past_key_values=cache, use_cache=True)
            cache = outputs.past_key_values
            if cache is None:
                raise ModelUnsupported(f"{type(self._model).__name__} keeps no key-value cache")
            step = [int(outputs.logits[0, -1].argmax())]
            tokens += step
        capture.output_token_ids = tokens

    def _denoise(
        self, capture: Capture, decode: Decode, patterns: tuple[str, ...], companions: Sequence[list[int]]
    ) -> None:
        """Block diffusion through the modeling file's own `generate`, or by our loop where that knows no such rule."""
        import torch

        log = PassLog(patterns)
        loop = OWN_LOOP if companions or not follows_generate(decode) else "the model's generate"
        if loop == OWN_LOOP:
            prompts = [capture.prompt_token_ids, *companions]
            capture.output_token_ids = denoise_together(self._model, prompts, decode, self._eos_ids(), log.add)
        else:
            if "on_pass" not in inspect.signature(self._model.generate).parameters:
                name = type(self._model).__name__
                raise ModelUnsupported(f"`generate` of {name} does not report its denoising passes")
            chosen = {"block_length": decode.block_length, "threshold": decode.threshold, "steps": decode.steps}
            if decode.ignore_eos:
                chosen["eos_id"] = -1
            output = self._model.generate(
                torch.tensor([capture.prompt_token_ids], device=self._model.device),
                max_new_tokens=decode.max_new_tokens,
                on_pass=log.add,
                **{name: value for name, value in chosen.items() if value is not None},
            )
            capture.output_token_ids = output[0].tolist()
        capture.tensors |= log.finish()
        capture.facts |= log.facts() | {"decode_loop": loop, "mask_token_id": self._model.config.mask_token_id}
        capture.facts["eos_token_ids"] = sorted(self._eos_ids())

    def _experts_backend(self) -> str | None:
        """Return how the experts are computed, None for a dense model."""
        has_experts = any(".router." in template for template in self._map.entries)
        return getattr(self._model.config, "_experts_implementation", None) if has_experts else None

    def _eos_ids(self) -> set[int]:
        """Return the ids that end a sequence: the generation config's, else the model config's."""
        generation = getattr(self._model, "generation_config", None)
        eos = getattr(generation, "eos_token_id", None)
        if eos is None:
            eos = self._model.config.get_text_config().eos_token_id
        return list_ids(eos)


def choose_map(architecture: str) -> NameMap:
    """Return the architecture's name map; without one, a map that knows the logits alone."""
    fallback = NameMap("hf", "none", (architecture,), "num_hidden_layers", {"logits": Entry(module="", index=0)})
    return load_maps("hf").get(architecture, fallback)


def model_geometry(config: Any) -> Geometry:
    """Read the attention's sizes off a model's configuration; where layers differ in them, those of the first."""
    heads = config.num_attention_heads
    layers = getattr(config, "per_layer_config", None)
    sizes = layers[0] if layers else config
    return Geometry(
        heads=heads,
        kv_heads=getattr(sizes, "num_key_value_heads", None) or heads,
        head_dim=getattr(sizes, "head_dim", None) or config.hidden_size // heads,
    )


def count_dtypes(model: torch.nn.Module) -> Mapping[str, dict[str, int]]:
    """Count elements by dtype, of `parameters` and `buffers`: a router or RoPE buffer that was rounded shows here."""
    counts: dict[str, Counter[str]] = {"parameters": Counter(), "buffers": Counter()}
    for kind, tensors in (("parameters", model.parameters()), ("buffers", model.buffers())):
        for tensor in tensors:
            counts[kind][str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    return {kind: dict(sorted(counter.items())) for kind, counter in counts.items()}


def numerical_flags() -> dict[str, Any]:
    """Return the switches of torch that change results."""
    import torch

    return {
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "cuda_reduced_precision_bf16": torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        "cuda_reduced_precision_fp16": torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
    }


def silence_progress() -> None:
    """Keep Transformers' progress bars out of the session's log."""
    import transformers

    disable: Any = transformers.utils.logging.disable_progress_bar
    disable()
