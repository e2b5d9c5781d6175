"""What engines are asked: sessions, requests, and the captures that they name; equal ones have equal keys."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cache, cached_property
from typing import Any

from specrunner.spec.model import Decode, DenoisingState, Evaluation, Model, Prompt

DTYPE_BYTES: Mapping[str, int] = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number, by the dtype of a session."""


def digest_of(value: Any) -> str:
    """Return the first 16 hex digits of the SHA-256 of `value` as canonical JSON."""
    return hashlib.sha256(_CANONICAL.encode(value).encode()).hexdigest()[:16]


def _open(value: Any) -> Any:
    """Return what JSON has no word for in other words; of a dataclass just the fields, which `asdict` would copy."""
    kind: Any = type(value)
    names = field_names(kind)
    return list(value) if names is None else {name: getattr(value, name) for name in names}


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=_open)


@cache
def field_names(kind: Any) -> tuple[str, ...] | None:
    """Return the names of a dataclass's fields; None for any other class."""
    return tuple(field.name for field in fields(kind)) if is_dataclass(kind) else None


@dataclass(frozen=True)
class Session:
    """One live engine process: everything that must be equal for two cases to share a loaded model.

    Attributes:
        engine: the engine's name.
        environment: name and digest of the interpreter that it runs in, e.g. `vllm-cpu-a2ebad49a7eb`, or "".
        model: the checkpoint.
        dtype: `float64`, `float32`, `bfloat16` or `float16`.
        device: `cpu` or `cuda`.
        options: what the spec hands to the engine as it is.
    """

    engine: str
    environment: str
    model: Model
    dtype: str
    device: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        """Digest of all fields."""
        return digest_of(self)

    @property
    def label(self) -> str:
        """`hf glass-0.8m float32 cpu`, for people."""
        return f"{self.engine} {self.model.label} {self.dtype} {self.device}"

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object from which `from_json` makes an equal session."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Session:
        """Rebuild a session in the worker."""
        return cls(**{**data, "model": Model(**data["model"])})


@dataclass(frozen=True, slots=True)
class Evidence:
    """A reference to one capture: which session serves which request."""

    session: str
    request: str


@dataclass(frozen=True)
class Request:
    """One input with the tensors to capture and the decoding to do.

    A request with `tensors` asks for one forward over the whole prompt, with a row per prompt token in every tensor
    (`passes.*` tensors come from the decode instead). `decode` asks for generated tokens. `fault` names the planted bug
    (`specrunner.faults`) that the engine has while it answers, and no longer. `evaluation` asks for a benchmark's
    answers instead, `decode` then saying how they are generated.
    `repeat` numbers the times that the same is asked again, to see whether the answers agree.

    The other fields ask for more than one forward; `engines.answering` makes them of plain requests, so that every
    engine has them.

    Attributes:
        prompt: text, chat messages or token ids.
        tensors: patterns of tensor names (`match_name`), each of which must select one at least.
        decode: how to generate, or None to generate nothing.
        fault: a planted bug's name, or None.
        evaluation: a benchmark, or None.
        repeat: 0 for what is asked once.
        trace: also give `steps.logits` [generated tokens, vocabulary], the logits at each generated token's place.
        probe: exchange each prompt token in turn and give `probe.{tensor}` [tokens, tokens], how far each row of the
            tensors changes with each token.
        follow: a capture to be led by, with `lead` saying how.
        lead: `tokens`: after a free run, decode again from the reference's tokens behind each mismatch; `passes`: one
            forward at every denoising state of the reference; `inputs`: feed each layer with the reference's input;
            `routing`: the same, and replay the reference's choice of experts; `state`: take the tensors at the state
            that the followed capture was taken at.
        at: take the tensors at this state of one's own decode; the capture's prompt ids are then the state's tokens.
        companions: prompts to be answered in the same batch; nothing of them is captured.
    """

    prompt: Prompt
    tensors: tuple[str, ...] = ()
    decode: Decode | None = None
    fault: str | None = None
    evaluation: Evaluation | None = None
    repeat: int = 0
    trace: bool = False
    probe: bool = False
    follow: Evidence | None = None
    lead: str | None = None
    at: DenoisingState | None = None
    companions: tuple[Prompt, ...] = ()

    @cached_property
    def key(self) -> str:
        """Digest of all fields."""
        return digest_of(self)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object from which `from_json` makes an equal request."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Request:
        """Rebuild a request in the worker."""
        decode = Decode(**data["decode"]) if data["decode"] is not None else None
        evaluation = dict(data["evaluation"]) if data["evaluation"] is not None else None
        if evaluation is not None:
            evaluation["tasks"] = tuple(evaluation["tasks"])
            if isinstance(evaluation["samples"], list):
                evaluation["samples"] = tuple(evaluation["samples"])
        follow = Evidence(**data["follow"]) if data["follow"] is not None else None
        fields = {**data, "prompt": _read_prompt(data["prompt"]), "tensors": tuple(data["tensors"]), "decode": decode}
        fields["at"] = None if data["at"] is None else DenoisingState(**data["at"])
        fields["companions"] = tuple(map(_read_prompt, data["companions"]))
        fields["evaluation"] = None if evaluation is None else Evaluation(**evaluation)
        return cls(**{**fields, "follow": follow})


def _read_prompt(data: Mapping[str, Any]) -> Prompt:
    lists = {name: tuple(data[name]) for name in ("messages", "token_ids") if data[name] is not None}
    return Prompt(**{**data, **lists})
