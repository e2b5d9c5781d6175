"""A block-diffusion decode step by step: whether its sampler kept to the rule, and where two decodes part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from specrunner.checks.measurements import encode_number
from specrunner.checks.sampling import SamplingRule, Sides, decide, object_to
from specrunner.checks.sources import TensorSource
from specrunner.results import CheckResult
from specrunner.spec.model import Decode

SUBJECT = "trajectory"
MOST_STEPS = 256
"""How many steps are recorded."""


@dataclass(frozen=True, slots=True)
class Walk:
    """What is known of one decode.

    Attributes:
        prompt: token ids.
        output: generated ids, or None.
        tensors: with `passes.{i}.logits`.
        facts: the request's: `trajectory`, `mask_token_id`, `eos_token_ids`.
    """

    prompt: Sequence[int]
    output: Sequence[int] | None
    tensors: Mapping[str, TensorSource]
    facts: Mapping[str, Any]

    @property
    def steps(self) -> Sequence[Mapping[str, Any]]:
        """One entry a denoising pass (`engines.denoising.PassLog`)."""
        steps: Sequence[Mapping[str, Any]] = self.facts.get("trajectory", ())
        return steps

    def fills(self, number: int) -> dict[int, int]:
        """Return what a step filled, tokens by position; to put the mask there, which not all samplers log, is none."""
        entry, mask_id = self.steps[number], self.facts.get("mask_token_id")
        pairs = zip(entry["accepted"], entry["accepted_token_ids"], strict=True)
        return {place: token for place, token in pairs if token != mask_id}

    def logits(self, number: int) -> torch.Tensor | None:
        """Return the logits of a pass, [block_length, vocabulary]."""
        source = self.tensors.get(f"passes.{number}.logits")
        return source.rows(0, source.row_count) if source is not None else None


def check_sampler(walk: Walk, decode: Decode, *, kappa: float, location: str = "") -> CheckResult:
    """Replay a decode from its own logits: every block, every step and the end must be those of the rule.

    Args:
        walk: the candidate's decode.
        decode: the rule.
        kappa: what counts as noise (see `sampling.object_to`).
        location: where the rule stands.
    """
    replay = _Replay(walk, decode, kappa)
    message = replay.run()
    numbers = {
        "steps": len(walk.steps),
        "decisions": replay.decisions,
        "within_noise": replay.within_noise,
        "violations": int(bool(message)),
        "first": replay.first,
        "trajectory": list_steps(walk, SamplingRule.of(decode, walk.facts.get("mask_token_id"))),
    }
    return CheckResult(SUBJECT, "sampler", not message, message, numbers, {"kappa": kappa}, location, against="")


def list_steps(walk: Walk, rule: SamplingRule) -> list[dict[str, Any]]:
    """Return the trajectory as evidence: for each step what it accepted, with the confidence of each position."""
    told = []
    for number, entry in enumerate(walk.steps[:MOST_STEPS]):
        logits = walk.logits(number)
        offsets = [place - entry["block_start"] for place in entry["accepted"]]
        read = rule.read(logits)[2][offsets].tolist() if logits is not None else None
        told.append(
            {
                "step": number,
                "block_start": entry["block_start"],
                "accepted": list(entry["accepted"]),
                "tokens": list(entry["accepted_token_ids"]),
                "confidence": None if read is None else [encode_number(float(f"{value:.6g}")) for value in read],
            }
        )
    return told


class _Replay:
    """One pass over a trajectory; stops at the first thing that the rule does not allow."""

    def __init__(self, walk: Walk, decode: Decode, kappa: float) -> None:
        self._walk, self._decode, self._kappa = walk, decode, kappa
        self._length = decode.block_length or 1
        self._mask_id = walk.facts.get("mask_token_id")
        self._ends = set() if decode.ignore_eos else set(walk.facts.get("eos_token_ids", ()))
        self._tokens = list(walk.prompt)
        self.decisions = 0
        self.within_noise = 0
        self.first: dict[str, Any] | None = None

    def run(self) -> str:
        """Return what is wrong, or ""."""
        if not self._walk.steps:
            return "compared nothing: the candidate made no denoising step"
        if self._mask_id is None:
            return "missing in candidate: the mask token's id"
        rule = SamplingRule.of(self._decode, self._mask_id)
        start, step, steps = -1, 0, self._decode.steps or self._length
        for number, entry in enumerate(self._walk.steps):
            if entry["block_start"] != start or step >= steps:
                message = self._open_block(start, step, entry, number)
                start, step = entry["block_start"], 0
            elif self._has_ended(start):
                message = f"step {number} follows on an end of sequence, where the rule stops"
            else:
                message = ""
            message = message or self._judge(entry, number, step, rule)
            if message:
                return message
            step += 1
        return self._check_end(start, step)

    def _open_block(self, start: int, step: int, entry: Mapping[str, Any], number: int) -> str:
        """Go on to the next block, which must be where the rule has it."""
        if start >= 0:
            unfinished = self._unfinished(start, step)
            if unfinished:
                return f"step {number} begins another block: {unfinished}"
        known = len(self._tokens)
        expected = known - known % self._length
        if entry["block_start"] != expected:
            return f"step {number} works on a block from position {entry['block_start']}, where {expected} is next"
        if len(entry["tokens_before"]) != self._length:
            found = len(entry["tokens_before"])
            return f"step {number} works on a block of {found} tokens, where the rule has {self._length}"
        if known >= self._wanted or self._ended():
            return f"step {number} begins another block, where the rule stops"
        self._tokens += [self._mask_id] * (expected + self._length - known)  # type: ignore[list-item]
        return ""

    def _judge(self, entry: Mapping[str, Any], number: int, step: int, rule: SamplingRule) -> str:
        start, before = entry["block_start"], list(entry["tokens_before"])
        expected = self._tokens[start:]
        if before != expected:
            place = next((i for i, pair in enumerate(zip(before, expected, strict=False)) if pair[0] != pair[1]), 0)
            found = before[place] if place < len(before) else None
            return (
                f"step {number} sees token {found} at position {start + place}, where "
                f"{expected[place]} stands by the steps before it"
            )
        logits = self._walk.logits(number)
        if logits is None:
            return f"missing in candidate: the logits of step {number}"
        accepted = {
            place - start: token for place, token in zip(entry["accepted"], entry["accepted_token_ids"], strict=True)
        }
        assert self._mask_id is not None
        block = torch.tensor(before)
        masked = torch.eq(block, self._mask_id)
        objection = object_to(logits, block, accepted, rule, mask_id=self._mask_id, step=step, kappa=self._kappa)
        self.decisions += int(masked.sum())
        if objection is not None:
            self.first = {"step": number, "position": start + objection.offset, **objection.numbers}
            return f"position {start + objection.offset} in step {number}: {objection.reason}"
        exact = decide(logits, masked, rule, step)
        silent = exact.tokens == self._mask_id
        chosen = torch.zeros_like(masked)
        chosen[list(accepted)] = True
        self.within_noise += int(((exact.accepted != chosen) & ~silent).sum())
        for offset, token in accepted.items():
            self._tokens[start + offset] = token
        return ""

    @property
    def _wanted(self) -> int:
        return len(self._walk.prompt) + self._decode.max_new_tokens

    def _ended(self) -> bool:
        return any(token in self._ends for token in self._tokens[len(self._walk.prompt) :])

    def _has_ended(self, start: int) -> bool:
        """Tell whether `eos_early_stop` stops within the block."""
        new = self._tokens[max(start, len(self._walk.prompt)) :]
        end = next((place for place, token in enumerate(new) if token in self._ends), None)
        return self._decode.eos_early_stop and end is not None and self._mask_id not in new[:end]

    def _unfinished(self, start: int, step: int) -> str:
        """Say why a block cannot be left, or ""."""
        left = self._tokens[start:].count(self._mask_id)  # type: ignore[arg-type]
        if left and step < (self._decode.steps or self._length) and not self._has_ended(start):
            return f"the block from position {start} still has {left} masked positions after {step} steps"
        return ""

    def _check_end(self, start: int, step: int) -> str:
        unfinished = self._unfinished(start, step)
        if unfinished:
            return f"the decode ends: {unfinished}"
        if len(self._tokens) < self._wanted and not self._ended():
            made = len(self._tokens) - len(self._walk.prompt)
            return f"the decode ends after {made} tokens of {self._decode.max_new_tokens}, without an end of sequence"
        new = self._tokens[len(self._walk.prompt) : self._wanted]
        end = next((place for place, token in enumerate(new) if token in self._ends), len(new))
        if self._walk.output is not None and list(self._walk.output) != new[: end + 1]:
            return "the output is not what the steps accepted"
        return ""


def compare_walks(candidate: Walk, reference: Walk, decode: Decode, *, gates: bool, location: str = "") -> CheckResult:
    """Compare two free-running decodes: where they part for the first time, and by what margin.

    Args:
        candidate: one decode.
        reference: the other.
        decode: the rule of both.
        gates: whether parting fails (`trajectory: exact`), or is a trend.
        location: where the rule stands.
    """
    ours, theirs = candidate.steps, reference.steps
    common = next(
        (n for n in range(min(len(ours), len(theirs))) if _differ(candidate, reference, n)),
        min(len(ours), len(theirs)),
    )
    equal = common == len(ours) == len(theirs)
    parting = None if equal else _describe_parting(candidate, reference, decode, common)
    message = "" if equal else "the free runs part " + _say_parting(parting or {})
    if not ours or not theirs:
        message = "compared nothing: a side made no denoising step"
    numbers = {
        "equal": equal,
        "differing": int(not equal),
        "steps": len(ours),
        "reference_steps": len(theirs),
        "common_steps": common,
        "parting": {name: encode_number(value) for name, value in parting.items()} if parting else None,
    }
    rule = "exact" if gates else "free_run"
    return CheckResult(SUBJECT, rule, not message, message, numbers, {}, location, gates=gates)


def _differ(candidate: Walk, reference: Walk, number: int) -> bool:
    states = [
        [walk.steps[number][name] for name in ("block_start", "tokens_before")] for walk in (candidate, reference)
    ]
    return states[0] != states[1] or candidate.fills(number) != reference.fills(number)


def _describe_parting(candidate: Walk, reference: Walk, decode: Decode, number: int) -> dict[str, Any]:
    """Return the first step that differs, and for the first position that does, both sides' confidences."""
    ours, theirs = candidate.steps, reference.steps
    if number >= len(ours) or number >= len(theirs):
        longer = "candidate" if len(ours) > len(theirs) else "reference"
        return {"step": number, "kind": "end", "goes_on": longer}
    one, other = ours[number], theirs[number]
    told: dict[str, Any] = {"step": number, "block_start": other["block_start"]}
    if one["tokens_before"] != other["tokens_before"] or one["block_start"] != other["block_start"]:
        return told | {"kind": "state"}
    chosen = [walk.fills(number) for walk in (candidate, reference)]
    places = sorted(
        place for place in chosen[0].keys() | chosen[1].keys() if chosen[0].get(place) != chosen[1].get(place)
    )
    place = places[0]
    told |= {"kind": "token" if all(place in side for side in chosen) else "position", "position": place}
    told |= {"positions": len(places), "candidate_token": chosen[0].get(place), "reference_token": chosen[1].get(place)}
    for side, walk in (("candidate", candidate), ("reference", reference)):
        sides = _decide_at(walk, decode, number)
        if sides is not None:
            confidence = float(sides.confidence[place - other["block_start"]])
            told |= {f"{side}_confidence": confidence, f"{side}_margin": confidence - sides.boundary}
    return told


