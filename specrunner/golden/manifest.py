"""A golden's manifest: where a capture came from, its tokens, and a digest of everything."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from specrunner.errors import GoldenError
from specrunner.requests import digest_of
from specrunner.spec.model import Case, Decode

VERSION = 1
"""Version of the golden's layout."""


LATER_OPTIONS = frozenset({"accept", "fallback", "steps", "exclude_mask_id", "eos_early_stop"})
"""Options of `decode` that the first goldens did not know."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a golden.

    Attributes:
        form: `full`, or `compact` (a `sketch.Sketch`).
        shape: of the whole tensor.
        dtype: of the whole tensor.
        content: SHA-256 of the whole tensor's little-endian bytes, -0.0 taken for 0.0.
        parts: SHA-256 by the name of what is stored of it.
    """

    form: str
    shape: tuple[int, ...]
    dtype: str
    content: str
    parts: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything about a golden but its tensors.

    Attributes:
        case: the suite's path below `specs` and the case's id, `llada2/tiny::capital[engine=hf]`.
        device: the device key.
        engine: the candidate's name.
        dtype: what it computed in.
        options: what the spec handed to the engine.
        facts: what the session said it ran: versions, model class, attention backend, patches, flags.
        model: `{id, recipe, path, revision}`, a path by its last part alone.
        model_digest: of the checkpoint, or "" when the engine states none.
        tokenizer_digest: likewise.
        spec_digest: of what the case asks of the engine, see `digest_case`.
        seed: of the projections.
        settings: `{full_tokens, top_k, projections}` as used.
        repeats: how many captures agreed.
        agreement: `bitwise`, or `tolerance`.
        reason: why it was made.
        date: ISO 8601, UTC.
        specrunner: the version that made it.
        prompt_token_ids: the ids the model saw.
        output_token_ids: the ids it generated, or None.
        tensors: by name.
        tensors_file: the name of the safetensors file beside the manifest, or "" when no tensor is kept.
        tensors_sha256: SHA-256 of that file.
        version: of the layout.
    """

    case: str
    device: str
    engine: str
    dtype: str
    options: Mapping[str, Any]
    facts: Mapping[str, Any]
    model: Mapping[str, Any]
    model_digest: str
    tokenizer_digest: str
    spec_digest: str
    seed: int
    settings: Mapping[str, Any]
    repeats: int
    agreement: str
    reason: str
    date: str
    specrunner: str
    prompt_token_ids: tuple[int, ...]
    output_token_ids: tuple[int, ...] | None
    tensors: Mapping[str, TensorEntry] = field(default_factory=dict)
    tensors_file: str = ""
    tensors_sha256: str = ""
    version: int = VERSION

    def to_text(self) -> str:
        """Return the manifest as JSON text, with a digest of itself as the last key."""
        content = asdict(self)
        text = json.dumps({**content, "digest": _digest(content)}, indent=1, ensure_ascii=False, allow_nan=False)
        return _join_numbers(text) + "\n"

    @classmethod
    def from_text(cls, text: str, where: str) -> Manifest:
        """Read a manifest.

        Args:
            text: what `to_text` wrote.
            where: its file, for messages.

        Raises:
            GoldenError: it is truncated, changed by hand, or of a later version.
        """
        try:
            content = json.loads(text)
            stated = content.pop("digest")
            version = content["version"]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise GoldenError(f"the golden {where} is not whole: {error}", help=RESTORE) from error
        if version != VERSION:
            raise GoldenError(
                f"the golden {where} has layout {version!r}, and this specrunner reads {VERSION}",
                help="use the specrunner that wrote it, or make it anew with --update-goldens",
            )
        if stated != _digest(content):
            raise GoldenError(f"the golden {where} was changed: its digest does not match", help=RESTORE)
        try:
            return cls._from_content(content)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise GoldenError(f"the golden {where} is not one: {error}", help=RESTORE) from error

    @classmethod
    def _from_content(cls, content: Mapping[str, Any]) -> Manifest:
        known = {entry.name for entry in fields(cls)}
        values = {name: value for name, value in content.items() if name in known}
        values["prompt_token_ids"] = tuple(values["prompt_token_ids"])
        output = values["output_token_ids"]
        values["output_token_ids"] = None if output is None else tuple(output)
        values["tensors"] = {
            name: TensorEntry(**{**entry, "shape": tuple(entry["shape"])}) for name, entry in values["tensors"].items()
        }
        return cls(**values)


_NUMBERS = re.compile(r"\[\n\s*(-?\d+(?:,\n\s*-?\d+)*)\n\s*\]")
"""A list of numbers over several lines; no string of JSON holds a line break."""

RESTORE = "restore it from version control, or make it anew with `specrunner run … --update-goldens`"


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()


def _join_numbers(text: str) -> str:
    """Put lists of numbers on one line: token ids read better, and take less room."""
    return _NUMBERS.sub(lambda match: "[" + " ".join(match.group(1).split()) + "]", text)


def digest_case(case: Case) -> str:
    """Digest what a case asks of its engine, as far as it decides what must come out.

    Options and device are left out on purpose: another thread count or attention backend must come to the same numbers,
    and that is what a golden is for. So are the patterns of tensors and their tolerance.
    """
    model = case.model
    source = [model.id, model.recipe, model.revision, model.path is not None]
    prompt = asdict(case.prompt)
    decode = describe_decode(case.decode) if case.decode else None
    content: list[Any] = [source, prompt, decode, case.candidate.engine, case.candidate.dtype]
    if case.at is not None or case.batch:
        content.append([asdict(case.at) if case.at else None, [asdict(prompt) for prompt in case.batch]])
    return digest_of(content)


def describe_decode(decode: Decode) -> dict[str, Any]:
    """Return a decode's fields; options that came later stand only where they are not the default, as goldens knew."""
    return {
        name: value
        for name, value in asdict(decode).items()
        if name not in LATER_OPTIONS or value != Decode.__dataclass_fields__[name].default
    }
