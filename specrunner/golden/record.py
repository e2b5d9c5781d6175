"""From captures to a golden: who may become one, and what is written of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import specrunner
from specrunner.checks.evidence import LoadedCapture
from specrunner.errors import GoldenError
from specrunner.golden.check import check_golden
from specrunner.golden.kept import Golden, KeptTensor, digest_content, keep_tensor, pack_tensors
from specrunner.golden.keys import Slot, find_slot, name_device
from specrunner.golden.manifest import Manifest, digest_case
from specrunner.golden.store import State, write_golden
from specrunner.results import CheckResult
from specrunner.secrets import own_redactor
from specrunner.spec.model import Case
from specrunner.spec.tensor_names import select_names

BITWISE, TOLERANCE = "bitwise", "tolerance"

_FLAGS = ("attention_backend", "model_class", "architecture", "patches", "options", "runner", "environment")
_KEPT_FACTS = ("versions", "device", "weights_digested", *_FLAGS)


@dataclass(frozen=True, slots=True)
class Captured:
    """One answer of the candidate, and what its session said of itself."""

    capture: LoadedCapture
    facts: Mapping[str, Any]


def make_golden(
    case: Case,
    captured: Sequence[Captured],
    *,
    reason: str,
    reference: LoadedCapture | None = None,
    peer: LoadedCapture | None = None,
    now: datetime | None = None,
) -> Golden:
    """Make a golden of a case from repeated captures.

    Args:
        case: a case with a golden, whose own checks passed.
        captured: the answers, the first of which becomes the golden; all must agree with it, bit by bit or within the
            case's own tolerance.
        reason: why.
        reference: this run's reference, for the noise floor that a repeat may differ by.
        peer: this run's peer, likewise.
        now: the date to put down.

    Raises:
        GoldenError: NaN or infinity, repeats that do not agree, or nothing to keep.
    """
    assert case.golden is not None and captured
    first, facts = captured[0].capture, captured[0].facts
    slot = find_slot(case, name_device(str(facts.get("device", "unknown"))))
    seed = make_seed(slot)
    names = select_names(case.tensors, first.tensors)
    tensors = {name: keep_tensor(name, first.tensors[name], case.golden, seed) for name in names}
    if not tensors and first.output_token_ids is None:
        raise GoldenError("there is nothing to keep: no tensor and no tokens", kind="golden-refused")
    golden = Golden(slot, _describe(case, facts, first, tensors, slot, seed, reason, len(captured), now), tensors)
    agreement = BITWISE
    for number, other in enumerate(captured[1:], 2):
        if not _is_same(golden, other.capture, case):
            agreement = TOLERANCE
            wrong = _find_disagreement(check_golden(case, other.capture, golden, reference, peer))
            if wrong:
                message = f"repeat {number} of {len(captured)} does not agree with the first: {wrong}"
                advice = "find out why the engine does not repeat itself, or widen the case's tolerance"
                raise GoldenError(message, help=advice, kind="golden-refused")
    return replace(golden, manifest=replace(golden.manifest, agreement=agreement))


def write_new(golden: Golden) -> Golden:
    """Write a golden where a review will find it, beside the accepted one.

    Raises:
        GoldenError: it is too large, or the folder is read-only or full.
    """
    manifest = write_golden(golden.slot, State.NEW, golden.manifest, pack_tensors(golden.tensors))
    return Golden(golden.slot, manifest, golden.tensors)


def make_seed(slot: Slot) -> int:
    """Return the seed of a golden's projections, which follows its place, so that two of one place can be compared."""
    return int.from_bytes(hashlib.sha256(f"{slot.suite}/{slot.case}".encode()).digest()[:6], "big")


def _is_same(golden: Golden, other: LoadedCapture, case: Case) -> bool:
    """Tell whether a repeat is the golden bit by bit."""
    manifest = golden.manifest
    output = None if other.output_token_ids is None else tuple(other.output_token_ids)
    if tuple(other.prompt_token_ids) != manifest.prompt_token_ids or output != manifest.output_token_ids:
        return False
    names = select_names(case.tensors, other.tensors)
    if set(names) != set(golden.tensors):
        return False
    return all(is_equal(golden.tensors[name], other, name) for name in names)


def is_equal(kept: KeptTensor, capture: LoadedCapture, name: str) -> bool:
    """Tell whether a capture's tensor has the very content of a kept one."""
    source = capture.tensors[name]
    same_kind = source.shape == kept.entry.shape and str(source.dtype).removeprefix("torch.") == kept.entry.dtype
    return same_kind and digest_content(source) == kept.entry.content


def _find_disagreement(checks: Sequence[CheckResult]) -> str:
    """Return the first check that fails; a rule that a compact golden cannot judge has no evidence of agreement."""
    check = next((check for check in checks if not check.passed), None)
    return f"{check.subject}: {check.message}" if check else ""


def _describe(
    case: Case,
    facts: Mapping[str, Any],
    capture: LoadedCapture,
    tensors: Mapping[str, KeptTensor],
    slot: Slot,
    seed: int,
    reason: str,
    repeats: int,
    now: datetime | None,
) -> Manifest:
    choice, model = case.golden, case.model
    assert choice is not None
    output = capture.output_token_ids
    redact = own_redactor().redact_values
    return Manifest(
        case=f"{slot.suite}::{case.id}",
        device=slot.device,
        engine=case.candidate.engine,
        dtype=case.candidate.dtype,
        options=redact(dict(case.candidate.options)),
        facts=redact({name: facts[name] for name in _KEPT_FACTS if name in facts}),
        model={
            "id": model.id,
            "recipe": model.recipe,
            "path": model.label if model.path else None,
            "revision": model.revision,
        },
        model_digest=str(facts.get("model_digest") or ""),
        tokenizer_digest=str(facts.get("tokenizer_digest") or ""),
        spec_digest=digest_case(case),
        seed=seed,
        settings=choice.settings,
        repeats=repeats,
        agreement=BITWISE,
        reason=reason,
        date=(now or datetime.now(UTC)).replace(microsecond=0).isoformat(),
        specrunner=specrunner.__version__,
        prompt_token_ids=tuple(int(token) for token in capture.prompt_token_ids),
        output_token_ids=None if output is None else tuple(int(token) for token in output),
        tensors={name: kept.entry for name, kept in tensors.items()},
    )
