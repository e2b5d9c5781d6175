"""Every measurement against its slow reading, for any cut into blocks."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specrunner.checks.measure import Wanted, measure
from specrunner.checks.measurements import Measurements
from specrunner.checks.sources import MemorySource
from tests.checks.readings import (
    flat,
    numbers,
    pairs,
    rank,
    read_cosine,
    read_kl,
    read_percentile,
    read_row_error,
    read_top,
)

BLOCKS = st.sampled_from([1, 2, 3, 7, 20, 49_152])
BOUNDS = ((0.0, 0.0), (1e-3, 0.0), (0.0, 0.01), (1e-5, 1e-6))


def take(candidate: torch.Tensor, reference: torch.Tensor, blocks: int = 49_152, **kwargs: object) -> Measurements:
    wanted = Wanted(allclose=BOUNDS, differing=True, kl=True, top_k=(1, 3))
    sources = (MemorySource("x", candidate), MemorySource("x", reference))
    return measure(*sources, wanted=wanted, block_elements=blocks, **kwargs)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=100)
@given(pairs(), BLOCKS)
def test_element_distances_follow_their_formulas(pair: tuple[torch.Tensor, torch.Tensor], blocks: int) -> None:
    measured = take(*pair, blocks)
    a, r = map(flat, pair)
    columns = pair[0].shape[1]
    distances = [abs(x - y) for x, y in zip(a, r, strict=True)]
    assert measured.max_abs.value == max(distances)
    assert measured.max_abs.token == distances.index(max(distances)) // columns
    assert measured.mean_abs == pytest.approx(math.fsum(distances) / len(distances), rel=1e-12)
    ratios = [0.0 if d == 0 else (d / abs(y) if y else math.inf) for d, y in zip(distances, r, strict=True)]
    assert measured.max_rel.value == max(ratios)
    assert measured.max_rel.token == ratios.index(max(ratios)) // columns
    assert measured.differing == sum(d > 0 for d in distances)
    if measured.differing:
        first = next(index for index, d in enumerate(distances) if d)
        assert measured.first is not None
        assert (measured.first.index, measured.first.token) == (first, first // columns)
        assert (measured.first.candidate, measured.first.reference) == (a[first], r[first])
    else:
        assert measured.first is None
    for rtol, atol in BOUNDS:
        outside = sum(not d <= atol + rtol * abs(y) for d, y in zip(distances, r, strict=True))
        assert measured.allclose[rtol, atol].outside == outside


@settings(deadline=None, max_examples=100)
@given(pairs(), BLOCKS)
def test_units_follow_the_count_of_representable_numbers(pair: tuple[torch.Tensor, torch.Tensor], blocks: int) -> None:
    candidate, reference = pair
    dtype = candidate.dtype
    farthest = 2 * rank(torch.finfo(dtype).max, dtype)
    units = [
        farthest if math.isinf(y) else abs(rank(x, dtype) - rank(y, dtype))
        for x, y in zip(flat(candidate), flat(reference.to(dtype)), strict=True)
    ]
    measured = take(candidate, reference, blocks)
    assert measured.ulp.value == pytest.approx(max(units), rel=1e-15)
    assert measured.ulp_over_one == sum(unit > 1 for unit in units) / len(units)


@settings(deadline=None, max_examples=100)
@given(pairs(), BLOCKS)
def test_row_errors_and_cosines_follow_their_formulas(pair: tuple[torch.Tensor, torch.Tensor], blocks: int) -> None:
    measured = take(*pair, blocks)
    a, r = map(numbers, pair)
    if pair[0].dtype == torch.float64 and any(0 < max(map(abs, row)) < 1e-140 for row in a + r):
        # The squares are lost: there is no number, and that never passes.
        assert math.isnan(measured.rel_l2) or measured.token_rel_l2.value != measured.token_rel_l2.value
        return
    if pair[1].dtype == torch.float64 and any(0 < max(map(abs, row)) < 1e-140 for row in r):
        assert math.isnan(measured.token_rel_l2.value)
        return
    errors = [read_row_error(x, y) for x, y in zip(a, r, strict=True)]
    assert measured.token_rel_l2.value == pytest.approx(max(errors), rel=1e-9)
    assert measured.row_errors is not None
    assert measured.row_errors.tolist() == pytest.approx(errors, rel=1e-9)
    assert measured.token_rel_l2_p99 == pytest.approx(read_percentile(errors), rel=1e-9)
    assert measured.rel_l2 == pytest.approx(read_row_error(*map(flat, pair)), rel=1e-9)
    cosines = [read_cosine(x, y) for x, y in zip(a, r, strict=True)]
    assert measured.cosine.value == pytest.approx(min(cosines), abs=1e-12)
    zeros = [any(x) != any(y) for x, y in zip(a, r, strict=True)]
    assert measured.cosine_undefined == sum(zeros)
    worst = max(errors)
    sqnr = math.inf if worst == 0 else -math.inf if math.isinf(worst) else -20 * math.log10(worst)
    assert measured.sqnr.value == pytest.approx(sqnr, abs=1e-6)


@settings(deadline=None, max_examples=100)
@given(pairs(dtypes=(torch.float32, torch.bfloat16)), BLOCKS)
def test_vocabulary_measurements_follow_their_formulas(pair: tuple[torch.Tensor, torch.Tensor], blocks: int) -> None:
    limit = 500.0
    candidate, reference = (side.clamp(-limit, limit) for side in pair)
    measured = take(candidate, reference, blocks)
    a, r = numbers(candidate), numbers(reference)
    divergences = [read_kl(x, y) for x, y in zip(a, r, strict=True)]
    assert measured.kl is not None
    assert measured.kl.mean == pytest.approx(math.fsum(divergences) / len(divergences), abs=1e-9)
    assert measured.kl.max.value == pytest.approx(max(divergences), abs=1e-9)
    assert measured.kl.p99 == pytest.approx(read_percentile(divergences), abs=1e-9)
    for k in (1, 3):
        shares = []
        for x, y in zip(a, r, strict=True):
            ours, theirs = set(read_top(x, k)), set(read_top(y, k))
            shares.append(len(ours & theirs) / min(k, len(x)))
        assert measured.top_k[k].mean == pytest.approx(math.fsum(shares) / len(shares), rel=1e-12)
        assert measured.top_k[k].min.value == min(shares)
        assert measured.top_k[k].min.token == shares.index(min(shares))
    same = [read_top(x, 1) == read_top(y, 1) for x, y in zip(a, r, strict=True)]
    assert measured.top_k[3].top_1 == pytest.approx(sum(same) / len(same))


@settings(deadline=None, max_examples=60)
@given(pairs(dtypes=(torch.float32, torch.bfloat16)), BLOCKS, st.randoms())
def test_permuting_rows_permutes_tokens(pair: tuple[torch.Tensor, torch.Tensor], blocks: int, random: object) -> None:
    order = list(range(pair[0].shape[0]))
    random.shuffle(order)  # type: ignore[attr-defined]
    before, after = take(*pair), take(pair[0][order], pair[1][order], blocks)
    assert before.row_errors is not None and after.row_errors is not None
    assert after.row_errors.tolist() == pytest.approx(before.row_errors[order].tolist(), rel=1e-12)
    assert after.max_abs.value == before.max_abs.value
    assert after.cosine.value == pytest.approx(before.cosine.value, abs=1e-12)
    assert after.allclose[1e-3, 0.0].outside == before.allclose[1e-3, 0.0].outside
    assert after.ulp_over_one == before.ulp_over_one
    assert after.rel_l2 == pytest.approx(before.rel_l2, rel=1e-12)


@pytest.mark.parametrize("shape", [(2, 35_000), (2, 3, 5), (5_000, 2), (1000,), (), (1, 1), (600, 33)])
def test_the_cut_does_not_change_the_result(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(3)
    reference = torch.randn(shape, generator=generator)
    candidate = (reference + 0.01 * torch.randn(shape, generator=generator)).bfloat16()
    whole = take(candidate, reference).to_json()
    for blocks in (64, 5000, 100_000):
        other = take(candidate, reference, blocks).to_json()
        assert other.keys() == whole.keys()
        for name, value in whole.items():
            assert other[name] == (pytest.approx(value, rel=1e-10, abs=1e-12) if isinstance(value, float) else value), (
                name
            )


def test_the_worst_token_is_named() -> None:
    reference = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    candidate = reference.clone()
    candidate[37, 4] += 0.5
    measured = take(candidate, reference)
    for at in (measured.max_abs, measured.token_rel_l2, measured.cosine, measured.sqnr, measured.ulp):
        assert at.token == 37
    assert measured.kl is not None
    assert measured.kl.max.token == 37
    assert measured.first is not None
    assert (measured.first.token, measured.first.index) == (37, 37 * 16 + 4)


def test_a_token_is_an_index_of_the_first_axis() -> None:
    reference = torch.zeros(4, 3, 8)
    candidate = reference.clone()
    candidate[2, 1, 5] = 1.0
    measured = take(candidate, reference)
    assert measured.rows == 12
    assert measured.max_abs.token == measured.token_rel_l2.token == 2
    assert measured.first is not None
    assert (measured.first.token, measured.first.index) == (2, 2 * 24 + 8 + 5)


def test_zero_rows() -> None:
    zero, one = torch.zeros(1, 4), torch.ones(1, 4)
    both = take(zero, zero)
    assert (both.rel_l2, both.cosine.value, both.sqnr.value, both.max_rel.value) == (0.0, 1.0, math.inf, 0.0)
    reference_only = take(one, zero)
    assert (reference_only.rel_l2, reference_only.sqnr.value) == (math.inf, -math.inf)
    assert (reference_only.cosine_undefined, reference_only.max_rel.value) == (1, math.inf)
    candidate_only = take(zero, one)
    assert (candidate_only.rel_l2, candidate_only.sqnr.value, candidate_only.cosine_undefined) == (1.0, 0.0, 1)


def test_negative_zero_equals_zero() -> None:
    measured = take(torch.tensor([[-0.0, 1.0]]), torch.tensor([[0.0, 1.0]]))
    assert (measured.differing, measured.max_abs.value, measured.ulp.value) == (0, 0.0, 0.0)


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_squares_beyond_float64_are_no_number(size: float) -> None:
    reference = torch.tensor([[size, 2 * size]], dtype=torch.float64)
    measured = take(3 * reference, reference)
    assert math.isnan(measured.token_rel_l2.value)
    assert math.isnan(measured.rel_l2)
    assert math.isnan(measured.cosine.value)
    assert math.isnan(measured.sqnr.value)
    assert measured.max_abs.value == pytest.approx(4 * size)


@pytest.mark.parametrize("reference", [0.0, 1.0])
def test_a_candidate_too_small_to_square_is_not_taken_for_zero(reference: float) -> None:
    small = torch.full((1, 2), 1e-200, dtype=torch.float64)
    measured = take(small, torch.full((1, 2), reference, dtype=torch.float64))
    assert math.isnan(measured.token_rel_l2.value)
    assert math.isnan(measured.cosine.value)


def test_what_is_not_finite_is_counted_and_left_out() -> None:
    nan, inf = math.nan, math.inf
    candidate = torch.tensor([[1.0, nan, inf, -inf, 2.0], [nan, inf, 1.0, 4.0, 5.0]])
    reference = torch.tensor([[1.0, 1.0, inf, inf, 3.0], [nan, 1.0, inf, 4.0, nan]])
    for blocks in (1, 3, 5, 10):
        measured = take(candidate, reference, blocks)
        counts = measured.non_finite
        assert (counts.candidate_nan, counts.candidate_inf) == (2, 3)
        assert (counts.reference_nan, counts.reference_inf) == (2, 3)
        assert (counts.equal_infinities, counts.unmatched) == (1, 6)
        assert counts.first is not None and counts.first.index == 1
        assert measured.compared == 3
        assert measured.max_abs.value == 1.0
        assert measured.mean_abs == pytest.approx(1 / 3)
        assert measured.first is not None and measured.first.index == 1
        assert measured.kl is not None and math.isnan(measured.kl.mean) and math.isnan(measured.kl.p99)


def test_a_peer_gives_the_floor() -> None:
    reference = torch.tensor([[3.0, 4.0], [6.0, 8.0]], dtype=torch.float64)
    peer = reference + torch.tensor([[0.05, 0.0], [0.0, 0.2]])
    candidate = reference + torch.tensor([[0.0, 0.1], [0.0, 0.1]])
    for blocks in (1, 2, 100):
        measured = take(candidate, reference, blocks, peer=MemorySource("x", peer))
        floor = measured.floor
        assert floor is not None
        assert floor.epsilon == 2.0**-52
        assert floor.needed_by_token.value == pytest.approx(2.0)
        assert floor.needed_by_token.token == 0
        assert floor.worst == pytest.approx((0.02, 0.01))
        assert floor.whole == pytest.approx((math.sqrt(0.02 / 125), math.sqrt(0.0425 / 125)))
        assert floor.needed == pytest.approx(math.sqrt(0.02 / 0.0425))


def test_the_floor_is_over_the_finite_pairs_too() -> None:
    reference = torch.tensor([[3.0, 4.0, 5.0]], dtype=torch.float64)
    candidate = torch.tensor([[3.0, 4.1, math.nan]], dtype=torch.float64)
    floor = take(candidate, reference, peer=MemorySource("x", reference + torch.tensor([[0.0, 0.05, 7.0]]))).floor
    assert floor is not None
    assert floor.whole == pytest.approx((0.02, 0.01))


@pytest.mark.parametrize(
    ("candidate", "reference"),
    [
        (torch.zeros(2, 3), torch.zeros(3)),
        (torch.zeros(2, 1), torch.zeros(2, 3)),
        (torch.zeros(0, 3), torch.zeros(0, 3)),
    ],
)
def test_measure_broadcasts_nothing_and_needs_an_element(candidate: torch.Tensor, reference: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="shape"):
        take(candidate, reference)


def test_measure_takes_floats_only() -> None:
    with pytest.raises(ValueError, match="floating point"):
        take(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3))


class Watched(MemorySource):
    """Notes on how many threads torch computes when it is read."""

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__("x", values)
        self.threads: list[int] = []

    def rows(self, start: int, stop: int) -> torch.Tensor:
        self.threads.append(torch.get_num_threads())
        return super().rows(start, stop)


@pytest.mark.parametrize("other", [torch.ones(3, 4), torch.ones(0, 4)])
def test_measuring_takes_one_thread_and_leaves_the_others_as_they_were(other: torch.Tensor) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        source = Watched(torch.ones(3, 4))
        if other.numel():
            measure(source, MemorySource("y", other))
            assert source.threads == [1]
        else:
            with pytest.raises(ValueError, match="shapes differ"):
                measure(source, MemorySource("y", other))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
