"""An engine that says what it hears: the next token is always the one before."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from specrunner import (
    Capabilities,
    Capture,
    CaptureIncomplete,
    Engine,
    ModelUnsupported,
    encode_prompt,
    match_name,
)

if TYPE_CHECKING:
    from specrunner import Request

VOCABULARY = 100


class EchoEngine(Engine):
    """Logits [tokens, vocabulary] that are `gain` at the token itself and 0 elsewhere; greedy tokens.

    Its one option is `gain`, 1.0 by default.
    """

    name = "echo"

    @classmethod
    def capabilities(cls) -> Capabilities:
        return Capabilities(
            dtypes={"cpu": ("float32", "float64")},
            algorithms=("greedy",),
            packages=("numpy",),
            install_hint="pip install specrunner-echo",
        )

    @classmethod
    def tensor_templates(cls, architecture: str) -> tuple[str, ...] | None:
        return ("logits",)

    def load(self) -> dict[str, Any]:
        import numpy

        unknown = sorted(set(self.session.options) - {"gain"})
        if unknown:
            raise ModelUnsupported(f"echo has no option {', '.join(unknown)}", help="its option is gain")
        self._row = numpy.eye(VOCABULARY, dtype=self.session.dtype) * self.session.options.get("gain", 1.0)
        return {
            "versions": {"specrunner-echo": version("specrunner-echo"), "numpy": numpy.__version__},
            "model_class": f"{type(self).__module__}.{type(self).__name__}",
            "architecture": "Echo",
            "device": "cpu",
            "dtype": self.session.dtype,
            "attention_backend": "none",
            "options": dict(self.session.options),
            "patches": [],
        }

    def capture(self, request: Request) -> Capture:
        ids = encode_prompt(request.prompt, None, VOCABULARY)
        for pattern in request.tensors:
            if not match_name(pattern, "logits"):
                raise CaptureIncomplete(f"echo has no tensor {pattern}", help="it has logits")
        capture = Capture(prompt_token_ids=ids)
        if request.tensors:
            capture.tensors["logits"] = self._row[ids].astype(self.session.dtype)
        if request.decode is not None:
            capture.output_token_ids = [ids[-1]] * request.decode.max_new_tokens
        return capture
