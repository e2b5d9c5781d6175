"""What changed from one golden to another: provenance, tensors under the case's tolerance, movers, tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specrunner.checks.evidence import find_tolerance
from specrunner.checks.measurements import encode_number
from specrunner.checks.sources import TensorSource
from specrunner.golden.estimates import Estimates, estimate
from specrunner.golden.judge import judge_estimates, judge_tensor
from specrunner.golden.kept import Golden, KeptTensor
from specrunner.golden.sketch import sketch_tensor
from specrunner.results import CheckResult
from specrunner.spec.model import Case
from specrunner.spec.tensor_names import model_order
from specrunner.token_ids import common_prefix

MOVERS = 5
"""Elements (of a compact tensor: rows) that moved most, as a review shows them."""

WINDOW = 6
"""Tokens on either side of the first that differs."""

_QUIET = ("reason", "date", "seed", "version", "tensors", "tensors_file", "tensors_sha256")
_TOKENS = ("prompt_token_ids", "output_token_ids")


@dataclass(frozen=True, slots=True)
class TensorChange:
    """How one tensor changed.

    Attributes:
        name: the tensor.
        same: whether its content is the very same.
        note: why nothing was measured, or "".
        measurements: relative L2 by the names that reports use; `estimated` when a side is compact.
        checks: the case's rules, the new golden judged against the old one; empty without a case.
        movers: the largest changes: `{token, column, old, new}`, of compact tensors `{token, relative_l2}`.
    """

    name: str
    same: bool
    note: str = ""
    measurements: Mapping[str, Any] | None = None
    checks: tuple[CheckResult, ...] = ()
    movers: tuple[Mapping[str, Any], ...] = ()

    @property
    def holds(self) -> bool:
        """Whether the change is within the case's tolerance; a change that was not judged is not."""
        return self.same or (not self.note and bool(self.checks) and all(check.passed for check in self.checks))


@dataclass(frozen=True, slots=True)
class Change:
    """From one golden to another.

    Attributes:
        provenance: `{field: [old, new]}` of what differs.
        tensors: every tensor of either, in model order.
        tokens: `{name, prefix, start, old, new}` around the first difference of prompt or output.
    """

    provenance: Mapping[str, Sequence[Any]]
    tensors: tuple[TensorChange, ...]
    tokens: tuple[Mapping[str, Any], ...]

    @property
    def holds(self) -> bool:
        """Whether everything is within the case's tolerance, and the tokens are the same."""
        return not self.tokens and all(change.holds for change in self.tensors)

    @property
    def exceeds(self) -> bool:
        """Whether something is certainly outside of the tolerance: tokens, a rule that fails, a tensor gone."""
        failing = any(not check.passed for change in self.tensors for check in change.checks)
        return bool(self.tokens) or failing or any(change.note and not change.same for change in self.tensors)

    @property
    def largest(self) -> float:
        """The largest relative L2 error over a whole tensor, inf when one could not be measured."""
        values = [change.measurements["relative_l2"] for change in self.tensors if change.measurements]
        if any(change.note and not change.same for change in self.tensors):
            return float("inf")
        return max((float(value) for value in values), default=0.0)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {
            "within_tolerance": self.holds,
            "provenance": {name: list(pair) for name, pair in self.provenance.items()},
            "tokens": [dict(part) for part in self.tokens],
            "tensors": [
                {
                    "name": change.name,
                    "same": change.same,
                    "within_tolerance": change.holds,
                    "note": change.note,
                    "measurements": dict(change.measurements or {}),
                    "checks": [
                        {"rule": check.rule, "passed": check.passed, "message": check.message}
                        for check in change.checks
                    ],
                    "movers": [dict(mover) for mover in change.movers],
                }
                for change in self.tensors
            ],
        }


def compare_goldens(new: Golden, old: Golden, case: Case | None = None) -> Change:
    """Hold one golden against another of the same place.

    Args:
        new: the one in question.
        old: what it is held against.
        case: gives the tolerance; without it, nothing is judged.
    """
    tensors = [
        _compare_tensor(name, new.tensors.get(name), old.tensors.get(name), case)
        for name in sorted(new.tensors.keys() | old.tensors.keys(), key=model_order)
    ]
    return Change(_compare_provenance(new, old), tuple(tensors), tuple(_compare_tokens(new, old)))


def _compare_provenance(new: Golden, old: Golden) -> dict[str, tuple[Any, Any]]:
    changes: dict[str, tuple[Any, Any]] = {}
    for name in new.manifest.__slots__:
        ours, theirs = getattr(new.manifest, name), getattr(old.manifest, name)
        if name in _QUIET or name in _TOKENS:
            continue
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            for key in dict.fromkeys((*theirs, *ours)):
                changes |= _differences(f"{name}.{key}", theirs.get(key), ours.get(key))
        else:
            changes |= _differences(name, theirs, ours)
    return changes


