"""Axes, combinations and exclusions."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specrunner.spec import cases
from specrunner.spec.loader import LoadedSpecs, load_specs
from specrunner.spec.matrix import Axis, Choice, Exclusion, axis_fields, expand
from specrunner.spec.tree import Map

HEAD = """\
version: 1
model: {recipe: glass-0.8m}
engines: [hf, oracle]
reference: {engine: vllm}
"""


def load(folder: Path, text: str) -> LoadedSpecs:
    (folder / "x.yaml").write_text(HEAD + text, encoding="utf-8")
    return load_specs([str(folder / "x.yaml")], engines=("hf", "oracle", "vllm"), recipes=("glass-0.8m",))


def one_case(folder: Path, fields: str, head: str = "") -> LoadedSpecs:
    indented = "".join(f"    {line}\n" for line in fields.splitlines())
    return load(folder, f"{head}cases:\n  - name: c\n    prompt: hi\n    tolerance: {{logits: exact}}\n{indented}")


def ids(loaded: LoadedSpecs) -> list[str]:
    assert loaded.diagnostics == ()
    return [case.id for case in loaded.cases]


def test_without_a_matrix_there_is_a_case_an_engine(tmp_path: Path) -> None:
    assert ids(one_case(tmp_path, "")) == ["c[engine=hf]", "c[engine=oracle]"]


def test_the_engine_comes_first_and_the_last_axis_varies_fastest(tmp_path: Path) -> None:
    found = ids(one_case(tmp_path, "engines: [hf]\nmatrix: {dtype: [float32, bfloat16], prompt.length: [1, 2]}"))
    assert found == [
        "c[engine=hf,dtype=float32,prompt.length=1]",
        "c[engine=hf,dtype=float32,prompt.length=2]",
        "c[engine=hf,dtype=bfloat16,prompt.length=1]",
        "c[engine=hf,dtype=bfloat16,prompt.length=2]",
    ]


def test_axes_change_the_fields_they_name(tmp_path: Path) -> None:
    axes = ("dtype: [bfloat16]", "prompt.length: [7]", "options.hf.chunk: [3]", "reference.dtype: [float16]")
    matrix = "{" + ", ".join((*axes, "model.revision: [r1]")) + "}"
    (case,) = one_case(
        tmp_path, f"engines: [hf]\nmodel: {{id: a/b}}\noptions: {{hf: {{x: 1}}}}\nmatrix: {matrix}"
    ).cases
    assert case.candidate.dtype == "bfloat16"
    assert case.prompt.length == 7
    assert case.candidate.options == {"x": 1, "chunk": 3}
    assert case.reference is not None
    assert case.reference.dtype == "float16"
    assert case.model.revision == "r1"


def test_labels_change_several_fields(tmp_path: Path) -> None:
    modes = "    fast: {dtype: float16, tags: [quick]}\n    slow: {timeout: 9, prompt: bye}"
    fields = f"engines: [hf]\nmatrix:\n  mode:\n{modes}"
    fast, slow = one_case(tmp_path, fields, head="tags: [base]\n").cases
    assert (fast.id, fast.candidate.dtype, fast.tags) == ("c[engine=hf,mode=fast]", "float16", ("base", "quick"))
    assert (slow.timeout, slow.prompt.text, slow.tags) == (9.0, "bye", ("base",))


def test_labels_may_be_called_engines(tmp_path: Path) -> None:
    found = ids(one_case(tmp_path, "engines: [hf]\nmatrix: {engines: {all: {tags: [a]}}}"))
    assert found == ["c[engine=hf,engines=all]"]


def test_a_later_axis_wins(tmp_path: Path) -> None:
    fields = "engines: [hf]\nmatrix: {mode: {fast: {dtype: float16}}, dtype: [bfloat16]}"
    assert [case.candidate.dtype for case in one_case(tmp_path, fields).cases] == ["bfloat16"]


def test_labels_are_values_as_written(tmp_path: Path) -> None:
    fields = "engines: [hf]\nmatrix: {timeout: [1e1, 010, 0x0B], model.trust_remote_code: [true]}"
    assert [(case.parameters[1][1], case.timeout) for case in one_case(tmp_path, fields).cases] == [
        ("1e1", 10.0),
        ("010", 10.0),
        ("0x0B", 11.0),
    ]


def test_a_case_replaces_axes_one_by_one_and_null_takes_one_away(tmp_path: Path) -> None:
    head = "matrix: {dtype: [float16], prompt.length: [1], timeout: [5]}\n"
    fields = "engines: [hf]\nmatrix: {prompt.length: [2, 3], timeout: null, device: [cpu]}"
    assert ids(one_case(tmp_path, fields, head)) == [
        "c[engine=hf,dtype=float16,prompt.length=2,device=cpu]",
        "c[engine=hf,dtype=float16,prompt.length=3,device=cpu]",
    ]


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        ("[{engine: oracle}]", ["hf,1,1", "hf,1,2", "hf,2,1", "hf,2,2"]),
        ("[{engine: oracle}, {timeout: 2}]", ["hf,1,1", "hf,1,2"]),
        (
            "[{engine: [hf], timeout: [1, 2], prompt.length: 1}]",
            ["hf,1,2", "hf,2,2", *(f"oracle,{a},{b}" for a in "12" for b in "12")],
        ),
        ("[{timeout: '1'}, {timeout: 2.0, engine: oracle}]", ["hf,2,1", "hf,2,2"]),
    ],
)
def test_exclusions(tmp_path: Path, exclude: str, left: list[str]) -> None:
    loaded = one_case(tmp_path, f"matrix: {{timeout: [1, 2], prompt.length: [1, 2], exclude: {exclude}}}")
    assert loaded.diagnostics == ()
    assert [",".join(value for _, value in case.parameters) for case in loaded.cases] == left


def test_true_is_not_one_for_an_exclusion(tmp_path: Path) -> None:
    loaded = one_case(tmp_path, "matrix: {timeout: [1, 2], exclude: [{timeout: true}]}")
    assert [diagnostic.code for diagnostic in loaded.diagnostics] == ["unused-exclude"]


def test_an_exclusion_may_speak_of_an_axis_that_only_some_cases_have(tmp_path: Path) -> None:
    text = """\
