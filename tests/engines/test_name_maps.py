"""Name maps: parsing, layers, and every map that is shipped."""

from __future__ import annotations

from importlib.resources import files

import pytest

from specrunner.engines.name_maps import load_maps, parse_map, tensor_templates

ENGINES = sorted(entry.name for entry in files("specrunner.engines").joinpath("names").iterdir() if entry.is_dir())

MAP = """
architectures: [OneForCausalLM, OtherForCausalLM]
tensors:
  embeddings: {module: model.embed}
  "layers.{i}.output": {module: "model.layers.{i}.norm", index: 1, shift: 1, last: {module: model.norm, index: 1}}
"""


def test_layers_are_counted_and_the_last_one_may_differ() -> None:
    points = parse_map("test", "x", MAP).hook_points(3)
    assert [(point.name, point.module) for point in points] == [
        ("embeddings", "model.embed"),
        ("layers.0.output", "model.layers.1.norm"),
        ("layers.1.output", "model.layers.2.norm"),
        ("layers.2.output", "model.norm"),
    ]


def test_passes_belong_to_block_diffusion() -> None:
    assert parse_map("test", "x", MAP).templates == ("embeddings", "layers.{i}.output")
    diffusion = parse_map("test", "x", MAP + "algorithms: [low_confidence]\n")
    assert diffusion.templates == ("embeddings", "layers.{i}.output", "passes.{i}.logits")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MAP.replace("embeddings:", "embedings:"), "unknown tensor names"),
        (MAP.replace("index: 1, shift", "indx: 1, shift"), "indx"),
        (MAP.replace("architectures", "architecture"), "architectures"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"name map test/x: .*{message}"):
        parse_map("test", "x", text)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_shipped_map_is_read(engine: str) -> None:
    maps = load_maps(engine)
    assert maps
    for architecture, name_map in maps.items():
        assert {"embeddings", "layers.{i}.output", "final_norm", "logits"} <= set(name_map.entries), name_map.family
        assert tensor_templates(engine, architecture) == name_map.templates
    assert tensor_templates(engine, "UnheardOfForCausalLM") is None
