"""Hooks: what is read, and proof that it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from specrunner.engines.hooks import (
    Geometry,
    Recorder,
    cut_part,
    extract_tensor,
    finish_tensors,
    flatten_tokens,
    gather_ranks,
)
from specrunner.engines.module_index import ModuleIndex
from specrunner.engines.name_maps import Entry, HookPoint, NameMap
from specrunner.errors import CaptureIncomplete

GEOMETRY = Geometry(heads=4, kv_heads=2, head_dim=3)


class Layer(nn.Module):
    """A layer as fused engines have it: (hidden, residual) out, overwriting what it gave before."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, hidden: torch.Tensor, residual: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        added = hidden if residual is None else hidden + residual
        return self.linear(added), added

    def route(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return hidden.topk(2, dim=-1)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])

    def forward(self, hidden: torch.Tensor, times: int = 1) -> torch.Tensor:
        residual = None
        for _ in range(times):
            for layer in self.layers:
                hidden, residual = layer(hidden, residual)
        hidden.zero_()
        return hidden


def point(name: str, **entry: Any) -> HookPoint:
    return HookPoint(name, entry["module"], Entry.parse(entry))


def index_of(model: nn.Module) -> ModuleIndex:
    """Index a model that no map speaks of."""
    return ModuleIndex(model, NameMap("test", "x", (), "n", {}), 0)


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


def test_residual_kept_apart_is_added_and_buffers_are_cloned(model: Model) -> None:
    points = [point(f"layers.{index}.output", module=f"layers.{index}", sum=[0, 1]) for index in (0, 1)]
    recorder = Recorder(index_of(model), points, GEOMETRY)
    inputs = torch.randn(5, 6)
    with torch.no_grad():
        first = model.layers[0].linear(inputs)
        second = model.layers[1].linear(first + inputs)
        model(inputs.clone())
    tensors = finish_tensors(recorder.take(), points, ["**"], 5)
    assert torch.allclose(tensors["layers.0.output"], first + inputs)
    # The model has overwritten its last buffer since.
    assert torch.allclose(tensors["layers.1.output"], second + first + inputs)


def test_missing_part_of_a_sum_counts_as_zero() -> None:
    entry = Entry.parse({"module": "x", "sum": [0, 1]})
    value = torch.randn(3, 2)
    assert torch.equal(extract_tensor(entry, (), (value, None), GEOMETRY), value)