engines: [hf]
matrix: {timeout: [1, 2], exclude: [{timeout: 1, dtype: float16}]}
cases:
  - {name: a, prompt: hi, tolerance: {logits: exact}}
  - {name: b, prompt: hi, tolerance: {logits: exact}, matrix: {dtype: [float16]}}
"""
    assert ids(load(tmp_path, text.removeprefix("engines: [hf]\n"))) == [
        *(f"a[engine={engine},timeout={seconds}]" for engine in ("hf", "oracle") for seconds in (1, 2)),
        *(f"b[engine={engine},timeout=2,dtype=float16]" for engine in ("hf", "oracle")),
    ]


def test_cases_of_a_matrix_share_what_it_leaves_alone(tmp_path: Path) -> None:
    first, second = one_case(tmp_path, "engines: [hf]\nmatrix: {timeout: [1, 2]}").cases
    assert first.model is second.model
    assert first.tolerance is second.tolerance


def test_marks_point_at_the_value_that_the_matrix_chose(tmp_path: Path) -> None:
    _, second = one_case(tmp_path, "engines: [hf]\nmatrix:\n  dtype: [float16,\n          bfloat16]").cases
    assert (second.marks["dtype"].line, second.marks["dtype"].column) == (12, 15)


CHOICES = st.lists(st.sampled_from("abcd"), min_size=1, max_size=3, unique=True)


@given(CHOICES, st.dictionaries(st.sampled_from(["x", "y", "z"]), CHOICES, max_size=3), st.data())
def test_expansion_is_the_product_without_what_is_excluded(
    engines: list[str], axes: dict[str, list[str]], data: st.DataObject
) -> None:
    everything = {"engine": engines, **axes}
    excluded = data.draw(
        st.lists(
            st.fixed_dictionaries(
                {}, optional={k: st.lists(st.sampled_from(v), min_size=1) for k, v in everything.items()}
            ).filter(bool),
            max_size=2,
        )
    )
    made = [Axis(name, tuple(Choice(v, v, Map((0, 0))) for v in values)) for name, values in axes.items()]
    exclusions = [Exclusion(entry, (0, 0)) for entry in excluded]
    found = [(engine, *(choice.label for choice in choices)) for engine, choices in expand(engines, made, exclusions)]
    names = ["engine", *axes]
    expected = [
        values
        for values in product(engines, *axes.values())
        if not any(all(dict(zip(names, values, strict=True))[k] in v for k, v in entry.items()) for entry in excluded)
    ]
    assert found == expected


def test_the_fields_that_can_be_axes() -> None:
    fields = axis_fields()
    assert {
        "dtype",
        "device",
        "timeout",
        "repeat",
        "prompt.length",
        "decode.threshold",
        "reference.engine",
        "model.recipe",
    } <= set(fields)
    assert "prompt.text" not in fields
    assert "engines" not in fields
    assert {"reference.peer.engine", "golden.top_k", "requires.memory_gb"} <= set(fields)
    assert not {"prompt", "prompt.token_ids", "tensors", "tolerance", "options", "matrix", "name"} & set(fields)
    assert max(name.count(".") for name in fields) == 2
    assert len(fields) == len(set(fields))


def test_every_field_that_can_be_an_axis_is_known_as_one(tmp_path: Path) -> None:
    """Whatever the value is worth, the axis itself is not what is wrong."""
    for start in range(0, len(axis_fields()), 6):
        axes = ", ".join(f"{name}: [1]" for name in axis_fields()[start : start + 6])
        codes = {diagnostic.code for diagnostic in one_case(tmp_path, f"matrix: {{{axes}}}").diagnostics}
        assert "unknown-axis" not in codes
        assert "unknown-key" not in codes


BOUNDED = "matrix: {timeout: [1, 2], prompt.length: [1, 2, 3]}"


@pytest.mark.parametrize(
    ("most", "left", "told"),
    [
        (24, 24, []),
        (23, 12, ["case `d` stands for 12 cases with those before it, more than 23"]),
        (12, 12, ["case `d` stands for 12 cases with those before it, more than 12"]),
        (11, 0, ["case `c` stands for 12 cases, more than 11", "case `d` stands for 12 cases, more than 11"]),
    ],
)
def test_one_file_stands_for_so_many_cases(
    tmp_path: Path, most: int, left: int, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cases, "MAX_CASES", most)
    text = "cases:\n" + "".join(
        f"  - {{name: {name}, prompt: hi, tolerance: {{logits: exact}}, {BOUNDED}}}\n" for name in "cd"
    )
    loaded = load(tmp_path, text)
    assert [diagnostic.message for diagnostic in loaded.diagnostics] == told
    assert {diagnostic.code for diagnostic in loaded.diagnostics} <= {"too-many-cases"}
    assert {diagnostic.help for diagnostic in loaded.diagnostics} == (
        set() if not told else {"split the file"} if most > 11 else {"make the matrix smaller"}
    )
    assert len(loaded.cases) == left


@pytest.mark.parametrize(("most", "found"), [(24, []), (23, ["2 entries of `exclude` over 12 combinations"])])
def test_exclusions_over_combinations_are_bounded(
    tmp_path: Path, most: int, found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cases, "MAX_EXCLUDED", most)
    fields = BOUNDED[:-1] + ", exclude: [{timeout: 1, engine: hf}, {prompt.length: 3}]}"
    loaded = one_case(tmp_path, fields)
    assert [diagnostic.code for diagnostic in loaded.diagnostics] == ["too-many-cases"] * len(found)
    assert all(want in one.message for want, one in zip(found, loaded.diagnostics, strict=True))
    assert len(loaded.cases) == (0 if found else 6)


def test_marks_of_a_nested_axis_point_at_its_value(tmp_path: Path) -> None:
    (case,) = one_case(tmp_path, "engines: [hf]\nmatrix:\n  reference.peer.dtype: [float16]").cases
    assert (case.marks["reference.peer.dtype"].line, case.marks["reference.peer.dtype"].column) == (11, 30)
    assert case.marks["reference.engine"].line == 4
