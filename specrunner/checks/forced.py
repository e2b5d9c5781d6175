"""The rule `near_tie` on captures: the candidate's choices from the reference's states, and its free run as a trend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from specrunner.checks.near_ties import NearTie, Segment, compare_near_ties, find_tie
from specrunner.checks.passes import ForcedPass, compare_forced_passes
from specrunner.checks.sampling import SamplingRule
from specrunner.checks.sources import TensorSource
from specrunner.checks.tokens import common_prefix
from specrunner.results import CheckResult
from specrunner.spec.model import Decode, Rule


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
        rule: `near_tie` with `kappa` and `max_share`.
        decode: how both sides decode.
        forced: the candidate's `steps.{i}.logits`.
        forced_facts: the candidate's request facts; for greedy decoding, `segments`.
        reference: the reference's `steps.logits`, or `passes.{i}.logits` for block diffusion.
        reference_facts: its request facts; for block diffusion, `trajectory`.
        reference_ids: what it generated.
        dtype: what the candidate computes in.
        location: where the rule stands.
    """
    kappa, max_share = float(rule.parameters["kappa"]), float(rule.parameters["max_share"])
    torch_dtype = getattr(torch, dtype)
    if reference_ids is None:
        return CheckResult("tokens", "evidence", False, "missing in reference", {}, {}, location)
    if decode.algorithm == "low_confidence":
        passes = []
        trajectory = reference_facts.get("trajectory", ())
        for number, entry in enumerate(trajectory):
            logits = [forced.get(f"steps.{number}.logits"), reference.get(f"passes.{number}.logits")]
            if logits[0] is None or logits[1] is None:
                message = f"no logits at pass {number} of the reference"
                return CheckResult("tokens", "evidence", False, message, {}, {}, location)
            mine, theirs = (source.rows(0, source.row_count) for source in logits if source)
            step = sum(earlier["block_start"] == entry["block_start"] for earlier in trajectory[:number])
            passes.append(ForcedPass.read(entry, mine, theirs, step))
        return compare_forced_passes(
            passes,
            rule=SamplingRule.of(decode, reference_facts.get("mask_token_id")),
            dtype=torch_dtype,
            kappa=kappa,
            max_share=max_share,
            location=location,
        )
    segments = [Segment(entry["start"], entry["token_ids"]) for entry in forced_facts.get("segments", ())]
    ties: dict[int, NearTie] = {}
    traced = reference.get("steps.logits")
    for segment in segments:
        place = segment.start + common_prefix(segment.token_ids, reference_ids[segment.start :])
        ours = forced.get(f"steps.{place}.logits")
        if ours is None or traced is None or place - segment.start >= len(segment.token_ids):
            continue
        ties[place] = find_tie(
            segment.token_ids[place - segment.start],
            reference_ids[place],
            ours.rows(0, 1)[0],
            traced.rows(place, place + 1)[0],
            dtype=torch_dtype,
            kappa=kappa,
        )
    return compare_near_ties(reference_ids, segments, ties, max_share=max_share, location=location)


def describe_free_run(
    candidate_ids: Sequence[int] | None, reference_ids: Sequence[int] | None, location: str
) -> CheckResult:
    """Compare the tokens of the free runs: a trend, which does not gate."""
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
