"""All planters of `hf`: what can be planted in the LLaDA2 that Transformers runs."""

from __future__ import annotations

from specrunner.engines.planters import hf_attention, hf_decoding, hf_experts, hf_stream, hf_variants
from specrunner.engines.planters.patching import Planter

PLANTERS: dict[str, Planter] = {
    **hf_attention.PLANTERS,
    **hf_experts.PLANTERS,
    **hf_stream.PLANTERS,
    **hf_decoding.PLANTERS,
    **hf_variants.PLANTERS,
}
"""Context managers by the fault's name."""