def test_inputs_are_read_before_the_call_overwrites_them() -> None:
    class InPlace(nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden.add_(1)

    model = nn.Sequential(InPlace())
    recorder = Recorder(index_of(model), [point("embeddings", module="0", of="input", index=0)], GEOMETRY)
    model(torch.zeros(2, 2))
    assert not recorder.take()["embeddings"][0].any()


def test_methods_are_wrapped_and_given_back(model: Model) -> None:
    wanted = point("layers.0.router.expert_ids", module="layers.0", method="route", index=1)
    recorder = Recorder(index_of(model), [wanted], GEOMETRY)
    hidden = torch.randn(4, 6)
    expected = model.layers[0].route(hidden)[1]
    assert torch.equal(recorder.take()["layers.0.router.expert_ids"][0], expected)
    recorder.remove()
    model.layers[0].route(hidden)
    assert recorder.take() == {}


@pytest.mark.parametrize("method", ["choose", "linear.choose", "gone.route"])
def test_a_method_that_is_not_there_leaves_no_hook(model: Model, method: str) -> None:
    points = [
        point("layers.0.output", module="layers.0", index=0),
        point("layers.0.input", module="layers.0", of="input", index=0),
        point("layers.0.router.expert_ids", module="layers.0", method="route", index=1),
        point("layers.1.router.expert_ids", module="layers.1", method=method, index=1),
    ]
    said = f"module layers.1 has no method {method}, where the name map looks for layers.1.router.expert_ids"
    with pytest.raises(CaptureIncomplete) as caught:
        Recorder(index_of(model), points, GEOMETRY)
    assert caught.value.message == said
    layer = model.layers[0]
    assert (len(layer._forward_hooks), len(layer._forward_pre_hooks)) == (0, 0)
    assert not hasattr(layer.route, "__wrapped__")


def test_removed_hooks_record_nothing(model: Model) -> None:
    recorder = Recorder(index_of(model), [point("layers.0.output", module="layers.0", index=0)], GEOMETRY)
    recorder.remove()
    model(torch.randn(5, 6))
    assert recorder.take() == {}


def test_a_hook_that_did_not_fire_is_an_error(model: Model) -> None:
    points = [point("layers.0.output", module="layers.0", index=0)]
    recorder = Recorder(index_of(model), points, GEOMETRY)
    with pytest.raises(CaptureIncomplete, match=r"layers\.0 for layers\.0\.output did not fire"):
        finish_tensors(recorder.take(), points, ["**"], 5)


@pytest.mark.parametrize("rows", [4, 6])
def test_rows_must_be_the_prompts(model: Model, rows: int) -> None:
    points = [point("layers.0.output", module="layers.0", index=0)]
    recorder = Recorder(index_of(model), points, GEOMETRY)
    model(torch.randn(rows, 6))
    with pytest.raises(CaptureIncomplete, match=f"has {rows} rows for a prompt of 5 tokens"):
        finish_tensors(recorder.take(), points, ["**"], 5)


def test_chunks_of_a_prefill_are_joined_in_order(model: Model) -> None:
    points = [point("layers.0.output", module="layers.0", index=1)]
    recorder = Recorder(index_of(model), points, GEOMETRY)
    inputs = torch.randn(7, 6)
    model(inputs[:4])
    model(inputs[4:])
    assert torch.equal(finish_tensors(recorder.take(), points, ["**"], 7)["layers.0.output"], inputs)


def test_a_module_that_runs_twice_gives_too_many_rows(model: Model) -> None:
    points = [point("layers.0.output", module="layers.0", index=1)]
    recorder = Recorder(index_of(model), points, GEOMETRY)
    model(torch.randn(5, 6), times=2)
    with pytest.raises(CaptureIncomplete, match="has 10 rows"):
        finish_tensors(recorder.take(), points, ["**"], 5)


def test_value_that_is_no_tensor_is_an_error() -> None:
    with pytest.raises(CaptureIncomplete, match="gave str where a tensor was expected"):
        extract_tensor(Entry(module="x"), (), ("text",), GEOMETRY)


def test_fused_projection_is_cut_by_heads() -> None:
    fused = torch.arange(24.0).expand(2, 24)
    assert cut_part(fused, "query", GEOMETRY)[0].tolist() == list(range(12))
    assert cut_part(fused, "key", GEOMETRY)[0].tolist() == list(range(12, 18))
    assert cut_part(fused, "value", GEOMETRY)[0].tolist() == list(range(18, 24))
    with pytest.raises(CaptureIncomplete, match="23 columns, expected 24"):
        cut_part(fused[:, :23], "query", GEOMETRY)


@pytest.mark.parametrize("shape", [(5, 12), (1, 5, 12), (5, 4, 3), (1, 5, 4, 3)])
def test_batch_axis_goes_and_heads_are_joined(shape: tuple[int, ...]) -> None:
    values = torch.arange(60.0).reshape(shape)
    assert torch.equal(flatten_tokens(values, "x", 5), torch.arange(60.0).reshape(5, 12))


@pytest.mark.parametrize("shape", [(1, 12), (1, 1, 12), (1, 4, 3), (1, 1, 4, 3), (1, 1)])
def test_one_token_keeps_its_row(shape: tuple[int, ...]) -> None:
    values = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    assert torch.equal(flatten_tokens(values, "x", 1), values.reshape(1, -1))


def test_heads_first_changes_places() -> None:
    values = torch.arange(24.0).reshape(1, 2, 4, 3)
    entry = Entry.parse({"module": "x", "heads_first": True})
    taken = flatten_tokens(extract_tensor(entry, (), values, GEOMETRY), "x", 4)
    assert taken[1].tolist() == [3.0, 4.0, 5.0, 15.0, 16.0, 17.0]


def test_experts_come_in_ascending_order_with_their_weights() -> None:
    points = [point(f"layers.0.router.{name}", module="layers.0") for name in ("expert_ids", "expert_weights")]
    records = {
        "layers.0.router.expert_ids": [torch.tensor([[7, 2, 5]], dtype=torch.int32)],
        "layers.0.router.expert_weights": [torch.tensor([[0.5, 0.3, 0.2]])],
    }
    tensors = finish_tensors(records, points, ["layers.*.router.*"], 1)
    assert tensors["layers.0.router.expert_ids"].tolist() == [[2, 5, 7]]
    assert tensors["layers.0.router.expert_ids"].dtype == torch.int64
    assert tensors["layers.0.router.expert_weights"].tolist() == [[torch.tensor(v).item() for v in (0.3, 0.2, 0.5)]]


@pytest.mark.parametrize(
    ("gather", "replicas", "together"),
    [("columns", 1, [[0, 1, 2, 3]] * 2), ("columns", 2, [[0, 2]] * 2), ("sum", 1, [[6], [6]]), (None, 1, [[0]] * 2)],
)
def test_ranks_are_put_together(gather: str | None, replicas: int, together: list[list[int]]) -> None:
    ranks = [torch.full((2, 1), float(rank)) for rank in range(4)]
    assert gather_ranks(ranks, gather, replicas).tolist() == together


def test_partial_sums_are_added_in_float32_and_come_back_in_their_own_dtype() -> None:
    ranks = [torch.tensor([[256.0]]), torch.tensor([[1.0]]), torch.tensor([[1.0]])]
    total = gather_ranks([rank.bfloat16() for rank in ranks], "sum", 1)
    assert (total.tolist(), total.dtype) == ([[258.0]], torch.bfloat16)  # 256 where each sum is rounded


def test_an_unknown_way_to_gather_is_an_error_where_there_are_ranks() -> None:
    ranks = [torch.zeros(2, 1), torch.zeros(2, 1)]
    with pytest.raises(CaptureIncomplete, match="gather: rows"):
        gather_ranks(ranks, "rows", 1)
    assert gather_ranks(ranks[:1], "rows", 1) is ranks[0]
