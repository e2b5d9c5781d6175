"""Runs that follow a reference: a trace of one's own tokens, and forced decoding, for the rule `near_tie`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from specrunner.errors import CaptureIncomplete
from specrunner.requests import Request
from specrunner.spec.model import DenoisingState, Prompt
from specrunner.token_ids import common_prefix

if TYPE_CHECKING:
    from specrunner.engines.base import Capture, Engine
    from specrunner.sessions.captures import StoredCapture

MOST_SEGMENTS = 64
"""How often a run is taken up again behind a mismatch; a run that parts more often is no matter of near ties."""


def read_logits(engine: Engine, token_ids: Sequence[int], rows: int, companions: tuple[Prompt, ...] = ()) -> Any:
    """Return the logits of the last `rows` positions of one forward over `token_ids`, [rows, vocabulary]."""
    request = Request(Prompt(token_ids=tuple(token_ids)), tensors=("logits",), companions=companions)
    logits = engine.capture(request).tensors["logits"][-rows:]
    return logits.clone() if hasattr(logits, "clone") else logits.copy()


def trace_tokens(engine: Engine, request: Request) -> Capture:
    """Decode, then give the logits behind each generated token: `steps.logits`, [generated tokens, vocabulary].

    They come from one forward over prompt and output, at the places that predict the output.
    """
    capture = engine.capture(replace(request, trace=False))
    output = capture.output_token_ids or []
    if output:
        ids = [*capture.prompt_token_ids, *output]
        capture.tensors["steps.logits"] = read_logits(engine, ids[:-1], len(output))
    return capture


def follow_tokens(engine: Engine, request: Request, followed: StoredCapture) -> Capture:
    """Decode freely; behind each mismatch, decode again from the reference's tokens.

    Args:
        engine: a loaded engine.
        request: with `decode`.
        followed: the reference's capture.

    Returns:
        The free run's capture, with `steps.{position}.logits` [1, vocabulary] for the place of each mismatch, and the
        fact `segments`: `{start, token_ids}` of each run, the free one first.
    """
    assert request.decode is not None
    capture = engine.capture(replace(request, follow=None, lead=None, tensors=()))
    prompt, reference = list(capture.prompt_token_ids), list(followed.output_token_ids or ())
    segments: list[dict[str, Any]] = [{"start": 0, "token_ids": list(capture.output_token_ids or ())}]
    while len(segments) <= MOST_SEGMENTS:
        start, ours = segments[-1]["start"], segments[-1]["token_ids"]
        place = start + common_prefix(ours, reference[start:])
        if place >= len(reference) or place - start >= len(ours):
            break
        prefix = [*prompt, *reference[:place]]
        capture.tensors[f"steps.{place}.logits"] = read_logits(engine, prefix, 1, request.companions)
        if place + 1 == len(reference):
            segments.append({"start": place + 1, "token_ids": []})
            break
        again = Request(
            Prompt(token_ids=(*prefix, reference[place])),
            decode=replace(request.decode, max_new_tokens=request.decode.max_new_tokens - place - 1),
            companions=request.companions,
        )
        segments.append({"start": place + 1, "token_ids": list(engine.capture(again).output_token_ids or ())})
    capture.facts["segments"] = segments
    return capture


def follow_passes(engine: Engine, request: Request, followed: StoredCapture) -> Capture:
    """Decode freely; then make one forward at every denoising state of the reference.

    Returns:
        The free run's capture, with `steps.{pass}.logits` [block_length, vocabulary] at the reference's states.
    """
    assert request.decode is not None
    capture = engine.capture(replace(request, follow=None, lead=None, tensors=()))
    trajectory = followed.facts.get("trajectory", ())
    for number, state in enumerate(list_states(followed.prompt_token_ids, trajectory)):
        rows = len(trajectory[number]["tokens_before"])
        capture.tensors[f"steps.{number}.logits"] = read_logits(engine, state, rows, request.companions)
    return capture


def capture_state(engine: Engine, request: Request) -> Capture:
    """Decode, and take the tensors at one state of the decode.

    Returns:
        The tensors of one forward over the state's tokens, which stand as the prompt's ids; the fact `state` says which
        it is, and `passes` and `trajectory` are the decode's.

    Raises:
        CaptureIncomplete: the decode has no such block, or the block no such step.
    """
    assert request.at is not None
    decoded = engine.capture(replace(request, tensors=(), at=None))
    trajectory = decoded.facts.get("trajectory", ())
    number = find_pass(trajectory, request.at)
    state = list_states(decoded.prompt_token_ids, trajectory)[number]
    capture = _capture_tokens(engine, request, state)
    told = {name: decoded.facts[name] for name in ("passes", "trajectory", "decode_loop") if name in decoded.facts}
    capture.facts |= told | {"state": {**asdict(request.at), "pass": number, "tokens": len(state)}}
    return capture


def follow_state(engine: Engine, request: Request, followed: StoredCapture) -> Capture:
    """Take the tensors at the state that another capture was taken at."""
    capture = _capture_tokens(engine, request, followed.prompt_token_ids)
    capture.facts["state"] = followed.facts.get("state")
    return capture


def _capture_tokens(engine: Engine, request: Request, token_ids: Sequence[int]) -> Capture:
    return engine.capture(Request(Prompt(token_ids=tuple(token_ids)), request.tensors, fault=request.fault))


def find_pass(trajectory: Sequence[Mapping[str, Any]], state: DenoisingState) -> int:
    """Return the number of the denoising pass before which a state stands.

    Raises:
        CaptureIncomplete: the trajectory does not come to it.
    """
    starts = list(dict.fromkeys(entry["block_start"] for entry in trajectory))
    if state.block >= len(starts):
        raise CaptureIncomplete(f"the decode has {len(starts)} blocks, so there is no block {state.block}, from 0")
    passes = [number for number, entry in enumerate(trajectory) if entry["block_start"] == starts[state.block]]
    if state.step >= len(passes):
        raise CaptureIncomplete(
            f"block {state.block} of the decode took {len(passes)} steps, so there is no step {state.step}, from 0"
        )
    return passes[state.step]


def list_states(prompt: Iterable[int], trajectory: Iterable[Mapping[str, Any]]) -> list[list[int]]:
    """Return what the model saw at each pass of a denoising trajectory: all tokens up to the end of the block.

    Args:
        prompt: the prompt's ids.
        trajectory: entries of `PassLog.facts`, in order.
    """
    known = list(prompt)
    states = []
    for entry in trajectory:
        start = entry["block_start"]
        known = [*known[:start], *entry["tokens_before"]]
        states.append(list(known))
        for place, token in zip(entry["accepted"], entry["accepted_token_ids"], strict=True):
            known[place] = token
    return states
