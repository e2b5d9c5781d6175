"""What the schema cannot say of a case's `decode`: which fields its algorithm needs, and which mean nothing to it."""

from __future__ import annotations

from specrunner.spec.diagnostics import Report
from specrunner.spec.merge import Fields

_DIFFUSION_ONLY = ("block_length", "threshold", "accept", "fallback", "steps", "exclude_mask_id", "eos_early_stop")


def check_decode(fields: Fields, report: Report, *, algorithm_varies: bool) -> bool:
    """Check the fields of a decode against its algorithm and against the rest of the case.

    Args:
        fields: the merged fields of a case.
        report: takes what is found.
        algorithm_varies: whether the matrix chooses how to decode, so that fields of the other algorithm may stand.

    Returns:
        Whether nothing was found.
    """
    decode = fields.get("decode")
    if decode is None:
        return True
    if fields.get("benchmark") is not None:
        if "max_new_tokens" in decode:
            advice = "state `benchmark.max_gen_toks` instead"
            message = "the benchmark says how many tokens an answer may have"
            return report("conflicting-keys", message, advice, "decode", "max_new_tokens")
    elif "max_new_tokens" not in decode:
        advice = "state the most tokens to generate"
        return report("missing-key", "`decode` lacks `max_new_tokens`", advice, "decode", at_key=True)
    if decode.get("algorithm", "greedy") == "low_confidence":
        missing = [name for name in ("block_length", "threshold") if name not in decode]
        if missing:
            names = " and ".join(f"`{name}`" for name in missing)
            advice = "e.g. `block_length: 32, threshold: 0.95`"
            message = f"algorithm `low_confidence` needs {names}"
            return report("missing-key", message, advice, "decode", "algorithm")
        return _check_steps(decode, report)
    if not algorithm_varies:
        for name in _DIFFUSION_ONLY:
            if name in decode:
                advice = "remove it, or set `algorithm: low_confidence`"
                message = f"`{name}` means nothing to the algorithm `greedy`"
                return report("conflicting-keys", message, advice, "decode", name, at_key=True)
    return True


def _check_steps(decode: Fields, report: Report) -> bool:
    steps, fallback = decode.get("steps"), decode.get("fallback", "schedule")
    if steps is not None and fallback != "schedule":
        message = f"`steps` means nothing to the fallback `{fallback}`"
        advice = "remove it, or set `fallback: schedule`"
        return report("conflicting-keys", message, advice, "decode", "steps", at_key=True)
    if steps is not None and steps > decode["block_length"]:
        message = f"{steps:g} steps for a block of {decode['block_length']:g} tokens"
        advice = "a step accepts one position at least: state as many steps as tokens, or fewer"
        return report("bad-value", message, advice, "decode", "steps")
    return True
