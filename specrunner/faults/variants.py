"""The legitimate variants: other ways to compute the same, on which no check may raise an alarm."""

from __future__ import annotations

from specrunner.faults.model import Fault

_HF, _BOTH = ("hf",), ("hf", "oracle")


def _variant(name: str, story: str, engines: tuple[str, ...] = _HF) -> Fault:
    return Fault(f"variant-{name}", "variant", story, engines, legitimate=True)


VARIANTS: tuple[Fault, ...] = (
    _variant("repeat", "the same once more", _BOTH),
    _variant("threads", "three threads in place of one"),
    _variant("batched", "the rows of a prompt multiplied together with those of other requests"),
    _variant("padded", "keys padded on both sides, and masked"),
    _variant("chunked-prefill", "linear layers and queries in chunks of 16 tokens"),
    _variant("row-by-row", "matrix times vector, as a decode step does"),
    _variant("other-attention", "SDPA in place of eager attention, or the other way round"),
    _variant("running-softmax", "attention page by page with a running sum, as flash kernels do", _BOTH),
    _variant("wide-attention", "attention in float32 throughout"),
    _variant("scaled-queries", "the scale folded into the queries"),
    _variant("row-parallel", "sums of two halves, each rounded first, as over two ranks"),
    _variant("split-sums", "sums of two halves, rounded at the end (split-K)"),
    _variant("column-parallel", "outputs in four parts, as an unfused projection or four ranks give them"),
    _variant("experts-reversed", "experts added from the last to the first", _BOTH),
    _variant("all-experts", "all experts for all tokens, most of them weighted with zero"),
    _variant("narrow-sum", "experts added in the model's dtype"),
    _variant("wide-mixture", "routed and shared experts added in float32"),
    _variant("fused-gate-up", "gate and up in one product"),
    _variant("wide-activation", "SwiGLU in float32"),
    _variant("wide-norms", "norms in a wider dtype, with their weight", _BOTH),
    _variant("wide-rope", "RoPE in float32"),
)
"""Legitimate ways to compute the same."""