def _differences(name: str, old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    if old == new:
        return {}
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found: dict[str, tuple[Any, Any]] = {}
        for key in dict.fromkeys((*old, *new)):
            found |= _differences(f"{name}.{key}", old.get(key), new.get(key))
        return found
    return {name: (old, new)}


def _compare_tokens(new: Golden, old: Golden) -> list[dict[str, Any]]:
    parts = []
    for name in _TOKENS:
        ours, theirs = getattr(new.manifest, name), getattr(old.manifest, name)
        if ours == theirs:
            continue
        prefix = common_prefix(ours or (), theirs or ())
        start = max(0, prefix - WINDOW)
        parts.append(
            {
                "name": name,
                "prefix": prefix,
                "start": start,
                "old": None if theirs is None else list(theirs[start : prefix + WINDOW + 1]),
                "new": None if ours is None else list(ours[start : prefix + WINDOW + 1]),
                "lengths": [len(theirs or ()), len(ours or ())],
            }
        )
    return parts


def _compare_tensor(name: str, new: KeptTensor | None, old: KeptTensor | None, case: Case | None) -> TensorChange:
    if new is None or old is None:
        return TensorChange(name, False, "not kept before" if old is None else "kept no more")
    if new.entry.shape != old.entry.shape:
        return TensorChange(name, False, f"shape {list(old.entry.shape)} became {list(new.entry.shape)}")
    same = new.entry.content == old.entry.content and new.entry.dtype == old.entry.dtype
    tolerance = find_tolerance(case, name) if case is not None else None
    rules = tuple(rule for rule in tolerance.rules if rule.name != "noise_floor") if tolerance else ()
    if new.source is not None:
        checks = tuple(judge_tensor(name, new.source, old, rules)) if rules else ()
        if old.source is not None:
            return TensorChange(name, same, "", _measure(new.source, old.source), checks, _find_movers(new, old))
    estimates = _estimate(new, old)
    if estimates is None:
        return TensorChange(name, same, "" if same else "the two were made compact in different ways")
    if new.source is None:
        checks = tuple(judge_estimates(name, rule, estimates, same) for rule in rules)
    return TensorChange(name, same, "", estimates.to_json(), checks, _find_rows(estimates))


def _measure(new: TensorSource, old: TensorSource) -> dict[str, Any]:
    from specrunner.checks.tensors import measure_all

    found = measure_all({"x": new}, {"x": old})[0]
    if found.measured is None:
        return {"relative_l2": 0.0 if "all equal" in found.problem else "inf", "note": found.problem}
    return found.measured.to_json()


def _estimate(new: KeptTensor, old: KeptTensor) -> Estimates | None:
    ours, theirs = new.sketch, old.sketch
    model = theirs or ours
    if model is None:
        return None
    kept = 0 if model.top_ids is None else model.top_ids.shape[-1]
    made = [
        sketch or sketch_tensor(tensor.source, projections=model.projections.shape[-1], seed=model.seed, top_k=kept)  # type: ignore[arg-type]
        for sketch, tensor in ((ours, new), (theirs, old))
    ]
    try:
        return estimate(made[0], made[1], source=new.source)
    except ValueError:
        return None


def _find_movers(new: KeptTensor, old: KeptTensor) -> tuple[Mapping[str, Any], ...]:
    assert new.source is not None and old.source is not None
    if not new.source.dtype.is_floating_point or not old.source.dtype.is_floating_point:
        return ()
    ours = new.source.rows(0, new.source.row_count).double()
    theirs = old.source.rows(0, old.source.row_count).double()
    moved = (ours - theirs).abs().reshape(-1)
    best = moved.topk(min(MOVERS, moved.numel()))
    width, per_token = new.source.width, new.source.rows_per_token
    return tuple(
        {
            "token": index // width // per_token,
            "column": index % width,
            "old": encode_number(float(theirs.reshape(-1)[index])),
            "new": encode_number(float(ours.reshape(-1)[index])),
        }
        for index in best.indices.tolist()
        if float(moved[index]) > 0
    )


def _find_rows(estimates: Estimates) -> tuple[Mapping[str, Any], ...]:
    best = estimates.errors.topk(min(MOVERS, estimates.errors.numel()))
    return tuple(
        {"token": estimates.token_of(row), "relative_l2": encode_number(error)}
        for row, error in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        if error > 0
    )
