"""Name maps: parsing, layers, and every map that is shipped."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest

from specrunner.engines.name_maps import load_maps, parse_map, tensor_templates
from specrunner.errors import ConfigurationError, SpecError

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
    ("old", "new", "line", "message", "advice"),
    [
        ("embeddings:", "embedings:", 4, "unknown tensor `embedings`", "did you mean `embeddings`?"),
        ("index: 1, shift", "indx: 1, shift", 5, "unknown key `indx`", "did you mean `index`?"),
        ("last: {module:", "last: {modul:", 5, "unknown key `modul`", "did you mean `module`?"),
        ("architectures", "architecture", 2, "unknown key `architecture`", "did you mean `architectures`?"),
        ("tensors:\n", "", 3, "a key was expected here", "indentation"),
        ("\n  emb", "\n\temb", 4, "a tab cannot indent", "indent with spaces"),
        ("{module: model.embed}", "model.embed", 4, "must be a mapping", "module:"),
        ("module: model.embed", "of: input", 4, "key `module` is missing", "`module`"),
        ("index: 1, shift", "part: querry, shift", 5, "`part` cannot be `querry`", "did you mean `query`?"),
        ("index: 1, shift", "index: one, shift", 5, "`index` must be a whole number", None),
        ("\ntens", "\nrouter: {score: max}\ntens", 3, "`score` cannot be `max`", "`softmax`"),
    ],
)
def test_mistakes_are_shown_where_they_stand(old: str, new: str, line: int, message: str, advice: str | None) -> None:
    assert old in MAP
    with pytest.raises(SpecError) as caught:
        parse_map("test", "x", MAP.replace(old, new, 1), "names/test/x.yaml")
    found = [one for one in caught.value.diagnostics if message in one.message]
    assert [(one.location.path, one.location.line) for one in found] == [("names/test/x.yaml", line)], caught.value
    assert advice is None or advice in (found[0].help or "")


def test_a_map_without_its_two_keys_lacks_both() -> None:
    with pytest.raises(SpecError) as caught:
        parse_map("test", "x", "layers: n_layer\n")
    assert [one.message for one in caught.value.diagnostics] == [
        "key `architectures` is missing",
        "key `tensors` is missing",
    ]
    with pytest.raises(SpecError, match="1 problem"):
        parse_map("test", "x", "words\n")


def test_one_architecture_has_one_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "names" / "test"
    folder.mkdir(parents=True)
    for family in ("one", "other"):
        (folder / f"{family}.yaml").write_text(MAP, encoding="utf-8")
    monkeypatch.setattr("specrunner.engines.name_maps.files", lambda package: tmp_path)
    with pytest.raises(ConfigurationError, match=r"OneForCausalLM .* of test, one\.yaml and other\.yaml"):
        load_maps.__wrapped__("test")


@pytest.mark.parametrize("engine", ENGINES)
def test_every_shipped_map_is_read(engine: str) -> None:
    maps = load_maps(engine)
    assert maps
    for architecture, name_map in maps.items():
        assert {"embeddings", "layers.{i}.output", "final_norm", "logits"} <= set(name_map.entries), name_map.family
        assert tensor_templates(engine, architecture) == name_map.templates
    assert tensor_templates(engine, "UnheardOfForCausalLM") is None
