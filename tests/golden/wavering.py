"""An engine that computes a small model, and on request goes wrong in one layer or does not repeat itself."""

from __future__ import annotations

from typing import Any

import numpy

from specrunner.engines.base import Capabilities, Capture, Engine
from specrunner.requests import Request

TOKENS, HIDDEN, LAYERS, VOCABULARY = 6, 16, 3, 3000


class WaveringEngine(Engine):
    """Options: `layer` (which goes wrong, at token 3), `error` (how much), `noise` (of each repeat), `nan`."""

    name = "wavering"

    @classmethod
    def capabilities(cls) -> Capabilities:
        """float32 on the CPU."""
        return Capabilities(dtypes={"cpu": ("float32",)})

    def load(self) -> dict[str, Any]:
        """State what it is."""
        return {
            "device": "cpu",
            "model_digest": self.session.options.get("digest", "0" * 16),
            "versions": {"wavering": "1"},
        }

    def capture(self, request: Request) -> Capture:
        """Compute."""
        options = self.session.options
        random = numpy.random.default_rng(0)
        state = random.standard_normal((TOKENS, HIDDEN)).astype(numpy.float32)
        tensors = {"embeddings": state.copy()}
        for layer in range(LAYERS):
            state = state + numpy.tanh(state @ random.standard_normal((HIDDEN, HIDDEN)).astype(numpy.float32))
            if options.get("layer") == layer:
                state[3] *= 1 + options.get("error", 0.0)
            tensors[f"layers.{layer}.output"] = state.copy()
        logits = state @ random.standard_normal((HIDDEN, VOCABULARY)).astype(numpy.float32)
        logits *= 1 + request.repeat * options.get("noise", 0.0)
        if options.get("nan"):
            logits[2, 5] = numpy.nan
        tensors["logits"] = logits
        return Capture([1, 2, 3, 4, 5, 6], tensors, [int(token) for token in logits[-1].argsort()[-4:]])
