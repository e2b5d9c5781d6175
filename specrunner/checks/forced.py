"""The rule `near_tie` on captures: the candidate's choices from the reference's states, and its free run as a trend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from specrunner.checks.near_ties import NearTie, Segment, compare_near_ties, find_tie
from specrunner.checks.passes import ForcedPass, compare_forced_passes
from specrunner.checks.sampling import SamplingRule
from specrunner.checks.sources import TensorSource
from specrunner.results import CheckResult
from specrunner.spec.model import Decode, Rule
from specrunner.token_ids import common_prefix


def judge_forced(
    rule: Rule,
    decode: Decode,
    forced: Mapping[str, TensorSource],
    forced_facts: Mapping[str, Any],
    reference: Mapping[str, TensorSource],
    reference_facts: Mapping[str, Any],
    reference_ids: Sequence[int] | None,
    *,
    dtype: str,
    location: str,
) -> CheckResult:
    """Judge the forced evidence: this gates.

    Args:
        rule: `near_tie` with `kappa` (units in the last place) and `max_share` (of the decisions).
        decode: how both sides decode.
        forced: the candidate's `steps.{i}.logits`: [1, vocabulary] behind i of the reference's tokens, or for block
            diffusion [block_length, vocabulary] at the state of the reference's pass i.
        forced_facts: the candidate's request facts; for greedy decoding, `segments`.
        reference: the reference's `steps.logits`, [tokens, vocabulary], or for block diffusion `passes.{i}.logits`,
            [block_length, vocabulary].
        reference_facts: its request facts; for block diffusion, `trajectory` and `mask_token_id`.
        reference_ids: what it generated.
        dtype: what the candidate computes in, a name of torch: `float32`.
        location: where the rule stands.

    Returns:
        The result for `tokens` (`compare_near_ties` or `compare_forced_passes`). What is missing to judge it, and
        logits or tokens that do not fit together, fail under the rule `evidence`.

    Raises:
        KeyError: an entry of the facts lacks a field.
    """
    kappa, max_share = float(rule.parameters["kappa"]), float(rule.parameters["max_share"])
    torch_dtype = getattr(torch, dtype)
    if reference_ids is None:
        return _fail("missing in reference", location)
    mask_id = reference_facts.get("mask_token_id")
    if decode.algorithm == "low_confidence":
        if mask_id is None:
            return _fail("missing in reference: the mask token's id", location)
        passes = []
        trajectory = reference_facts.get("trajectory", ())
        for number, entry in enumerate(trajectory):
            logits = [forced.get(f"steps.{number}.logits"), reference.get(f"passes.{number}.logits")]
            if logits[0] is None or logits[1] is None:
                return _fail(f"no logits at pass {number} of the reference", location)
            mine, theirs = (source.rows(0, source.row_count) for source in logits if source)
            step = sum(earlier["block_start"] == entry["block_start"] for earlier in trajectory[:number])
            try:
                passes.append(ForcedPass.read(entry, mine, theirs, mask_id, step))
            except ValueError as error:
                return _fail(f"pass {number} cannot be judged: {error}", location)
        return compare_forced_passes(
            passes,
            rule=SamplingRule.of(decode, mask_id),
            dtype=torch_dtype,
            kappa=kappa,
            max_share=max_share,
            location=location,
        )
    segments = [Segment(entry["start"], entry["token_ids"]) for entry in forced_facts.get("segments", ())]
    ties: dict[int, NearTie] = {}
    traced = reference.get("steps.logits")
    known = 0 if traced is None else min(traced.row_count, len(reference_ids))
    for segment in segments:
        place = segment.start + common_prefix(segment.token_ids, reference_ids[segment.start :])
        ours = forced.get(f"steps.{place}.logits")
        if ours is None or traced is None or place >= known or place - segment.start >= len(segment.token_ids):
            continue
        try:
            ties[place] = find_tie(
                segment.token_ids[place - segment.start],
                reference_ids[place],
                ours.rows(0, 1)[0],
                traced.rows(place, place + 1)[0],
                dtype=torch_dtype,
                kappa=kappa,
            )
        except ValueError as error:
            return _fail(f"the mismatch at position {place} cannot be judged: {error}", location)
    return compare_near_ties(reference_ids, segments, ties, max_share=max_share, location=location)


def _fail(message: str, location: str) -> CheckResult:
    return CheckResult("tokens", "evidence", False, message, {}, {}, location)


def describe_free_run(
    candidate_ids: Sequence[int] | None, reference_ids: Sequence[int] | None, location: str
) -> CheckResult:
    """Compare the tokens of the free runs: a trend, which does not gate.

    Args:
        candidate_ids: what the candidate generated; None counts as nothing.
        reference_ids: likewise the reference.
        location: where the rule stands.

    Returns:
        The result for `tokens`: the first position at which they part, the share of equal tokens among those of the
        longer run, and the first 1024 ids of each.
    """
    ours, theirs = list(candidate_ids or ()), list(reference_ids or ())
    prefix = common_prefix(ours, theirs)
    length = max(len(ours), len(theirs))
    equal = ours == theirs
    same = sum(one == other for one, other in zip(ours, theirs, strict=False))
    numbers = {
        "equal": equal,
        "first_mismatch": None if equal else prefix,
        "agreement": same / length if length else 0.0,
        "candidate_length": len(ours),
        "reference_length": len(theirs),
        "candidate_token_ids": ours[:1024],
        "reference_token_ids": theirs[:1024],
    }
    message = "" if equal else f"the free runs part at position {prefix} and share {same} of {length} tokens"
    return CheckResult("tokens", "free_run", equal, message, numbers, {}, location, gates=False)
