"""Which of a case's rules its golden cannot bear out, as far as the spec alone tells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from specrunner.spec.rules import read_rules
from specrunner.spec.schema import default_of
from specrunner.spec.tensor_names import PASSES, TEMPLATES, is_possible, match_name

NEEDS_FULL = ("allclose", "ulp")
"""Rules that look at every element, which a compact golden does not keep."""

FINEST_SQNR = 135.0
"""dB: above it, the error sinks into the rounding of a compact golden's projections, which are float32."""

_INTEGERS = tuple(template for template in TEMPLATES if template.endswith("expert_ids"))
_RAISE = "raise `golden.full_tokens` to the number of tokens, or choose another rule"

_LIVE = {"noise_floor": "state the limit, e.g. `sqnr: 80`", "routing": "use `exact`"}
"""Rules that a golden alone cannot bear out, and what can take their place."""

Problem = tuple[tuple[str | int, ...], str, str]
"""Path of the culprit, message, help."""


def find_unjudgeable(fields: Mapping[str, Any]) -> list[Problem]:
    """Return the rules that cannot be judged against the golden of a case.

    A compact golden has no single elements, only as many of the largest logits as it keeps, and no peer of its own. A
    tensor whose number of rows the spec does not tell (`prompt: some text`) is left to the run, once `full_tokens` is
    above 0.

    Args:
        fields: the merged fields of a case whose `golden` is set.
    """
    found = list(_check_rules(fields))
    tokens = fields.get("tokens") or ""
    if fields.get("reference") is None and "near_tie" in tokens:
        message = "near ties are told by the logits of a live reference, and the case has only a golden"
        found.append((("tokens",), message, "add a `reference`, or use `tokens: exact`"))
    return found


def _check_rules(fields: Mapping[str, Any]) -> Iterator[Problem]:
    golden = fields["golden"]
    golden = golden if isinstance(golden, dict) else {}
    full_tokens = golden.get("full_tokens", default_of("golden", "full_tokens"))
    top_k = golden.get("top_k", default_of("golden", "top_k"))
    for pattern, written in (fields.get("tolerance") or {}).items():
        where: tuple[str | int, ...] = ("tolerance", pattern)
        compact = _is_compact(pattern, fields, full_tokens)
        for rule in read_rules(written):
            if rule.name in _LIVE and fields.get("reference") is None:
                message = f"`{rule.name}` needs what a live reference shows, and the case has only a golden"
                yield where, message, f"add a `reference`, or {_LIVE[rule.name]}"
            elif not compact:
                continue
            elif rule.name in NEEDS_FULL:
                yield where, f"`{rule.name}` cannot be judged on a compact golden", _RAISE
            elif rule.name == "top_k" and rule.parameters["k"] > top_k:
                message = f"the golden keeps the {top_k:g} largest logits, and the rule asks for {rule.parameters['k']}"
                yield where, message, "raise `golden.top_k`"
            elif rule.name == "sqnr" and rule.parameters["min"] > FINEST_SQNR:
                message = f"a compact golden resolves {FINEST_SQNR:g} dB, and the rule asks for more"
                yield where, message, _RAISE


def _is_compact(pattern: str, fields: Mapping[str, Any], full_tokens: float) -> bool:
    """Tell whether a tensor that `pattern` selects is certainly not kept in full because of its number of rows."""
    if not _selects_floats(pattern):
        return False
    rows = _count_rows(pattern, fields)
    return rows > full_tokens if rows is not None else not full_tokens


def _selects_floats(pattern: str) -> bool:
    if any(match_name(pattern, template.replace("{i}", "0")) for template in _INTEGERS):
        others = tuple(template for template in TEMPLATES if template not in _INTEGERS)
        return is_possible(pattern, others)
    return True


def _count_rows(pattern: str, fields: Mapping[str, Any]) -> float | None:
    """Return how many rows the tensors have, or None when the spec does not tell."""
    if pattern.startswith(PASSES):
        length = (fields.get("decode") or {}).get("block_length")
        return float(length) if length is not None else None
    prompt = fields.get("prompt")
    if not isinstance(prompt, dict):
        return None
    ids: Sequence[int] | None = prompt.get("token_ids")
    length = prompt.get("length", None if ids is None else len(ids))
    return None if length is None else float(length)