def _decide_at(walk: Walk, decode: Decode, number: int) -> Sides | None:
    logits, entry, mask_id = walk.logits(number), walk.steps[number], walk.facts.get("mask_token_id")
    masked = torch.tensor(entry["tokens_before"]) == (-1 if mask_id is None else mask_id)
    if logits is None or not bool(masked.any()):
        return None
    step = sum(earlier["block_start"] == entry["block_start"] for earlier in walk.steps[:number])
    return decide(logits, masked, SamplingRule.of(decode, mask_id), step)


def _say_parting(parting: Mapping[str, Any]) -> str:
    where = f"at step {parting.get('step')}"
    if parting.get("kind") == "end":
        return f"{where}: the {parting['goes_on']} alone goes on"
    if parting.get("kind") == "state":
        return f"{where}, which begins from other tokens"
    margins = ", ".join(
        f"{side} confidence {parting[f'{side}_confidence']:.6g}, {parting[f'{side}_margin']:+.3g} from its boundary"
        for side in ("candidate", "reference")
        if f"{side}_confidence" in parting
    )
    tokens = [parting.get(f"{side}_token") for side in ("candidate", "reference")]
    what = "against".join(" nothing " if token is None else f" token {token} " for token in tokens).strip()
    return f"{where}, position {parting['position']}: {what}; {margins}"
