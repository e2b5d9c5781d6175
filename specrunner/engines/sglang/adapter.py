"""The adapter of SGLang: in the worker or as a full Engine, read from inside; it generates the tokens itself."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specrunner.engines.base import Capabilities, Capture, Engine, list_forward_patterns
from specrunner.engines.checkpoint_digest import start_describing
from specrunner.engines.checkpoint_files import has_tokenizer
from specrunner.engines.denoising import PassLog
from specrunner.engines.facts import describe_device, make_plain
from specrunner.engines.hf.checkpoint import check_device, resolve_folder
from specrunner.engines.name_maps import decode_algorithms, tensor_templates
from specrunner.engines.prompts import encode_prompt
from specrunner.engines.sglang.failures import translate_failures
from specrunner.engines.sglang.models import check_model_class, use_model_alone
from specrunner.engines.sglang.notes import Note, Order, SeenPass, assemble_tensors, check_notes, raise_failure
from specrunner.engines.sglang.options import (
    ALGORITHMS,
    CASE_OPTIONS,
    CHECKPOINT_OPTIONS,
    MASK_ID,
    MODEL_OPTIONS,
    SglangSetup,
    plan_environment,
    plan_setup,
)
from specrunner.engines.sglang.plugin import choose_map
from specrunner.engines.trust import read_hub_options
from specrunner.engines.versions import describe_versions
from specrunner.errors import CaptureIncomplete, ModelUnavailable, ModelUnsupported
from specrunner.spec.model import Decode

if TYPE_CHECKING:
    from specrunner.engines.sglang.runner import Runner
    from specrunner.engines.sglang.server import Server
    from specrunner.requests import Request, Session

PRELOAD = ("torch", "transformers", "sglang.benchmark.one_batch")
PACKAGES = ("sglang", "torch", "transformers", "triton", "safetensors")
STATED_VARIABLES = ("SGLANG_USE_CPU_ENGINE", "TORCHDYNAMO_DISABLE", "SGLANG_ENABLE_DETERMINISTIC_INFERENCE")
ACCEPT_ALL = -1.0
"""A threshold for requests that ask for no tokens: SGLang generates a block all the same, in one pass."""


class SglangEngine(Engine):
    """SGLang, one request at a time.

    Attributes:
        setup: how the session drives SGLang.
        fault: the bug that the next request's order plants (`specrunner.faults`), or None.
    """

    name = "sglang"

    def __init__(self, session: Session, model_path: str, workspace: Path) -> None:
        super().__init__(session, model_path, workspace)
        self.setup = SglangSetup("runner", {})
        self.fault: str | None = None
        self._driver: Runner | Server | None = None
        self._tokenizer: Any = None
        self._described: Mapping[str, Any] = {}
        self._algorithms: tuple[str, ...] = ("greedy",)
        self._requests = 0

    @classmethod
    def capabilities(cls) -> Capabilities:
        """State what SGLang does; on a CPU in PyTorch code of its own, without compiled kernels."""
        dtypes = ("float32", "bfloat16", "float16")
        return Capabilities(
            dtypes={"cpu": dtypes, "cuda": dtypes},
            algorithms=("greedy", "low_confidence"),
            packages=("torch", "transformers", "sglang"),
            environments=("sglang-cuda", "sglang-cpu"),
            install_hint="specrunner engines install sglang",
            batches=True,
            lasting=True,
            preload=PRELOAD,
            model_options=MODEL_OPTIONS,
            case_options=CASE_OPTIONS,
            checkpoint_options=CHECKPOINT_OPTIONS,
        )

    @classmethod
    def decode_rules(cls, options: Mapping[str, Any]) -> Mapping[str, tuple[Any, ...]]:
        """State what SGLang's LowConfidence does; with a step a token, `schedule` comes to the same as `best`."""
        return {
            "accept": ("gt",),
            "fallback": ("best", "schedule"),
            "steps": (None,),
            "exclude_mask_id": (False,),
            "eos_early_stop": (False,),
        }

    @classmethod
    def tensor_templates(cls, architecture: str) -> tuple[str, ...] | None:
        """Read them off the architecture's name map."""
        return tensor_templates(cls.name, architecture)

    @classmethod
    def decode_algorithms(cls, architecture: str, options: Mapping[str, Any]) -> tuple[str, ...] | None:
        """Return what the architecture's name map says."""
        return decode_algorithms(cls.name, architecture)

    @classmethod
    def worker_environment(cls, session: Session, workspace: Path) -> dict[str, str]:
        """Keep caches and sockets in the workspace; on a CPU, put the stand-ins on the import path."""
        return plan_environment(session, workspace)

    def load(self) -> dict[str, Any]:
        """Load the model into the worker, or start the full Engine around it."""
        folder = resolve_folder(self.session.model, self.model_path, self.session.options)
        checkpoint = start_describing(folder)
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelUnavailable(f"config.json of {self.session.model.label} cannot be read: {error}") from error
        architecture = next(iter(config.get("architectures") or ()), "?")
        use_model_alone(architecture, self.workspace)
        name_map = choose_map(architecture)
        self._algorithms = name_map.algorithms
        setup = plan_setup(self.session, self.model_path, config, self._algorithms)
        self.setup = setup
        check_device(setup.keywords["device"])
        keywords = dict(setup.keywords)
        if setup.algorithm is not None:
            keywords["dllm_algorithm_config"] = write_algorithm(setup.algorithm, self.workspace)
        label = self.session.model.label
        with translate_failures(f"load {label}"):
            import torch

            torch.set_float32_matmul_precision("highest")
            if setup.mode == "engine":
                from specrunner.engines.sglang.server import Server

                mask_id = setup.mask_id if setup.mask_id != MASK_ID else None
                self._driver = Server(keywords, self.workspace, label, mask_id, setup.block_length)
            else:
                from specrunner.engines.sglang.runner import Runner

                self._driver = Runner(keywords)
            self._tokenizer = load_tokenizer(folder, self.model_path, self.session)
        self._described = self._driver.described
        check_model_class(self._described["model_class"], architecture)
        return {
            "versions": describe_versions(PACKAGES),
            "architecture": architecture,
            "model_class": self._described["model_class"],
            "device": describe_device(setup.keywords["device"]),
            "dtype": self.session.dtype,
            "dtypes": {"parameters": self._described["dtypes"]},
            "attention_backend": self._described["attention_backend"],
            "kv_cache_dtype": self._described["kv_cache_dtype"],
            "mode": setup.mode,
            "runner": self._described["runner"],
            "name_map": name_map.family,
            "router": self._described["router"],
            "parameters": self._described["parameters"],
            "tensor_parallel_size": self._described["tensor_parallel_size"],
            "prefix_caching": not setup.keywords["disable_radix_cache"],
            "block_length": setup.block_length,
            "mask_token_id": None if setup.block_length is None else setup.read_mask_id(),
            "max_total_tokens": self._described["max_total_tokens"],
            "threads": self._described["threads"],
            "environment": {name: os.environ.get(name) for name in STATED_VARIABLES if name in os.environ},
            "options": dict(self.session.options),
            "engine_arguments": {name: make_plain(value) for name, value in keywords.items() if name != "model_path"},
            "patches": list_patches(setup),
            **checkpoint.result(),
        }

    def capture(self, request: Request) -> Capture:
        """Send the request through SGLang once: the tensors are of the forwards that also begin its tokens."""
        decode = request.decode
        patterns = list_forward_patterns(request)
        wants_passes = len(patterns) < len(request.tensors)
        self._check_decode(decode)
        assert self._driver is not None
        with translate_failures("answer the request"):
            ids = encode_prompt(request.prompt, self._tokenizer, self._described["vocabulary"])
            vocabulary = self._described["vocabulary"]
            companions = [encode_prompt(prompt, self._tokenizer, vocabulary) for prompt in request.companions]
            self._check_batch(len(companions))
            self._requests += 1
            order = Order(
                number=self._requests,
                patterns=patterns,
                prompt_length=len(ids),
                keep_logits=wants_passes,
                threshold=decode.threshold if decode is not None else ACCEPT_ALL,
                fault=self.fault,
                judged=f"specrunner-{self._requests}" if companions else None,
            )
            new_tokens = decode.max_new_tokens if decode is not None else 1
            ignore_eos = decode.ignore_eos if decode is not None else True
            output, facts, notes = self._driver.run(ids, order, new_tokens, ignore_eos, self.has_stopped, companions)
            capture = Capture(prompt_token_ids=ids)
            raise_failure(notes)
            if companions:
                capture.facts["batch"] = {"prompts": 1 + len(companions), "forwards": count_together(notes)}
            if patterns:
                check_notes(notes)
                capture.tensors = assemble_tensors(notes, patterns, len(ids), self._described)
            if decode is not None:
                capture.output_token_ids = self._cut_output(output, decode)
                capture.facts |= facts
                if decode.algorithm == "low_confidence":
                    self._add_passes(capture, request, notes)
        return capture

    def is_causal(self) -> bool:
        """Tell by how the session decodes."""
        return "greedy" in self._algorithms

    def read_text(self, token_ids: Sequence[int]) -> str | None:
        """Decode with the checkpoint's tokenizer."""
        return None if self._tokenizer is None else str(self._tokenizer.decode(token_ids, skip_special_tokens=True))

    def close(self) -> None:
        """End what was started."""
        if self._driver is not None:
            self._driver.close()
        self._driver = None

    def _check_decode(self, decode: Decode | None) -> None:
        """Refuse what this session cannot do.

        Raises:
            ModelUnsupported: an algorithm that is not the model's, or another block length than the session's.
        """
        if decode is None:
            return
        if decode.algorithm not in self._algorithms:
            ways = " or ".join(self._algorithms)
            raise ModelUnsupported(f"{self._described['class_name']} decodes by {ways}, not {decode.algorithm}")
        length = self.setup.block_length
        if decode.block_length is not None and decode.block_length != length:
            raise ModelUnsupported(
                f"the request decodes in blocks of {decode.block_length}, and sglang runs blocks of {length}",
                help=f"set the option specrunner_block_length: {decode.block_length}",
            )

    def _check_batch(self, companions: int) -> None:
        """Make sure that a block-diffusion session takes all prompts at once."""
        requests = int(self.setup.keywords.get("max_running_requests") or 1)
        if self.setup.algorithm is not None and companions >= requests:
            raise ModelUnsupported(
                f"a batch of {companions + 1} prompts, and the session takes {requests} at a time",
                help=f"set max_running_requests: {companions + 1} in the engine's options",
            )

    def _cut_output(self, output: Sequence[int], decode: Decode) -> list[int]:
        """Keep the ids up to and including the first end of sequence, at most as many as were asked for."""
        stops = set() if decode.ignore_eos else set(self._described["eos_token_ids"])
        kept = list(output[: decode.max_new_tokens])
        end = next((index for index, token in enumerate(kept) if token in stops), len(kept))
        return kept[: end + 1]

    def _add_passes(self, capture: Capture, request: Request, notes: Sequence[Sequence[Note]]) -> None:
        """Put the denoising passes, which every rank has seen alike, into `capture`."""
        log = PassLog(request.tensors)
        refreshes = 0
        for note in notes[0] if notes else ():
            if note.kind == "pass":
                log.add(SeenPass(note))
            refreshes += note.kind == "refresh"
        capture.tensors |= log.finish()
        capture.facts |= log.facts() | {"refresh_forwards": refreshes}
        capture.facts |= {
            "decode_loop": f"sglang's {ALGORITHMS['low_confidence']}",
            "mask_token_id": self.setup.read_mask_id(),
            "eos_token_ids": sorted(self._described["eos_token_ids"]),
        }
        if not capture.facts["passes"]:
            raise CaptureIncomplete("the hook on sglang's denoising step did not fire")


