"""Name maps: parsing, layers, and every map that is shipped."""

from __future__ import annotations

import dataclasses
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from specrunner.config import NAME_MAPS
from specrunner.engines.name_map_mistakes import SCHEMA
from specrunner.engines.name_maps import (
    Entry,
    NameMap,
    load_maps,
    pack_own_maps,
    parse_map,
    read_maps,
    tensor_templates,
    unpack_own_maps,
)
from specrunner.errors import ConfigurationError, SpecError
from specrunner.spec.schema import find_schema, load_schema
from specrunner.spec.source import parse_text
from specrunner.spec.tensor_names import ROUTER_BIAS, TEMPLATES

ENGINES = sorted(entry.name for entry in files("specrunner.engines").joinpath("names").iterdir() if entry.is_dir())

MAP = """
architectures: [OneForCausalLM, OtherForCausalLM]
tensors:
  embeddings: {module: model.embed}
  "layers.{i}.output": {module: "model.layers.{i}.norm", index: 1, shift: 1, last: {module: model.norm, index: 1}}
"""


def parse_text_as_map(text: str) -> NameMap:
    return parse_map("test", "x", parse_text(text, "names/test/x.yaml"))


def test_layers_are_counted_and_the_last_one_may_differ() -> None:
    points = parse_text_as_map(MAP).hook_points(3)
    assert [(point.name, point.module) for point in points] == [
        ("embeddings", "model.embed"),
        ("layers.0.output", "model.layers.1.norm"),
        ("layers.1.output", "model.layers.2.norm"),
        ("layers.2.output", "model.norm"),
    ]


def test_passes_belong_to_block_diffusion() -> None:
    assert parse_text_as_map(MAP).templates == ("embeddings", "layers.{i}.output")
    diffusion = parse_text_as_map(MAP + "algorithms: [low_confidence]\n")
    assert diffusion.templates == ("embeddings", "layers.{i}.output", "passes.{i}.logits")


LAYER = '  "layers.{i}.output": {module: "model.layers.{i}.norm", '


@pytest.mark.parametrize(
    ("old", "new", "line", "message", "advice"),
    [
        ("embeddings:", "embedings:", 4, "unknown key `embedings` in `tensors`", "did you mean `embeddings`?"),
        ("embeddings:", '"passes.{i}.logits":', 4, "unknown key `passes.{i}.logits`", "logits`?"),
        ("index: 1, shift", "indx: 1, shift", 5, "unknown key `indx`", "did you mean `index`?"),
        ("last: {module:", "last: {modul:", 5, "unknown key `modul`", "did you mean `module`?"),
        ("architectures", "architecture", 2, "unknown key `architecture`", "did you mean `architectures`?"),
        ("tensors:\n", "", 3, "a key was expected here", "indentation"),
        ("\n  emb", "\n\temb", 4, "a tab cannot indent", "indent with spaces"),
        ("{module: model.embed}", "model.embed", 4, "must be a mapping, not text", 'e.g. `embeddings: {module: "'),
        ("module: model.embed", "of: input", 4, "key `module` is missing in `embeddings`", "path of the module"),
        ("index: 1, shift", "part: querry, shift", 5, "`part` cannot be `querry`", "did you mean `query`?"),
        ("index: 1, shift", "index: one, shift", 5, "`index` must be an integer, not text", "write a number"),
        ("index: 1, shift", "index: 1.5, shift", 5, "`index` must be an integer, not a number", None),
        ("index: 1, shift", "sum: [0, x], shift", 5, "an item of `sum` must be an integer", "write a number"),
        ("index: 1, shift", "sum: 0, shift", 5, "`sum` must be a list", "write a list: [0]"),
        ("index: 1, shift", "optional: yes, shift", 5, "`optional` must be true or false", "write `true`"),
        ("[OneForCausalLM, OtherForCausalLM]", "OneForCausalLM", 2, "must be a list, not text", "[OneForCausalLM]"),
        ("OtherForCausalLM", "OneForCausalLM", 2, "`OneForCausalLM` is listed twice in `architectures`", None),
        ("\ntens", "\nrouter: {score: max}\ntens", 3, "`score` cannot be `max`", "`softmax`"),
        ("\ntens", "\nrouter: {bias: true}\ntens", 3, "key `score` is missing in `router`", "scores of the router"),
        ("\ntens", "\nalgorithms: [greedly]\ntens", 3, "cannot be `greedly`", "did you mean `greedy`?"),
    ],
)
def test_mistakes_are_shown_where_they_stand(old: str, new: str, line: int, message: str, advice: str | None) -> None:
    assert old in MAP
    with pytest.raises(SpecError) as caught:
        parse_text_as_map(MAP.replace(old, new, 1))
    found = [one for one in caught.value.diagnostics if message in one.message]
    assert [(one.location.path, one.location.line) for one in found] == [("names/test/x.yaml", line)], caught.value
    assert advice is None or advice in (found[0].help or "")


