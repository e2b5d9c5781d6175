"""An engine that writes down what it was asked, slowly enough that something can happen meanwhile."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy

from specrunner.engines.base import Capabilities, Capture, Engine
from specrunner.requests import Request


class CountingEngine(Engine):
    """Answers with the prompt's characters; the option `wrong` names the prompt that it gets wrong."""

    name = "counting"

    @classmethod
    def capabilities(cls) -> Capabilities:
        """float32, and led by a reference."""
        return Capabilities(dtypes={"cpu": ("float32",), "cuda": ("float32",)}, led=True, lasting=True)

    def load(self) -> dict[str, Any]:
        """Note the load."""
        self._note("load", "")
        return {"architecture": "Counting", "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}

    def capture(self, request: Request) -> Capture:
        """Answer after the option `seconds`."""
        text = request.prompt.text or ""
        self._note("plain", text)
        print(f"asked for {text}", flush=True)
        time.sleep(float(self.session.options.get("seconds", 0.0)))
        rows = numpy.array([[ord(letter), 1.0] for letter in text], numpy.float32)
        if text == self.session.options.get("wrong"):
            rows[0] += 5
        tensors = {"layers.0.output": rows, "layers.1.output": rows + 1}
        return Capture(prompt_token_ids=[ord(letter) for letter in text], tensors=tensors)

    def capture_led(self, request: Request, reference: Mapping[str, Any], *, routing: bool) -> Capture:
        """Answer with what leads, to show that it has come."""
        self._note("led", request.prompt.text or "")
        tensors = {name: numpy.array(value) for name, value in reference.items()}
        return Capture(prompt_token_ids=list(map(ord, request.prompt.text or "")), tensors=tensors)

    def _note(self, what: str, text: str) -> None:
        entry = [os.getpid(), os.getppid(), self.session.options.get("role", ""), what, text]
        with Path(os.environ["COUNTING_LOG"]).open("a") as log:
            log.write(json.dumps(entry) + "\n")