def count_together(notes: Sequence[Sequence[Note]]) -> int:
    """Count the forwards and steps in which the judged request had company.

    Raises:
        CaptureIncomplete: there is none, though something was noted.
    """
    seen = [note.facts["requests"] for note in (notes[0] if notes else ()) if "requests" in note.facts]
    together = sum(int(requests) > 1 for requests in seen)
    if seen and not together:
        raise CaptureIncomplete("sglang answered the prompts of a batch one after the other")
    return together


def load_tokenizer(folder: Path, path: str, session: Session) -> Any:
    """Load the checkpoint's tokenizer as SGLang does, at the model's revision, or return None where it has none."""
    if not has_tokenizer(folder):
        return None
    from sglang.srt.utils.hf_transformers_utils import get_tokenizer

    # What SGLang calls `tokenizer_revision` does not reach Transformers, which would take the default branch.
    model = session.model
    keywords = read_hub_options(session.options)[1]
    if model.revision is not None:
        keywords["revision"] = model.revision
    return get_tokenizer(path, trust_remote_code=model.trust_remote_code, tokenizer_revision=model.revision, **keywords)


def write_algorithm(parameters: Mapping[str, Any], workspace: Path) -> str:
    """Write the parameters of a diffusion algorithm as SGLang reads them; return the file."""
    import yaml

    file = workspace / "dllm_algorithm.yaml"
    file.write_text(yaml.safe_dump(dict(parameters)), encoding="utf-8")
    return str(file)


def list_patches(setup: SglangSetup) -> list[str]:
    """Say what the adapter changes in SGLang, for the reports."""
    patches = []
    if setup.mask_id is not None and setup.mask_id != MASK_ID:
        patches.append(f"mask token {setup.mask_id}, not {MASK_ID}")
    if setup.algorithm is not None:
        patches.append("threshold set per request")
        patches.append("tail of an unaligned prompt also forwarded alone")
    return patches
