"""The compact form at its real size: 64 tokens of a vocabulary of 157,184."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from specrunner.checks.evidence import LoadedCapture
from specrunner.checks.measure import Wanted, measure
from specrunner.checks.sources import MemorySource
from specrunner.golden.census import measure_bytes
from specrunner.golden.judge import estimate_tensor
from specrunner.golden.kept import KeptTensor, keep_tensor, read_golden
from specrunner.spec.model import GoldenChoice, Tolerance
from tests.golden.builders import keep, make_case, sqnr

TOKENS, VOCABULARY = 64, 157_184


@pytest.fixture(scope="module")
def logits() -> torch.Tensor:
    """Logits with a few favourites a row, as a language model has them."""
    generator = torch.Generator().manual_seed(7)
    values = torch.randn(TOKENS, VOCABULARY, generator=generator) * 2
    for row in range(TOKENS):
        values[row, torch.randint(VOCABULARY, (8,), generator=generator)] += 12 + 4 * torch.rand(8, generator=generator)
    return values


def test_64_tokens_of_a_large_vocabulary_take_200_kb(tmp_path: Path, logits: torch.Tensor) -> None:
    case = make_case(
        tmp_path, tensors=("logits",), tolerance=(Tolerance("logits", sqnr(80), make_case(tmp_path).location),)
    )
    capture = LoadedCapture(tuple(range(TOKENS)), {"logits": MemorySource("logits", logits)}, tuple(range(64)))
    golden = keep(case, capture)
    assert measure_bytes(golden.slot) <= 200_000
    assert read_golden(golden.slot).tensors["logits"].entry.form == "compact"


@pytest.mark.parametrize(
    "kind", [pytest.param("noise", marks=pytest.mark.slow), "one layer's fault", "one column", "bfloat16"]
)
def test_the_error_is_estimated_within_ten_percent(kind: str, logits: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(len(kind))
    logits = logits if kind == "noise" else logits[:16]
    if kind == "noise":
        candidate = logits + torch.randn(logits.shape, generator=generator) * 1e-4
    elif kind == "one layer's fault":
        basis = torch.randn(16, VOCABULARY, generator=generator)
        candidate = logits + 0.3 * torch.rand(len(logits), 16, generator=generator) @ basis
    elif kind == "one column":
        candidate = logits.clone()
        candidate[:, 4321] += 3
    else:
        candidate = logits.bfloat16().float()
    golden = keep_tensor("logits", MemorySource("logits", logits), GoldenChoice(), 99)
    estimates = estimate_tensor(MemorySource("logits", candidate), golden, (10,))
    true = measure(MemorySource("c", candidate), MemorySource("r", logits), wanted=Wanted(kl=True, top_k=(10,)))
    assert true.row_errors is not None
    assert estimates.relative_l2 == pytest.approx(true.rel_l2, rel=0.1)
    assert torch.all((estimates.errors / true.row_errors - 1).abs() < 0.13)
    assert torch.all(estimates.bounds >= true.row_errors)
    assert float(estimates.cosines.min()) <= true.cosine.value + 1e-12
    assert true.kl is not None
    assert estimates.kl is not None
    assert float(estimates.kl[0].mean()) <= true.kl.mean * (1 + 1e-9) + 1e-12
    assert true.kl.mean <= float(estimates.kl[1].mean()) * (1 + 1e-9) + 1e-12
    assert float(estimates.overlaps[10].mean()) == pytest.approx(true.top_k[10].mean)
    assert estimates.top_1 == true.top_k[10].top_1


def test_the_same_tensor_has_no_error(logits: torch.Tensor) -> None:
    part = MemorySource("logits", logits[:4])
    golden = keep_tensor("logits", part, GoldenChoice(), 99)
    estimates = estimate_tensor(part, golden, (10,))
    assert estimates.relative_l2 == 0
    assert float(estimates.cosines.min()) == 1
    assert estimates.kl is not None
    assert float(estimates.kl[1].max()) < 1e-12


def test_kl_is_bounded_closely_where_the_mass_is_kept() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(8, 3000, generator=generator) * 4
    candidate = logits + torch.randn(logits.shape, generator=generator) * 0.05
    golden = keep_tensor("logits", MemorySource("logits", logits), GoldenChoice(top_k=256), 1)
    kl = estimate_tensor(MemorySource("logits", candidate), golden).kl
    true = measure(MemorySource("c", candidate), MemorySource("r", logits), wanted=Wanted(kl=True)).kl
    assert kl is not None
    assert true is not None
    low, high = kl.mean(-1).tolist()
    assert low <= true.mean <= high
    assert high < 3 * true.mean + 1e-3


def test_which_form_a_tensor_takes() -> None:
    def form(name: str, tensor: torch.Tensor, **settings: int) -> KeptTensor:
        return keep_tensor(name, MemorySource(name, tensor), GoldenChoice(**settings), 1)

    wide = torch.ones(8, 5000)
    assert form("layers.0.output", wide).entry.form == "compact"
    assert form("layers.0.output", wide).sketch.top_ids is None  # type: ignore[union-attr]
    assert form("logits", wide).sketch.top_ids is not None  # type: ignore[union-attr]
    assert form("logits", wide, full_tokens=8).entry.form == "full"
    assert form("logits", wide, full_tokens=7).entry.form == "compact"
    assert form("layers.0.output", torch.ones(8, 600)).entry.form == "full"  # no larger than 640 projections
    assert form("layers.0.router.expert_ids", torch.ones(900, 4000, dtype=torch.int64)).entry.form == "full"
