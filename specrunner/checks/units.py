"""Units in the last place: the spacing of a dtype, and the distance of two tensors counted in it."""

from __future__ import annotations

import math

import torch

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_NO_OVERFLOW = {1: torch.int32, 2: torch.int32, 4: torch.int32, 8: torch.int64}


def unit_in_last_place(value: float, dtype: torch.dtype) -> float:
    """Return the spacing of the numbers of `dtype` at |value|, e.g. 0.125 for bfloat16 in [16, 32).

    Args:
        value: any finite number; below the smallest normal number the spacing is that of the subnormals.
        dtype: a floating-point dtype.

    Returns:
        The spacing, or NaN when `value` is not finite.
    """
    if not math.isfinite(value):
        return math.nan
    info = torch.finfo(dtype)
    exponent = math.frexp(max(abs(value), float(info.smallest_normal)))[1] - 1
    return math.ldexp(float(info.eps), exponent)


def ulp_distances(candidate: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return how many representable numbers lie between candidate and reference, element by element.

    The reference is first rounded to the candidate's dtype, so a correctly rounded candidate is at distance 0. -0.0 and
    0.0 are at distance 0, the smallest positive and negative numbers at distance 2. For numbers of one sign this is
    the difference of their bit patterns, since IEEE 754 orders them alike.

    A reference that is too large for the candidate's dtype is next to none of its numbers: the distance is then the
    largest of the dtype, that of its two extremes.

    Args:
        candidate: any float dtype, contiguous, finite.
        reference: same shape, any float dtype, contiguous, finite.

    Returns:
        Same shape. Integers (int32 or int64) when no pair differs in sign, else float64 (exact below 2**53).
    """
    dtype = candidate.dtype
    overflows = None
    if reference.dtype != dtype:
        overflows = _find_overflows(reference, dtype)
        reference = reference.to(dtype)
    distances = _bit_distances(candidate, reference)
    if overflows is None:
        return distances
    farthest = 2 * int(torch.tensor(torch.finfo(dtype).max, dtype=dtype).view(_INTEGERS[dtype.itemsize]))
    if farthest > torch.iinfo(_NO_OVERFLOW[dtype.itemsize]).max:
        distances = distances.double()
    return distances.masked_fill_(overflows, farthest)


def _find_overflows(reference: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
    """Return where numbers are rounded beyond the largest of `dtype`, or None when nowhere."""
    largest = float(torch.finfo(dtype).max)
    if torch.finfo(reference.dtype).max <= largest:
        return None
    # Not from what rounding makes of them: of the 8 bit dtypes, some have no infinity, and end at their largest number.
    magnitude = (reference if reference.dtype.itemsize > 1 else reference.float()).abs()
    bound = largest + unit_in_last_place(largest, dtype) / 2
    return None if float(magnitude.amax()) < bound else magnitude >= bound


def _bit_distances(candidate: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return the distances of `ulp_distances` for two tensors of one dtype."""
    dtype = candidate.dtype
    size = dtype.itemsize
    wide = _NO_OVERFLOW[size]
    bits = candidate.view(_INTEGERS[size]).to(wide)
    other = reference.view(_INTEGERS[size]).to(wide)
    signs = torch.bitwise_xor(bits, other)
    if int(signs.amin()) >= 0:
        return torch.sub(bits, other, out=signs).abs_()
    distances = torch.sub(bits, other).abs_().view(-1)
    places = (signs.view(-1) < 0).nonzero().view(-1)
    magnitude = torch.iinfo(_INTEGERS[size]).max
    across = (bits.view(-1)[places] & magnitude).double() + (other.view(-1)[places] & magnitude).double()
    if float(across.amax()) > torch.iinfo(wide).max // 2:
        distances = distances.double()
    distances[places] = across.to(distances.dtype)
    return distances.view(candidate.shape)
