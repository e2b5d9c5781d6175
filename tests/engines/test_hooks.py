"""Hooks: what is read, and proof that it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from specrunner.engines.hooks import (
    Geometry,
    Recorder,
    available_points,
    choose_points,
    cut_part,
    extract_tensor,
    finish_tensors,
    flatten_tokens,
    select_points,
    suggest_module,
)
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


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


def test_residual_kept_apart_is_added_and_buffers_are_cloned(model: Model) -> None:
    points = [point(f"layers.{index}.output", module=f"layers.{index}", sum=[0, 1]) for index in (0, 1)]
    recorder = Recorder(model, points, GEOMETRY)
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
    recorder = Recorder(model, [point("embeddings", module="0", of="input", index=0)], GEOMETRY)
    model(torch.zeros(2, 2))
    assert not recorder.take()["embeddings"][0].any()


def test_methods_are_wrapped_and_given_back(model: Model) -> None:
    wanted = point("layers.0.router.expert_ids", module="layers.0", method="route", index=1)
    recorder = Recorder(model, [wanted], GEOMETRY)
    hidden = torch.randn(4, 6)
    expected = model.layers[0].route(hidden)[1]
    assert torch.equal(recorder.take()["layers.0.router.expert_ids"][0], expected)
    recorder.remove()
    model.layers[0].route(hidden)
    assert recorder.take() == {}


def test_removed_hooks_record_nothing(model: Model) -> None:
    recorder = Recorder(model, [point("layers.0.output", module="layers.0", index=0)], GEOMETRY)
    recorder.remove()
    model(torch.randn(5, 6))
    assert recorder.take() == {}


def test_a_hook_that_did_not_fire_is_an_error(model: Model) -> None:
    points = [point("layers.0.output", module="layers.0", index=0)]
    recorder = Recorder(model, points, GEOMETRY)
    with pytest.raises(CaptureIncomplete, match=r"layers\.0 for layers\.0\.output did not fire"):
        finish_tensors(recorder.take(), points, ["**"], 5)


@pytest.mark.parametrize("rows", [4, 6])
def test_rows_must_be_the_prompts(model: Model, rows: int) -> None:
    points = [point("layers.0.output", module="layers.0", index=0)]
    recorder = Recorder(model, points, GEOMETRY)
    model(torch.randn(rows, 6))
    with pytest.raises(CaptureIncomplete, match=f"has {rows} rows for a prompt of 5 tokens"):
        finish_tensors(recorder.take(), points, ["**"], 5)


def test_chunks_of_a_prefill_are_joined_in_order(model: Model) -> None:
    points = [point("layers.0.output", module="layers.0", index=1)]
    recorder = Recorder(model, points, GEOMETRY)
    inputs = torch.randn(7, 6)
    model(inputs[:4])
    model(inputs[4:])
    assert torch.equal(finish_tensors(recorder.take(), points, ["**"], 7)["layers.0.output"], inputs)


def test_a_module_that_runs_twice_gives_too_many_rows(model: Model) -> None:
    points = [point("layers.0.output", module="layers.0", index=1)]
    recorder = Recorder(model, points, GEOMETRY)
    model(torch.randn(5, 6), times=2)
    with pytest.raises(CaptureIncomplete, match="has 10 rows"):
        finish_tensors(recorder.take(), points, ["**"], 5)


def test_missing_module_is_an_error_unless_optional(model: Model) -> None:
    with pytest.raises(CaptureIncomplete, match=r"no module layers\.7"):
        Recorder(model, [point("layers.7.output", module="layers.7")], GEOMETRY)
    Recorder(model, [point("layers.7.output", module="layers.7", optional=True)], GEOMETRY)


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


def test_weights_alone_are_ordered_too(model: Model) -> None:
    entries = {
        f"layers.{{i}}.router.{name}": Entry(module="layers.{i}", index=0) for name in ("expert_ids", "expert_weights")
    }
    points = available_points(NameMap("test", "x", (), "n", entries), model, 2)
    chosen = select_points(points, ["layers.1.router.expert_weights"])
    assert [item.name for item in chosen] == ["layers.1.router.expert_ids", "layers.1.router.expert_weights"]
    records = {item.name: [torch.tensor([[2.0, 1.0]])] for item in chosen}
    assert list(finish_tensors(records, chosen, ["layers.1.router.expert_weights"], 1)) == [
        "layers.1.router.expert_weights"
    ]


def test_a_module_that_the_model_lacks_is_named(model: Model) -> None:
    entries = {
        "layers.{i}.output": Entry(module="layer.{i}"),
        "layers.{i}.mlp.output": Entry(module="layers.{i}.nothing", optional=True),
    }
    name_map = NameMap("test", "family", (), "n", entries)
    with pytest.raises(
        CaptureIncomplete, match=r"no module `layer\.0`, where .* test/family\.yaml looks for"
    ) as caught:
        choose_points(name_map, model, 2, ["layers.*.output"])
    assert caught.value.help == "did you mean `layers.0`?"
    with pytest.raises(CaptureIncomplete, match="no tensor of this model matches"):
        choose_points(name_map, model, 2, ["layers.*.mlp.output"])


def test_a_module_is_guessed_among_those_of_its_layer_however_many_there_are() -> None:
    parts = ("self_attn.q_proj", "self_attn.k_proj", "mlp", "input_layernorm", *(f"mlp.experts.{n}" for n in range(64)))
    modules = ["", "model.norm", *(f"model.layers.{layer}.{part}" for layer in range(80) for part in parts)]
    assert len(modules) > 5000
    assert suggest_module("model.layers.63.self_atn.q_proj", modules) == "model.layers.63.self_attn.q_proj"
    assert suggest_module("model.layers.7.mpl.experts.5", modules) == "model.layers.7.mlp.experts.5"
    assert suggest_module("model.nrom", modules) == "model.norm"
    assert suggest_module("transformer.h.3.attn", modules) is None


def test_pattern_without_a_tensor_is_an_error(model: Model) -> None:
    points = [point("layers.0.output", module="layers.0")]
    with pytest.raises(CaptureIncomplete, match=r"matches 'layers\.3\.output'"):
        select_points(points, ["layers.0.output", "layers.3.output"])
    assert [item.name for item in select_points(points, ["passes.*.logits", "layers.*.output"])] == ["layers.0.output"]
