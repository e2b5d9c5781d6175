"""Attention geometry: which positions a model attends to, read off a probe, against what it should have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from specrunner.checks.measurements import encode_number
from specrunner.checks.sources import TensorSource
from specrunner.results import CheckResult
from specrunner.spec.model import Attention
from specrunner.spec.tensor_names import model_order

CLEAR_GAP = 8.0
"""Influence and noise are told apart where neighbouring changes differ by at least this factor."""

NOISE_FACTOR = 8.0
"""A change of at most this many times the run-to-run noise is noise."""

PREFIX, NOISE_PREFIX = "probe.", "probe.noise."


@dataclass(frozen=True, slots=True)
class Influence:
    """What a probe showed.

    Attributes:
        found: [queries, keys] bool, whether the query's row changed when the key's token was exchanged.
        weakest: the smallest change that counts as influence.
        noise: the largest change that counts as noise; 0.0 when rows that are not influenced stay bitwise equal.
    """

    found: torch.Tensor
    weakest: float
    noise: float


def expected_geometry(attention: Attention, tokens: int) -> torch.Tensor:
    """Return the mask of one layer, bool [queries, keys].

    Raises:
        ValueError: the stated matrix is not [tokens, tokens].
    """
    place = torch.arange(tokens)
    query, key = place[:, None], place[None, :]
    if attention.geometry == "bidirectional":
        return torch.ones(tokens, tokens, dtype=torch.bool)
    if attention.geometry == "causal":
        return key <= query
    if attention.geometry == "block_causal":
        length = attention.block_length or 1
        return key // length <= query // length
    if attention.geometry == "sliding_window":
        return (key <= query) & (query - key < (attention.window or 1))
    rows = attention.matrix or ()
    if len(rows) != tokens:
        raise ValueError(f"the matrix has {len(rows)} rows, and the prompt has {tokens} tokens")
    return torch.tensor([[letter == "1" for letter in row] for row in rows])


def reach(mask: torch.Tensor, layers: int) -> torch.Tensor:
    """Return which positions can influence which after `layers` layers of a mask, bool [queries, keys].

    The residual stream keeps a token's own value, so a layer's reach is the mask or the identity; layers compose as
    boolean matrices.
    """
    step = (mask | torch.eye(len(mask), dtype=torch.bool)).double()
    total = step
    for _ in range(layers - 1):
        wider = ((total @ step) > 0).double()
        if torch.equal(wider, total):
            break
        total = wider
    return total > 0


def find_influence(changes: torch.Tensor, noise: torch.Tensor, epsilon: float) -> Influence:
    """Tell influence from float noise.

    A row that is not influenced is often bitwise equal; where it is not (experts that get another number of tokens),
    its change is of the size of rounding. So what is at most `NOISE_FACTOR` times the run-to-run noise is noise; and in
    the band where rounding lies (`rounding_band`), so is what lies under the widest gap between neighbouring changes,
    if that gap is at least `CLEAR_GAP`. On tiny-llada2 the largest such change was 1.5e-6 in float32 and 3e-15 in
    float64, none in half precision, and the smallest real influence 2e-4.

    Args:
        changes: [queries, keys], relative L2 changes.
        noise: [queries], the same for an unchanged prompt.
        epsilon: machine epsilon of the dtype the candidate computes in.

    Returns:
        The influence. A change that is NaN counts as influence.
    """
    floor = NOISE_FACTOR * float(noise.max()) if noise.numel() else 0.0
    found = ~(changes.double() <= floor)
    values = changes.double()[found & ~changes.isnan()].sort().values
    low = values[:-1] <= rounding_band(epsilon)
    if bool(low.any()):
        ratios = torch.where(low, values[1:] / values[:-1], 0.0)
        place = int(ratios.argmax())
        if float(ratios[place]) >= CLEAR_GAP:
            found &= ~(changes.double() <= values[place])
    rest, kept = changes.double()[~found], changes.double()[found]
    return Influence(
        found, float(kept.min()) if kept.numel() else float("inf"), float(rest.max()) if rest.numel() else 0.0
    )


def rounding_band(epsilon: float) -> float:
    """Return the largest relative L2 change of a row that rounding can make, by the dtype's machine epsilon.

    Rounding errors of single elements grow over the layers, some tens of epsilons deep; in half precision a row's L2
    change stays below one epsilon, since its many elements round independently.
    """
    return 64 * epsilon if epsilon < 1e-5 else epsilon / 4


def compare_attention(
    attention: Attention, tensors: Mapping[str, TensorSource], *, dtype: str, location: str = ""
) -> CheckResult:
    """Compare the effective mask with the stated geometry, layer by layer as far as the engine shows its layers.

    Behind layer i the geometry has been applied i + 1 times; the logits are behind all layers.

    Args:
        attention: the geometry.
        tensors: `probe.{tensor}` and `probe.noise.{tensor}` of a probe.
        dtype: what the candidate computes in.
        location: where the geometry is stated.

    Returns:
        The result; subject and rule are `attention`, and the first tensor that disagrees is told, with both matrices.
    """
    limits = {name: getattr(attention, name) for name in ("geometry", "block_length", "window")}
    limits = {name: value for name, value in limits.items() if value is not None}

    def result(message: str, numbers: Mapping[str, Any], rule: str = "attention") -> CheckResult:
        return CheckResult("attention", rule, not message, message, numbers, limits, location, against="")

    names = [name for name in tensors if name.startswith(PREFIX) and not name.startswith(NOISE_PREFIX)]
    names.sort(key=lambda name: model_order(name.removeprefix(PREFIX)))
    if not names:
        return result("the probe gave no tensor to read", {}, "evidence")
    tokens = tensors[names[0]].shape[0]
    if tokens < 2:
        return result(f"a prompt of {tokens} token shows no geometry", {}, "evidence")
    try:
        mask = expected_geometry(attention, tokens)
    except ValueError as error:
        return result(str(error), {}, "evidence")
    layers = sum(name.endswith(".output") for name in names)
    epsilon = float(torch.finfo(getattr(torch, dtype)).eps)
    numbers: dict[str, Any] = {}
    for depth, name in enumerate(names, 1):
        label = name.removeprefix(PREFIX)
        changes = tensors[name].rows(0, tokens)
        noise = tensors[NOISE_PREFIX + label].rows(0, 1).flatten()
        influence = find_influence(changes, noise, epsilon)
        expected = mask_at(mask, label, depth, layers)
        wrong = influence.found != expected
        numbers = {
            "tensor": label,
            "tokens": tokens,
            "expected": _draw(expected),
            "found": _draw(influence.found),
            "mismatches": int(wrong.sum()),
            "first": wrong.nonzero()[0].tolist() if bool(wrong.any()) else None,
            "weakest": encode_number(influence.weakest),
            "noise": encode_number(influence.noise),
            "readings": len(names),
        }
        if bool(wrong.any()):
            return result(_describe(attention, label, wrong, influence.found, layers), numbers)
    return result("", numbers)


def mask_at(mask: torch.Tensor, label: str, depth: int, layers: int) -> torch.Tensor:
    """Return the geometry, bool [queries, keys], that a reading should show: behind its own layer, or behind all.

    An engine that shows its logits alone does not say how many layers they are behind: a geometry that grows from layer
    to layer is then taken at its closure.
    """
    if label.endswith(".output"):
        return reach(mask, depth)
    return reach(mask, layers or len(mask))


def _describe(attention: Attention, label: str, wrong: torch.Tensor, found: torch.Tensor, layers: int) -> str:
    query, key = wrong.nonzero()[0].tolist()
    sees = "sees" if bool(found[query, key]) else "does not see"
    looks_like = name_geometry(found, layers if label == "logits" else int(label.split(".")[1]) + 1)
    seen = f"; found {looks_like}" if looks_like else ""
    return (
        f"not {_name(attention)} at {label}: position {query} {sees} position {key}, "
        f"{int(wrong.sum())} of {wrong.numel()} pairs differ{seen}"
    )


def name_geometry(found: torch.Tensor, layers: int) -> str:
    """Return the geometry of a found matrix, bool [queries, keys], as `block_causal(32)`, or "" when it is unknown."""
    tokens = len(found)
    known = [Attention("causal"), Attention("bidirectional")]
    known += [Attention("block_causal", block_length=length) for length in range(2, tokens)]
    known += [Attention("sliding_window", window=window) for window in range(1, tokens)]
    for attention in known:
        if torch.equal(reach(expected_geometry(attention, tokens), max(layers, 1)), found):
            return _name(attention)
    return ""


def _name(attention: Attention) -> str:
    size = attention.block_length or attention.window
    return f"{attention.geometry}({size})" if size else attention.geometry


def _draw(matrix: torch.Tensor) -> list[str]:
    return ["".join("1" if cell else "0" for cell in row) for row in matrix.tolist()]
