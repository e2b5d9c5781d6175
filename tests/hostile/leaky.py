"""An engine that prints its whole environment, tells it in its facts, and dies when asked to."""

from __future__ import annotations

import os
from typing import Any

import numpy

from specrunner.engines.base import Capabilities, Capture, Engine
from specrunner.errors import EngineError
from specrunner.requests import Request


class LeakyEngine(Engine):
    """The prompt says how it ends."""

    name = "leaky"

    @classmethod
    def capabilities(cls) -> Capabilities:
        """float32 on the CPU."""
        return Capabilities(dtypes={"cpu": ("float32",)})

    def load(self) -> dict[str, Any]:
        """Tell everything."""
        print(dict(os.environ), flush=True)
        return {
            "device": "cpu",
            "patches": [f"logged in with {os.environ['HF_TOKEN']}"],
            "options": dict(self.session.options),
            "model_digest": "0" * 16,
        }

    def capture(self, request: Request) -> Capture:
        """Tell everything again."""
        for name, value in os.environ.items():
            print(f"{name}={value}", flush=True)
        if request.prompt.text == "fail":
            raise EngineError(f"401 for {os.environ['HF_TOKEN']}", help=f"renew {os.environ['HF_TOKEN']}")
        if request.prompt.text == "die":
            os._exit(9)
        return Capture([1], {"logits": numpy.ones((1, 3), numpy.float32)}, facts={"said": os.environ["HF_TOKEN"]})
