"""Attention geometry: which positions a model attends to, read off a probe, against what it should have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """Return the mask of one layer.

    Args:
        attention: the geometry.
        tokens: how many tokens the prompt has.

    Returns:
        bool [tokens, tokens], queries by keys: whether the query sees the key.

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
    """Return which positions can influence which after some layers of a mask.

    The residual stream keeps a token's own value, so a layer's reach is the mask or the identity; layers compose as
    boolean matrices.

    Args:
        mask: bool [tokens, tokens], queries by keys.
        layers: how many; at least 1.

    Returns:
        bool [tokens, tokens], queries by keys.
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
    """Return the largest relative L2 change of a row that rounding can make.

    No bound is derived: the factors stand apart from what was measured on tiny-llada2 (see `find_influence`). Rounding
    grew to 14 epsilons over its layers in float32 and float64; the smallest influence was some 1,700 of float32's. In
    half precision, where no such change was seen, a row's stays below one epsilon, since its many elements round
    independently.

    Args:
        epsilon: the dtype's machine epsilon: 2.2e-16 for float64, 1.2e-7 for float32, 7.8e-3 for bfloat16.

    Returns:
        A relative L2 change.
    """
    return 64 * epsilon if epsilon < 1e-5 else epsilon / 4


def compare_attention(
    attention: Attention, tensors: Mapping[str, TensorSource], *, dtype: str, location: str = ""
) -> CheckResult:
    """Compare the effective mask with the stated geometry, layer by layer as far as the engine shows its layers.

    Behind layer i the geometry has been applied i + 1 times; the logits are behind all layers.

    Args:
        attention: the geometry.
        tensors: of a probe, for each tensor that it read, `probe.{tensor}`, float [queries, keys], and
            `probe.noise.{tensor}`, float [queries]; both are relative L2 changes.
        dtype: what the candidate computes in, a name of torch: `float32`.
        location: where the geometry is stated.

    Returns:
        The result; subject and rule are `attention`, and the first tensor that disagrees is told, with both matrices.
        Changes that are not finite fail. What cannot be read off the probe, or would look the same under another
        geometry (`find_double`), fails under the rule `evidence`.

    Raises:
        KeyError: a tensor has no noise.
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
        if not bool(changes.isfinite().all() & noise.isfinite().all()):
            return result(f"the changes of {label} are not finite: they show no influence", {"tensor": label})
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
    labels = [name.removeprefix(PREFIX) for name in names]
    double = find_double(attention, tokens, labels)
    if double:
        how = "" if layers else " by their logits alone"
        return result(f"{tokens} tokens cannot tell {_name(attention)} from {double}{how}", numbers, "evidence")
    return result("", numbers)


def find_double(attention: Attention, tokens: int, labels: Sequence[str]) -> str:
    """Return another geometry that would show the same, or "".

    Args:
        attention: the geometry.
        tokens: how many tokens the prompt has.
        labels: the tensors that are read, in model order.

    Returns:
        `bidirectional` for blocks as long as the prompt; `causal` for a window as long as the prompt, or for any that
        the layers widen to it before the first reading. Blocks of one token are causal however long the prompt, and a
        matrix is just what it states: neither has that double.
    """
    if attention.geometry in ("causal", "bidirectional") or attention.block_length == 1:
        return ""
    layers = sum(label.endswith(".output") for label in labels)
    mask = expected_geometry(attention, tokens)
    for other in (Attention("causal"), Attention("bidirectional")):
        double = expected_geometry(other, tokens)
        if attention.geometry == "matrix" and torch.equal(mask, double):
            continue
        pairs = ([mask_at(one, label, at, layers) for one in (mask, double)] for at, label in enumerate(labels, 1))
        if all(torch.equal(*pair) for pair in pairs):
            return _name(other)
    return ""


def mask_at(mask: torch.Tensor, label: str, depth: int, layers: int) -> torch.Tensor:
    """Return the geometry that a reading should show: behind its own layer, or behind all.

    An engine that shows its logits alone does not say how many layers they are behind: a geometry that grows from layer
    to layer is then taken at its closure.

    Args:
        mask: of one layer, bool [queries, keys].
        label: the tensor that is read, `layers.{i}.output` or `logits`.
        depth: its place among the readings, from 1; for a layer's output, how many layers it is behind.
        layers: how many layers' outputs are read; 0 for logits alone.

    Returns:
        bool [queries, keys].
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
    """Return the name of a found geometry.

    Args:
        found: bool [queries, keys], what influences what.
        layers: how many layers it is behind; 0 counts as 1.

    Returns:
        The first that fits, as `block_causal(32)`, or "" where none does.
    """
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
