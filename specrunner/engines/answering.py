"""Answering a request: a plain one goes to the adapter as it is, the others are made of plain ones.

So every engine that captures logits and decodes can be traced, probed and led, without a line in its adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specrunner.engines.following import capture_state, follow_passes, follow_state, follow_tokens, trace_tokens
from specrunner.engines.probing import probe_attention
from specrunner.errors import ModelUnsupported

if TYPE_CHECKING:
    from specrunner.engines.base import Capture, Engine
    from specrunner.requests import Request
    from specrunner.sessions.captures import StoredCapture


def answer_request(engine: Engine, request: Request, followed: StoredCapture | None = None) -> Capture:
    """Answer any request.

    Args:
        engine: a loaded engine.
        request: what is asked.
        followed: the capture that `request.follow` names.

    Raises:
        EngineError: whatever cost the request.
    """
    if request.probe:
        return probe_attention(engine, request)
    if request.lead is not None:
        assert followed is not None, "a request that follows another came without it"
        if request.lead == "tokens":
            return follow_tokens(engine, request, followed)
        if request.lead == "passes":
            return follow_passes(engine, request, followed)
        if request.lead == "state":
            return follow_state(engine, request, followed)
        return _capture_led(engine, request, followed)
    if request.at is not None:
        return capture_state(engine, request)
    if request.trace:
        return trace_tokens(engine, request)
    return engine.capture(request)


def _capture_led(engine: Engine, request: Request, followed: StoredCapture) -> Capture:
    if followed.tensors_path is None:
        raise ModelUnsupported("the reference has no tensors to lead the modules with")
    tensors = load_tensors(followed.tensors_path)
    return engine.capture_led(replace(request, decode=None), tensors, routing=request.lead == "routing")


def load_tensors(path: Path) -> Mapping[str, Any]:
    """Read a capture's tensors with numpy, or with torch where numpy lacks their dtype."""
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as handle:
        return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a mapping
