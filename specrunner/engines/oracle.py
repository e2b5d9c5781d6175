"""The engine `oracle`: our own LLaDA2 in plain float64, the reference that owes nothing to an engine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specrunner.catalogue.extras import install_command
from specrunner.engines.base import Capabilities, Capture, Engine, list_forward_patterns
from specrunner.engines.checkpoint_digest import describe_checkpoint
from specrunner.engines.denoising import DEFAULT_THRESHOLD, OWN_LOOP, PassLog, rule_options
from specrunner.engines.plain_tokenizer import PlainTokenizer
from specrunner.engines.prompts import encode_prompt
from specrunner.engines.versions import describe_versions
from specrunner.errors import CaptureIncomplete, EngineOutOfMemory, ModelUnavailable, ModelUnsupported
from specrunner.spec.model import Decode
from specrunner.spec.tensor_names import ROUTER_BIAS, TEMPLATES, advise_unmatched, match_name

if TYPE_CHECKING:
    from specrunner.models.llada2 import LLaDA2
    from specrunner.requests import Request, Session

ARCHITECTURE = "LLaDA2MoeModelLM"
GEOMETRIES = ("block_causal", "causal", "bidirectional")


class OracleEngine(Engine):
    """Plain numpy. Its options shape the forward over a prompt: `attention` (of `GEOMETRIES`) and `block_length`."""

    name = "oracle"

    def __init__(self, session: Session, model_path: str, workspace: Path) -> None:
        super().__init__(session, model_path, workspace)
        self._model: LLaDA2 | None = None
        self._tokenizer: PlainTokenizer | None = None
        self._attention: Any = session.options.get("attention", "block_causal")
        self._lead: dict[str, Any] = {}
        self._block_length: int | None = session.options.get("block_length")

    @classmethod
    def capabilities(cls) -> Capabilities:
        """State what the oracle does: one dtype on one device."""
        return Capabilities(
            dtypes={"cpu": ("float64",)},
            algorithms=("low_confidence",),
            packages=("numpy", "tokenizers"),
            install_hint=install_command("hf"),
            led=True,
            lasting=True,
        )

    @classmethod
    def tensor_templates(cls, architecture: str) -> tuple[str, ...] | None:
        """Return every name of the vocabulary for LLaDA2; the oracle knows no other architecture."""
        return TEMPLATES if architecture == ARCHITECTURE else None

    def load(self) -> dict[str, Any]:
        """Open the checkpoint; weights are read when they are needed."""
        from specrunner.models.llada2 import LLaDA2

        self._check_options()
        folder = Path(self.model_path)
        architecture = read_architecture(folder, self.session.model.label)
        with translate_errors(f"load {self.session.model.label}"):
            self._model = LLaDA2.load(folder)
            self._tokenizer = PlainTokenizer.load(folder)
        return {
            "versions": describe_versions(("specrunner", "numpy", "tokenizers")),
            "architecture": architecture,
            "model_class": f"{LLaDA2.__module__}.{LLaDA2.__name__}",
            "device": "cpu",
            "dtype": "float64",
            "attention_backend": f"numpy, {self._attention}",
            "router": {
                "score": "sigmoid",
                "bias": True,
                "experts_per_token": self._model.config.num_experts_per_tok,
                "n_group": self._model.config.n_group,
                "topk_group": self._model.config.topk_group,
            },
            "options": dict(self.session.options),
            "patches": [],
            **describe_checkpoint(folder),
        }

    def capture(self, request: Request) -> Capture:
        """Run one forward for the tensors, then a decode for the tokens."""
        assert self._model is not None, "capture before load"
        with translate_errors("answer the request"):
            ids = encode_prompt(request.prompt, self._tokenizer, self._model.config.vocab_size)
            capture = Capture(prompt_token_ids=ids)
            patterns = list_forward_patterns(request)
            if patterns:
                capture.tensors = self._forward(self._model, ids, patterns)
            if request.decode is not None:
                self._decode(self._model, capture, request.decode, request.tensors)
            return capture

    def capture_led(self, request: Request, reference: Mapping[str, Any], *, routing: bool) -> Capture:
        """Run one forward, each layer fed by the reference, with its experts replayed if asked."""
        self._lead = {
            name: tensor.double().numpy() if tensor.is_floating_point() else tensor.numpy()
            for name, tensor in reference.items()
            if routing or ".router." not in name
        }
        try:
            return self.capture(request)
        finally:
            self._lead = {}

    def close(self) -> None:
        """Drop the model."""
        self._model = self._tokenizer = None

    def is_causal(self) -> bool:
        """Tell by the attention of this session."""
        return bool(self._attention == "causal")

    def _check_options(self) -> None:
        unknown = sorted(set(self.session.options) - {"attention", "block_length"})
        if unknown:
            raise ModelUnsupported(
                f"the oracle has no option {', '.join(unknown)}", help="its options are attention and block_length"
            )
        if self._attention not in GEOMETRIES:
            raise ModelUnsupported(
                f"the oracle has no attention {self._attention!r}", help=f"it knows {', '.join(GEOMETRIES)}"
            )

    def _forward(self, model: LLaDA2, ids: list[int], patterns: Sequence[str]) -> dict[str, Any]:
        """Run the prompt once; return the tensors that `patterns` select."""
        tensors: dict[str, Any] = {}
        used: set[str] = set()
        seen: list[str] = []

        def keep(name: str, value: Any) -> None:
            seen.append(name)
            matching = {pattern for pattern in patterns if match_name(pattern, name)}
            if matching:
                used.update(matching)
                tensors[name] = value.copy()

        model.forward(ids, attention=self._attention, block_length=self._block_length, on_tensor=keep, lead=self._lead)
        for pattern in patterns:
            if pattern not in used:
                advice = advise_unmatched(pattern, seen)
                raise CaptureIncomplete(f"no tensor of this model matches {pattern!r}", help=advice)
        for name in [name for name in tensors if name.endswith(".router.logits")]:
            layer = name.split(".")[1]
            tensors[ROUTER_BIAS.replace("{i}", layer)] = model.read_router_bias(int(layer)).copy()
        return tensors

    def _decode(self, model: LLaDA2, capture: Capture, decode: Decode, patterns: tuple[str, ...]) -> None:
        """Generate tokens; put them, their facts and the wanted passes into `capture`."""
        if decode.algorithm != "low_confidence":
            raise ModelUnsupported(f"{ARCHITECTURE} decodes by low_confidence, not {decode.algorithm}")
        if self._attention != "block_causal":
            raise ModelUnsupported(f"block diffusion needs block_causal attention, not {self._attention}")
        log = PassLog(patterns)
        capture.output_token_ids = model.decode(
            capture.prompt_token_ids,
            max_new_tokens=decode.max_new_tokens,
            block_length=decode.block_length,
            threshold=DEFAULT_THRESHOLD if decode.threshold is None else decode.threshold,
            eos_id=-1 if decode.ignore_eos else None,
            on_pass=log.add,
            **rule_options(decode),
        )
        capture.tensors |= log.finish()
        stopped = capture.output_token_ids[-1:] == [model.config.eos_token_id] and not decode.ignore_eos
        capture.facts |= log.facts() | {"finish_reason": "stop" if stopped else "length"}
        capture.facts |= {
            "decode_loop": OWN_LOOP,
            "mask_token_id": model.config.mask_token_id,
            "eos_token_ids": [model.config.eos_token_id],
        }


def read_architecture(folder: Path, label: str) -> str:
    """Return the architecture that a checkpoint states.

    Raises:
        ModelUnavailable: no readable `config.json`.
        ModelUnsupported: it is not LLaDA2.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelUnavailable(
            f"no readable config.json in {folder}", help="the oracle loads directories, not hub ids"
        ) from error
    architectures = config.get("architectures") or ["none"]
    if ARCHITECTURE not in architectures:
        raise ModelUnsupported(f"the oracle computes {ARCHITECTURE}, and {label} is {architectures[0]}")
    return ARCHITECTURE


@contextmanager
def translate_errors(what: str) -> Iterator[None]:
    """Turn numpy's and the model's own complaints into an EngineError."""
    try:
        yield
    except MemoryError as error:
        raise EngineOutOfMemory(f"out of memory while trying to {what}: {error}") from error
    except OSError as error:
        raise ModelUnavailable(f"could not {what}: {error}") from error
    except ValueError as error:
        raise ModelUnsupported(f"could not {what}: {error}") from error
