"""Which modules a model has, and which of them a pattern asks for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from specrunner.engines.hooks import finish_tensors
from specrunner.engines.module_index import ModuleIndex, select_points, suggest_module
from specrunner.engines.name_maps import Entry, HookPoint, NameMap
from specrunner.errors import CaptureIncomplete


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])


def index(model: nn.Module, layers: int = 2, **entries: Entry) -> ModuleIndex:
    templates = {name.replace("__", "."): entry for name, entry in entries.items()}
    named = {f"layers.{{i}}.{name}" if name != "head" else name: entry for name, entry in templates.items()}
    return ModuleIndex(model, NameMap("test", "family", (), "n", named), layers)


def test_weights_alone_bring_the_ids_that_they_are_ordered_by() -> None:
    routed = {f"router__{name}": Entry(module="layers.{i}", index=0) for name in ("expert_ids", "expert_weights")}
    patterns = ["layers.1.router.expert_weights"]
    chosen = index(Model(), **routed).choose(patterns)
    assert [point.name for point in chosen] == ["layers.1.router.expert_ids", "layers.1.router.expert_weights"]
    records = {point.name: [torch.tensor([[2.0, 1.0]])] for point in chosen}
    assert list(finish_tensors(records, chosen, patterns, 1)) == ["layers.1.router.expert_weights"]


def test_a_module_that_the_model_lacks_is_named() -> None:
    wrong = index(Model(), output=Entry(module="layer.{i}"))
    with pytest.raises(
        CaptureIncomplete, match=r"no module `layer\.0`, where .* test/family\.yaml looks for"
    ) as caught:
        wrong.choose(["layers.*.output"])
    assert caught.value.help == "did you mean `layers.0`?"


def test_one_layer_that_the_model_lacks_is_named_unless_it_is_optional_or_not_asked_for() -> None:
    with pytest.raises(CaptureIncomplete, match=r"no module `layers\.2`"):
        index(Model(), 3, output=Entry(module="layers.{i}")).choose(["layers.*.output"])
    for found in (
        index(Model(), 3, output=Entry(module="layers.{i}", optional=True)).choose(["layers.*.output"]),
        index(Model(), 3, output=Entry(module="layers.{i}")).choose(["layers.0.output", "layers.1.output"]),
    ):
        assert [point.name for point in found] == ["layers.0.output", "layers.1.output"]


@pytest.mark.parametrize(
    ("pattern", "advice"),
    [
        ("layers.9.output", "it has `layers.0.output` to `layers.10.output`"),
        ("layers.11.output", "it has `layers.0.output` to `layers.10.output`"),
        ("layers.0.router.logits", "it has `layers.*.output`, `logits`"),
    ],
)
def test_what_a_model_has_instead_is_said(pattern: str, advice: str) -> None:
    points = [HookPoint(f"layers.{layer}.output", f"layers.{layer}", Entry(module="layers.{i}")) for layer in range(11)]
    del points[9]
    points.append(HookPoint("logits", "head", Entry(module="head")))
    with pytest.raises(CaptureIncomplete) as caught:
        select_points(points, [pattern])
    assert caught.value.help == advice


def test_an_optional_module_that_no_layer_has_matches_nothing() -> None:
    optional = index(Model(), mlp__output=Entry(module="layers.{i}.nothing", optional=True))
    with pytest.raises(CaptureIncomplete, match="no tensor of this model matches"):
        optional.choose(["layers.*.mlp.output"])


def test_a_model_that_was_changed_is_looked_at_again() -> None:
    model = Model()
    found = index(model, output=Entry(module="layers.{i}"))
    before = found.choose(["layers.*.output"])
    assert found.refresh().choose(["layers.*.output"]) is before, "an unchanged one is not"
    replaced = model.layers[1] = nn.Linear(2, 2)
    assert found.refresh().modules["layers.1"] is replaced
    model.layers[0] = nn.Sequential(nn.Linear(2, 2))
    assert "layers.0.0" in found.refresh().modules
    model.layers[0].append(nn.ReLU())
    assert "layers.0.1" in found.refresh().modules
    del model.layers[1]
    with pytest.raises(CaptureIncomplete, match=r"no module `layers\.1`"):
        found.refresh().choose(["layers.*.output"])


def test_a_module_that_stands_in_several_layers_is_found_in_each() -> None:
    model = Model()
    model.layers[1] = model.layers[0]
    model.extra = model.layers[0]
    found = index(model, output=Entry(module="layers.{i}"))
    first, second = found.choose(["layers.*.output"])
    assert found.find_layers(first) == found.find_layers(second) == ["layers.0", "layers.1"]


def test_parameters_are_read_as_they_are_now() -> None:
    model = Model()
    found = index(model, router__expert_bias=Entry(module="layers.{i}", parameter="bias"), output=Entry("layers.{i}"))
    with torch.no_grad():
        model.layers[1].bias.fill_(3.0)
    constants = found.read_constants(found.points)
    assert sorted(constants) == ["layers.0.router.expert_bias", "layers.1.router.expert_bias"]
    assert constants["layers.1.router.expert_bias"].tolist() == [3.0, 3.0]
    assert constants["layers.1.router.expert_bias"].data_ptr() != model.layers[1].bias.data_ptr()


def test_a_module_is_guessed_among_those_of_its_layer_however_many_there_are() -> None:
    parts = ("self_attn.q_proj", "self_attn.k_proj", "mlp", "input_layernorm", *(f"mlp.experts.{n}" for n in range(64)))
    modules = ["", "model.norm", *(f"model.layers.{layer}.{part}" for layer in range(80) for part in parts)]
    assert len(modules) > 5000
    assert suggest_module("model.layers.63.self_atn.q_proj", modules) == "model.layers.63.self_attn.q_proj"
    assert suggest_module("model.layers.7.mpl.experts.5", modules) == "model.layers.7.mlp.experts.5"
    assert suggest_module("model.nrom", modules) == "model.norm"
    assert suggest_module("transformer.h.3.attn", modules) is None


def test_pattern_without_a_tensor_is_an_error() -> None:
    points = [HookPoint("layers.0.output", "layers.0", Entry("layers.0"))]
    with pytest.raises(CaptureIncomplete, match=r"matches 'layers\.3\.output'"):
        select_points(points, ["layers.0.output", "layers.3.output"])
    assert [item.name for item in select_points(points, ["passes.*.logits", "layers.*.output"])] == ["layers.0.output"]
