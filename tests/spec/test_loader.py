"""From paths to checked cases."""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specrunner.errors import SpecError, UsageError
from specrunner.spec import loader
from specrunner.spec.diagnostics import Diagnostic
from specrunner.spec.loader import MAX_DIAGNOSTICS, load_specs, read_spec
from specrunner.spec.model import Case, Decode, EngineChoice, Model, Prompt, Rule
from specrunner.spec.paths import display_path
from specrunner.spec.source import parse_text

SPEC = """\
version: 1
model: {recipe: glass-0.8m}
engines: [hf]
reference: {engine: hf, dtype: float64}
cases:
  - {name: one, prompt: hi, tolerance: {logits: exact}}
  - {name: two, prompt: hi, tolerance: {logits: exact}, matrix: {timeout: [1, 2]}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("b.yaml", "a.yml", "deep/c.yaml", ".hidden.yaml", ".hidden/d.yaml", "deep/notes.txt"):
        (tmp_path / "specs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "specs" / name).write_text(SPEC, encoding="utf-8")
    return tmp_path


def nodes(*paths: str) -> list[str]:
    loaded = load_specs(paths)
    assert loaded.diagnostics == ()
    return [case.node_id for case in loaded.cases]


def read(text: str) -> tuple[list[Case], list[Diagnostic]]:
    return read_spec(parse_text(text, "dir/x.yaml"), "dir/x", ("hf", "oracle", "vllm"), ("glass-0.8m", "tiny-llada2"))


def one(fields: str, head: str = "") -> Case:
    indented = "".join(f"    {line}\n" for line in fields.splitlines())
    cases, diagnostics = read(f"version: 1\nengines: [hf]\n{head}cases:\n  - name: c\n{indented}")
    assert diagnostics == []
    return cases[0]


# --- paths ---


def test_directories_are_searched_sorted_and_hidden_files_skipped(folder: Path) -> None:
    assert load_specs(["specs"]).files == ("specs/a.yml", "specs/b.yaml", "specs/deep/c.yaml")
    assert load_specs(["specs/deep", "specs"]).files == ("specs/deep/c.yaml", "specs/a.yml", "specs/b.yaml")


def test_a_pipe_is_skipped_and_a_broken_link_is_told(folder: Path) -> None:
    os.mkfifo(folder / "specs" / "pipe.yaml")
    (folder / "specs" / "link.yaml").symlink_to("nowhere")
    loaded = load_specs(["specs"])
    assert "specs/pipe.yaml" not in loaded.files
    assert [(d.code, d.location.path) for d in loaded.diagnostics] == [("unreadable-file", "specs/link.yaml")]


def test_a_directory_that_cannot_be_read_is_a_usage_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UsageError, match="the directory specs cannot be read: Permission denied"):
        load_specs(["specs"])


@pytest.mark.parametrize("path", ["specs/b.yaml", "./specs/b.yaml", "specs/../specs//b.yaml"])
def test_a_file_has_one_name(folder: Path, path: str) -> None:
    assert nodes(path, str(folder / path))[0] == "specs/b.yaml::one[engine=hf]"
    assert len(nodes(path, str(folder / path))) == 3
    assert load_specs([path]).cases[0].suite == "specs/b"


@pytest.mark.parametrize("name", ["+a", "-a", "..a", "a"])
def test_whatever_a_folder_is_called_its_files_are_named_from_here(folder: Path, name: str) -> None:
    assert display_path(folder / name / "x.yaml") == f"{name}/x.yaml"


def test_a_file_elsewhere_keeps_its_absolute_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder / "specs" / "deep")
    assert load_specs(["../b.yaml"]).files == ("../b.yaml",)
    assert load_specs([str(folder / "specs" / "b.yaml")]).files == ((folder / "specs" / "b.yaml").as_posix(),)


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        ("one", ["one[engine=hf]"]),
        ("two", ["two[engine=hf,timeout=1]", "two[engine=hf,timeout=2]"]),
        ("two[engine=hf,timeout=2]", ["two[engine=hf,timeout=2]"]),
        ("two[timeout=1]", ["two[engine=hf,timeout=1]"]),
    ],
)
def test_cases_can_be_named(folder: Path, selector: str, found: list[str]) -> None:
    assert nodes(f"specs/b.yaml::{selector}") == [f"specs/b.yaml::{name}" for name in found]


def test_several_names_of_one_file_add_up_in_the_file_s_order(folder: Path) -> None:
    assert len(nodes("specs/b.yaml::two[timeout=2]", "specs/b.yaml::one")) == 2
    assert nodes("specs/b.yaml::two", "specs/b.yaml::one")[0].endswith("one[engine=hf]")
    assert len(nodes("specs/b.yaml::one", "specs/b.yaml")) == 3


@pytest.mark.parametrize(
    ("path", "message", "help"),
    [
        ("spec", "no such file or directory: spec", "did you mean `specs`?"),
        ("specs/c.yaml", "no such file or directory: specs/c.yaml", "`specs/"),
        ("specs/dep/c.yaml", "no such file or directory: specs/dep/c.yaml", "did you mean `specs/deep`?"),
        ("", "no such file or directory: ", None),
        ("specs::one", "`specs::one` names a case of a directory", "file.yaml::name"),
        ("specs/b.yaml::tow", "no case `tow` in specs/b.yaml", "did you mean `two`?"),
        ("specs/b.yaml::one[engine=vllm]", "no case `one[engine=vllm]` in specs/b.yaml", "`one[engine=hf]`"),
        ("specs/b.yaml::one[engine]", "`one[engine]` is not a case", "file.yaml::name"),
        ("specs/b.yaml::one[engine=hf", "`one[engine=hf` is not a case", "file.yaml::name"),
        ("specs/b.yaml::", "`` is not a case", "file.yaml::name"),
    ],
)
def test_what_does_not_exist_is_a_usage_error(folder: Path, path: str, message: str, help: str | None) -> None:
    with pytest.raises(UsageError) as raised:
        load_specs([path])
    assert raised.value.message == message
    assert raised.value.exit_code == 4
    assert help is None or help in (raised.value.help or "")


def test_two_files_of_one_suite_are_told(folder: Path) -> None:
    (folder / "specs" / "b.yml").write_text(SPEC, encoding="utf-8")
    (diagnostic,) = load_specs(["specs"]).diagnostics
    assert diagnostic.code == "duplicate-id"
    assert diagnostic.notes == ("the other is specs/b.yaml",)
    assert (diagnostic.location.path, diagnostic.location.line, diagnostic.location.column) == ("specs/b.yml", 1, 1)


def test_all_files_are_reported_and_the_sound_ones_read(folder: Path) -> None:
    (folder / "specs" / "a.yml").write_text("version: 2\ncases: []\n", encoding="utf-8")
    (folder / "specs" / "deep" / "c.yaml").write_text("version: [", encoding="utf-8")
    loaded = load_specs(["specs"])
    assert [(d.location.path, d.code) for d in loaded.diagnostics] == [
        ("specs/a.yml", "bad-value"),
        ("specs/a.yml", "empty"),
        ("specs/deep/c.yaml", "yaml-syntax"),
    ]
    assert len(loaded.cases) == 3
    with pytest.raises(SpecError, match="3 problems in the specs"):
        loaded.require_valid()


def test_the_sound_cases_of_a_file_are_checked_beside_the_broken_ones() -> None:
    cases, diagnostics = read(SPEC + "  - {name: three, prmpt: x}\n  - {name: four, prompt: x}\n")
    assert [case.name for case in cases] == ["one", "two", "two"]
    assert [d.code for d in diagnostics] == ["unknown-key", "no-check"]


def test_a_broken_case_is_pointed_at_wherever_it_stands() -> None:
    _, diagnostics = read(SPEC + "  - {prompt: x}\n  - {name: five, prompt: x, dtype: 3}\n")
    assert [(d.code, d.location.line) for d in diagnostics] == [("missing-key", 8), ("wrong-type", 9)]


def test_what_is_not_shown_is_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "MAX_DIAGNOSTICS", 3)
    for count, codes in ((1, ["bad-value"] * 2), (3, ["bad-value"] * 3 + ["too-many"])):
        cases = "".join(f"  - {{name: case-{n}, prompt: hi, device: wrong, dtype: wrong}}\n" for n in range(count))
        (folder / "x.yaml").write_text(SPEC + cases, encoding="utf-8")
        found = load_specs(["x.yaml"]).diagnostics
        assert [d.code for d in found] == codes
    assert found[-1].message == "3 more problems in this file are not shown"


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (MAX_DIAGNOSTICS, []),
        (MAX_DIAGNOSTICS + 1, ["1 more broken case in this file is not shown"]),
        (500, ["400 more broken cases in this file are not shown"]),
    ],
)
def test_broken_cases_that_are_not_explained_are_counted(folder: Path, count: int, said: list[str]) -> None:
    cases = "".join(f"  - {{name: case-{n}, prompt: hi, dtype: wrong}}\n" for n in range(count))
    (folder / "x.yaml").write_text(SPEC + cases, encoding="utf-8")
    found = load_specs(["x.yaml"]).diagnostics
    assert [one.code for one in found] == ["bad-value"] * MAX_DIAGNOSTICS + ["too-many"] * len(said)
    assert [one.message for one in found[MAX_DIAGNOSTICS:]] == said
    assert all(one.location.line == 8 + MAX_DIAGNOSTICS for one in found[MAX_DIAGNOSTICS:])


def test_problems_and_broken_cases_are_counted_beside_each_other(folder: Path) -> None:
    cases = "".join(f"  - {{name: case-{n}, prompt: hi, device: wrong, dtype: wrong}}\n" for n in range(150))
    (folder / "x.yaml").write_text(SPEC + cases, encoding="utf-8")
    found = load_specs(["x.yaml"]).diagnostics
    assert [one.message for one in found[MAX_DIAGNOSTICS:]] == [
        "100 more problems in this file are not shown",
        "50 more broken cases in this file are not shown",
    ]


def test_where_nobody_looks_further_there_may_be_more(folder: Path) -> None:
    cases = "".join(f"  - {{name: case-{n}, prompt: hi}}\n" for n in range(600))
    (folder / "x.yaml").write_text(SPEC + cases, encoding="utf-8")
    found = load_specs(["x.yaml"]).diagnostics
    assert found[-1].message == "at least 400 more problems in this file are not shown"


def test_the_collector_runs_again_after_loading(folder: Path) -> None:
    assert gc.isenabled()
    load_specs(["specs"])
    assert gc.isenabled()
    gc.disable()
    try:
        load_specs(["specs"])
        assert not gc.isenabled()
    finally:
        gc.enable()


# --- values ---

INPUT = "model: {recipe: glass-0.8m}\nreference: {engine: vllm}\n"


def test_values_are_complete() -> None:
    case = one("prompt: hi\ntolerance: {logits: exact}", INPUT)
    assert case.suite == "dir/x"
    assert case.parameters == (("engine", "hf"),)
    assert str(case.location) == "dir/x.yaml:6"
    assert case.candidate == EngineChoice("hf", "float32", "auto", {})
    assert case.reference == EngineChoice("vllm", "float32", "auto", {})
    assert case.model == Model(recipe="glass-0.8m")
    assert case.prompt == Prompt(text="hi")
    assert case.tensors == ("logits",)
    assert str(case.tolerance[0].location) == "dir/x.yaml:8"
    assert (case.decode, case.tokens, case.timeout, case.xfail, dict(case.requires)) == (None, None, 600.0, None, {})


def test_the_oracle_is_a_reference_in_float64() -> None:
    case = one("prompt: hi\ntolerance: {logits: exact}", "model: {recipe: glass-0.8m}\nreference: {engine: oracle}\n")
    assert case.reference == EngineChoice("oracle", "float64", "auto", {})


def test_a_reference_takes_the_options_of_its_engine() -> None:
    options = "options: {hf: {a: 1}, vllm: {b: [1, {c: 2}]}}\n"
    case = one("prompt: hi\ntolerance: {logits: exact}", INPUT + options)
    assert case.candidate.options == {"a": 1}
    assert case.reference is not None
    assert case.reference.options == {"b": [1, {"c": 2}]}
    assert type(case.reference.options) is dict
    own = one("prompt: hi\ntolerance: {logits: exact}\nreference: {engine: vllm, options: {}}", options + INPUT)
    assert own.reference is not None
    assert own.reference.options == {}


def test_prompts() -> None:
    checks = "\ntolerance: {logits: exact}"
    assert one("prompt: {token_ids: [1, 2.0], length: 2}" + checks, INPUT).prompt == Prompt(token_ids=(1, 2), length=2)
    chat = one("prompt: {messages: [{role: user, content: x}]}" + checks, INPUT).prompt
    assert chat == Prompt(messages=({"role": "user", "content": "x"},))
    assert one("prompt: {text: x, add_special_tokens: false}" + checks, INPUT).prompt == Prompt(
        "x", add_special_tokens=False
    )


def test_decoding() -> None:
    greedy = one("prompt: hi\ndecode: {max_new_tokens: 4}\ntokens: exact", INPUT)
    assert (greedy.decode, greedy.tokens, greedy.tensors) == (Decode(4), Rule("exact"), ())
    fields = "{max_new_tokens: 4, algorithm: low_confidence, block_length: 32, threshold: 1, ignore_eos: true}"
    diffusion = one(f"prompt: hi\ndecode: {fields}\ntokens: exact", INPUT)
    assert diffusion.decode == Decode(4, "low_confidence", 32, 1.0, True)


def test_a_relative_model_path_starts_at_the_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    case = one("prompt: hi\nmodel: {path: ../models/a}\ntolerance: {logits: exact}", INPUT)
    assert case.model == Model(path=(tmp_path / "models" / "a").as_posix())
    assert case.model.label == "a"
    absolute = one("prompt: hi\nmodel: {path: /models/a/}\ntolerance: {logits: exact}", INPUT)
    assert absolute.model.path == "/models/a"


def test_requirements_and_known_failures() -> None:
    fields = "requires: {device: cuda, memory_gb: 8, packages: [a.b]}\nxfail: {reason: r}"
    case = one(
        "prompt: hi\ntolerance: {logits: exact}\n" + fields, INPUT + "requires: {engines: [vllm], memory_gb: 4}\n"
    )
    assert case.requires == {"engines": ("vllm",), "memory_gb": 8, "device": "cuda", "packages": ("a.b",)}
    assert case.expected_to_fail
    assert not one(
        "prompt: hi\ntolerance: {logits: exact}\nxfail: null", INPUT + "xfail: {reason: r}\n"
    ).expected_to_fail


def test_cases_can_be_copied_compared_and_written_as_json() -> None:
    import copy
    import dataclasses

    case = one("prompt: hi\ntolerance: {logits: exact}", INPUT)
    assert copy.deepcopy(case) == case
    assert dataclasses.replace(case, marks={}) == case
    data = dataclasses.asdict(case)
    data.pop("marks")
    assert json.loads(json.dumps(data))["candidate"]["engine"] == "hf"


@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1))
def test_any_prompt_survives(text: str) -> None:
    quoted = "".join(c if c.isprintable() and c not in '"\\\ufeff' else f"\\U{ord(c):08x}" for c in text)
    assert one(f'prompt: "{quoted}"\ntolerance: {{logits: exact}}', INPUT).prompt.text == text


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["hf", "exact", "logits"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["engine", "dtype", "logits", "a", "text", "exclude", "hf"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)
FIELD_NAMES = [
    *("model", "engines", "reference", "dtype", "device", "options", "matrix", "requires", "timeout", "xfail", "tags"),
    *("prompt", "tensors", "tolerance", "decode", "tokens", "description", "name", "repeat"),
]


@given(
    st.dictionaries(st.sampled_from([*FIELD_NAMES, "defaults", "cases"]), VALUES, max_size=3),
    st.lists(st.dictionaries(st.sampled_from(FIELD_NAMES), VALUES, max_size=3), min_size=1, max_size=2),
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_document_yields_cases_or_diagnostics(top: dict[str, Any], cases: list[dict[str, Any]]) -> None:
    sound = {"name": "c", "prompt": "hi", "tolerance": {"logits": "exact"}, "engines": ["hf"], "dtype": "bfloat16"}
    document = {
        "version": 1,
        "model": {"recipe": "glass-0.8m"},
        "reference": {"engine": "hf"},
        **({"cases": [{**sound, **case} for case in cases]} | top),
    }
    found, diagnostics = read(json.dumps(document).replace("Infinity", ".inf").replace("NaN", ".nan"))
    assert found or diagnostics
    for diagnostic in diagnostics:
        assert diagnostic.render()
    for case in found:
        assert case.id.startswith(f"{case.name}[engine=")
        assert list(case.marks)
