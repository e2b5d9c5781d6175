"""Comparing token ids: prompts and generated tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from specrunner.results import CheckResult
from specrunner.token_ids import common_prefix

WINDOW = 4
"""How many ids on either side of the first mismatch are recorded, for the reader of a report."""


def compare_tokens(
    candidate_ids: Sequence[int] | None,
    reference_ids: Sequence[int] | None,
    *,
    rule: str = "exact",
    subject: str = "tokens",
    location: str = "",
) -> CheckResult:
    """Compare two sequences of token ids element by element.

    Args:
        candidate_ids: what the engine under test generated; None when it generated nothing.
        reference_ids: what the reference generated.
        rule: only `exact` is judged from ids alone; `near_tie` needs logits.
        subject: what the ids are, for the report.
        location: where the rule stands.

    Returns:
        A result that passes only if both sides have the same ids and at least one.
    """
    if candidate_ids is None or reference_ids is None:
        missing = [side for side, ids in (("candidate", candidate_ids), ("reference", reference_ids)) if ids is None]
        return CheckResult(subject, "evidence", False, f"missing in {' and '.join(missing)}", {}, {}, location)
    candidate, reference = [int(token) for token in candidate_ids], [int(token) for token in reference_ids]
    prefix = common_prefix(candidate, reference)
    numbers: dict[str, Any] = {
        "candidate_length": len(candidate),
        "reference_length": len(reference),
        "common_prefix": prefix,
    }
    if rule != "exact":
        message = f"the rule `{rule}` cannot be judged from token ids alone"
    elif not candidate and not reference:
        message = "compared nothing: both sides are empty"
    elif candidate == reference:
        message = ""
    else:
        ours = candidate[prefix] if prefix < len(candidate) else None
        theirs = reference[prefix] if prefix < len(reference) else None
        numbers |= {"first_mismatch": prefix, "candidate_token": ours, "reference_token": theirs}
        start = max(0, prefix - WINDOW)
        numbers |= {
            "window_start": start,
            "candidate_window": candidate[start : prefix + WINDOW + 1],
            "reference_window": reference[start : prefix + WINDOW + 1],
        }
        message = (
            f"first mismatch at position {prefix}: {_name(ours)} against {_name(theirs)} "
            f"({len(candidate)} tokens against {len(reference)})"
        )
    return CheckResult(subject, rule, not message, message, numbers, {}, location)


def compare_prompt_ids(
    candidate_ids: Sequence[int], reference_ids: Sequence[int], *, location: str = ""
) -> CheckResult:
    """Compare the prompt ids that both models really saw.

    Args:
        candidate_ids: the candidate's.
        reference_ids: the reference's.
        location: where the case stands.

    Returns:
        What `compare_tokens` returns, with the subject `tokenization`.
    """
    return compare_tokens(candidate_ids, reference_ids, subject="tokenization", location=location)


def _name(token: int | None) -> str:
    return "the end" if token is None else f"token {token}"