def test_the_caret_is_under_the_culprit() -> None:
    with pytest.raises(SpecError) as caught:
        parse_text_as_map(MAP.replace("index: 1, shift", "indx: 1, shift").replace("embeddings", "embedings"))
    assert [(one.location.line, one.location.column, one.width) for one in caught.value.diagnostics] == [
        (4, 3, len("embedings")),
        (5, len(LAYER) + 1, len("indx")),
    ]


def test_a_map_without_its_two_keys_lacks_both() -> None:
    with pytest.raises(SpecError) as caught:
        parse_text_as_map("# nothing yet\nlayers: n_layer\n")
    assert [one.message for one in caught.value.diagnostics] == [
        "key `architectures` is missing",
        "key `tensors` is missing",
    ]
    assert {one.location.line for one in caught.value.diagnostics} == {2}


@pytest.mark.parametrize("text", ["words\n", "", "# a comment\n", "[]\n"])
def test_what_is_no_mapping_is_told_how_a_map_begins(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_text_as_map(text)
    assert [(one.message, "architectures:" in (one.help or "")) for one in caught.value.diagnostics] == [
        ("a name map must be a mapping", True)
    ]


def test_whole_numbers_may_have_a_point() -> None:
    entry = parse_text_as_map(MAP.replace("index: 1, shift: 1", "sum: [0.0, 1], shift: 1.0")).entries[
        "layers.{i}.output"
    ]
    assert repr((entry.sum, entry.shift)) == "((0, 1), 1)"


# --- the schema ---


def test_the_schema_names_every_tensor_and_every_field() -> None:
    schema = load_schema(SCHEMA)
    Draft202012Validator.check_schema(schema)
    assert set(schema["$defs"]["tensors"]["properties"]) == {*TEMPLATES, ROUTER_BIAS} - {"passes.{i}.logits"}
    entry = schema["$defs"]["entry"]
    fields = {field.name: field.default for field in dataclasses.fields(Entry)}
    assert set(entry["properties"]) == set(fields)
    stated = {name: part["default"] for name, part in entry["properties"].items() if "default" in part}
    assert stated == {name: fields[name] for name in ("of", "heads_first", "shift", "optional")}
    whole = parse_text_as_map(MAP)
    assert schema["properties"]["algorithms"]["default"] == list(whole.algorithms)
    assert schema["properties"]["layers"]["default"] == whole.layers_key


def parts(node: Any) -> list[dict[str, Any]]:
    found = [node] if isinstance(node, dict) else []
    below = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return found + [part for one in below for part in parts(one)]


def test_the_schema_is_closed_and_described() -> None:
    schema = load_schema(SCHEMA)
    tables = [part for part in parts(schema) if part.get("type") == "object"]
    assert len(tables) == 4 and all(table["additionalProperties"] is False for table in tables)
    named = [part for table in tables for part in table["properties"].values()]
    assert len(named) > 30 and all("description" in part or set(part) == {"$ref"} for part in named)


@pytest.mark.parametrize(
    "file",
    sorted(Path(str(files("specrunner.engines"))).glob("names/*/*.yaml")),
    ids=lambda file: f"{file.parent.name}-{file.stem}",
)
def test_every_shipped_map_names_the_schema_to_editors(file: Path) -> None:
    [named] = re.findall(r"\A# yaml-language-server: \$schema=(\S+)\n", file.read_text(encoding="utf-8"))
    assert (file.parent / named).resolve() == find_schema(SCHEMA)


def test_one_architecture_has_one_map(tmp_path: Path) -> None:
    for family in ("one", "other"):
        (tmp_path / f"{family}.yaml").write_text(MAP, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"OneForCausalLM .* of test, one\.yaml and other\.yaml"):
        read_maps("test", tmp_path)


# --- the project's own maps ---


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project below whose folder we are, with a map for an architecture of its own and one that we have, too."""
    (tmp_path / "pyproject.toml").write_text('[tool.specrunner]\nname_maps = "maps"\n', encoding="utf-8")
    (tmp_path / "maps" / "hf").mkdir(parents=True)
    own = MAP.replace("OtherForCausalLM", "LlamaForCausalLM")
    (tmp_path / "maps" / "hf" / "own.yaml").write_text(own, encoding="utf-8")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    monkeypatch.delenv(NAME_MAPS, raising=False)
    return tmp_path


def test_a_project_s_own_maps_go_before_ours(project: Path) -> None:
    families = {architecture: name_map.family for architecture, name_map in load_maps("hf").items()}
    assert (families["OneForCausalLM"], families["LlamaForCausalLM"]) == ("own", "own")
    assert (families["MistralForCausalLM"], families["MixtralForCausalLM"]) == ("llama", "mixtral")
    assert tensor_templates("hf", "LlamaForCausalLM") == ("embeddings", "layers.{i}.output")
    assert "OneForCausalLM" not in load_maps("vllm")


def test_the_variable_goes_before_the_table(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = project / "below" / "mine" / "vllm"
    other.mkdir(parents=True)
    (other / "x.yaml").write_text(MAP, encoding="utf-8")
    monkeypatch.setenv(NAME_MAPS, "mine")
    assert "OneForCausalLM" in load_maps("vllm")
    assert "OneForCausalLM" not in load_maps("hf")


def test_a_mistake_in_a_project_s_own_map_is_shown_in_its_file(project: Path) -> None:
    file = project / "maps" / "hf" / "own.yaml"
    file.write_text(MAP.replace("index", "indx", 1), encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        load_maps("hf")
    [found] = caught.value.diagnostics
    assert (found.location.path, found.location.line, found.help) == (file.as_posix(), 5, "did you mean `index`?")


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"layers: n_l\xe4yers\n", "encoding"), (b"\xff\xfea\x00", "encoding"), (None, "unreadable-file")],
)
def test_a_map_that_is_no_text_is_a_mistake_in_its_file(project: Path, content: bytes | None, code: str) -> None:
    file = project / "maps" / "hf" / "bad.yaml"
    file.mkdir() if content is None else file.write_bytes(content)
    with pytest.raises(SpecError) as caught:
        load_maps("hf")
    [found] = caught.value.diagnostics
    assert (found.code, found.location.path, found.location.line) == (code, file.as_posix(), 1)


@pytest.mark.parametrize("stated", ['"nowhere"', '"pyproject.toml"', '""', "3"])
def test_what_is_no_folder_is_a_mistake_of_the_configuration(project: Path, stated: str) -> None:
    (project / "pyproject.toml").write_text(f"[tool.specrunner]\nname_maps = {stated}\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"name_maps in \[tool\.specrunner\] of .* must be a folder"):
        load_maps("hf")


def test_own_maps_come_to_another_machine(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack_own_maps("hf")
    assert pack_own_maps("vllm") == {}
    for name, value in unpack_own_maps("hf", packed, tmp_path / "node").items():
        monkeypatch.setenv(name, value)
    (project / "pyproject.toml").unlink()
    monkeypatch.chdir(tmp_path / "node")
    assert load_maps("hf")["LlamaForCausalLM"].family == "own"


@pytest.mark.parametrize("engine", ENGINES)
def test_every_shipped_map_is_read(engine: str) -> None:
    maps = load_maps(engine)
    assert maps
    for architecture, name_map in maps.items():
        assert {"embeddings", "layers.{i}.output", "final_norm", "logits"} <= set(name_map.entries), name_map.family
        assert tensor_templates(engine, architecture) == name_map.templates
    assert tensor_templates(engine, "UnheardOfForCausalLM") is None
