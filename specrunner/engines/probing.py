"""Attention by probing: exchange each prompt token in turn and see which positions change."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from specrunner.errors import CaptureIncomplete
from specrunner.requests import Request
from specrunner.spec.model import Prompt

if TYPE_CHECKING:
    from collections.abc import Mapping

    from specrunner.engines.base import Capture, Engine

READINGS = (("layers.*.output", "logits"), ("logits",))
"""What is read at each probe, best first: an engine without a map of its layers still has its logits."""

REPEATS = 2
"""Forwards over the unchanged prompt that show the run-to-run noise."""


def probe_attention(engine: Engine, request: Request) -> Capture:
    """Measure how far every position changes with every other.

    One forward a token in the live session, each with another token of the prompt in that place: a token that the model
    knows, and neither a mask nor an end of sequence unless the prompt holds them.

    Args:
        engine: a loaded engine that captures logits or hidden states.
        request: the prompt.

    Returns:
        A capture with, for each tensor read, `probe.{tensor}` float32 [tokens, tokens]: row q, column k is the relative
        L2 change of position q when token k is exchanged; and `probe.noise.{tensor}` float32 [tokens], the same for an
        unchanged prompt.
    """
    import numpy

    base, readings = _read_base(engine, request)
    ids = base.prompt_token_ids
    plain = Request(Prompt(token_ids=tuple(ids)), tensors=readings)
    before = {name: _as_array(value) for name, value in base.tensors.items()}
    noise = {name: numpy.zeros(len(ids)) for name in before}
    for _ in range(REPEATS):
        for name, change in _changes(before, engine.capture(plain)).items():
            noise[name] = numpy.maximum(noise[name], change)
    changes = {name: numpy.zeros((len(ids), len(ids)), dtype=numpy.float32) for name in before}
    for place in range(len(ids)):
        exchanged = (*ids[:place], choose_other(ids, place), *ids[place + 1 :])
        other = engine.capture(replace(plain, prompt=Prompt(token_ids=exchanged)))
        for name, change in _changes(before, other).items():
            changes[name][:, place] = change
    tensors: dict[str, Any] = {f"probe.{name}": value for name, value in changes.items()}
    tensors |= {f"probe.noise.{name}": value.astype(numpy.float32) for name, value in noise.items()}
    return replace_tensors(base, tensors, forwards=1 + REPEATS + len(ids))


def _read_base(engine: Engine, request: Request) -> tuple[Capture, tuple[str, ...]]:
    for number, readings in enumerate(READINGS):
        try:
            return engine.capture(Request(request.prompt, tensors=readings)), readings
        except CaptureIncomplete:
            if number == len(READINGS) - 1:
                raise
    raise AssertionError("no reading")


def replace_tensors(capture: Capture, tensors: dict[str, Any], forwards: int) -> Capture:
    """Return the capture with the probe's tensors in place of the forward's."""
    return replace(capture, tensors=tensors, facts={**capture.facts, "probe_forwards": forwards})


def choose_other(ids: list[int], place: int) -> int:
    """Return a token of the prompt that differs from the one at `place`; its successor id where all are equal."""
    others = [*ids[place + 1 :], *ids[:place]]
    return next(
        (token for token in others if token != ids[place]), ids[place] + 1 if ids[place] == 0 else ids[place] - 1
    )


def _as_array(value: Any) -> Any:
    import numpy

    if hasattr(value, "detach"):
        value = value.detach().cpu().double().numpy()
    return numpy.asarray(value, dtype=numpy.float64)


def _changes(before: Mapping[str, Any], capture: Capture) -> dict[str, Any]:
    """Return each position's relative L2 change, by tensor."""
    import numpy

    changes = {}
    for name, base in before.items():
        difference = numpy.linalg.norm(_as_array(capture.tensors[name]) - base, axis=1)
        changes[name] = difference / numpy.maximum(numpy.linalg.norm(base, axis=1), 1e-300)
    return changes
