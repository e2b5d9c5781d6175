"""Reading spec files: trees with marks, and broken files as values."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from specrunner.spec import source, tree
from specrunner.spec.source import MAX_BYTES, Source, parse_bytes, parse_text, read_source
from specrunner.spec.tree import Map, Seq

# What YAML can hold without escapes; U+0085, U+2028 and U+2029 are line breaks to YAML 1.1 parsers.
PRINTABLE = st.characters(
    exclude_categories=("Cs", "Cc", "Zl", "Zp"), exclude_characters="\ufeff\ufffe\uffff", include_characters="\t\n"
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(PRINTABLE),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(PRINTABLE, min_size=1), inner, max_size=4),
    max_leaves=20,
)


def codes(source: Source) -> list[str]:
    return [diagnostic.code for diagnostic in source.diagnostics]


@given(JSON)
def test_json_is_read_as_json_reads_it(value: Any) -> None:
    source = parse_text(json.dumps({"value": value}, ensure_ascii=False), "x.yaml")
    assert source.diagnostics == ()
    assert source.root == {"value": value}
    assert json.dumps(source.root) == json.dumps({"value": value})


@given(JSON)
def test_block_style_with_core_tags_is_read_as_written(value: Any) -> None:
    text = yaml.safe_dump({"value": value}, allow_unicode=True, default_style='"')
    source = parse_text(text, "x.yaml")
    assert source.diagnostics == ()
    assert json.dumps(source.root) == json.dumps({"value": value}, sort_keys=True)


@given(st.text())
@example("a: &a [*a]")
@example("a: *b")
@example("? [a]\n: b")
@example("- - - -")
@example("%YAML 9.9\n--- x")
@example("{a: 1, a: 2")
@example("'")
@example("&a &b c")
@example("!<tag:x> y")
@example("%TAG ! tag:x\n--- !y z")
@example("\ud800")
@example("a: '\x85'")
@example("&a : b\n*a : c")
def test_any_text_yields_diagnostics_and_raises_nothing(text: str) -> None:
    source = parse_text(text, "x.yaml")
    assert source.root is not None or source.diagnostics
    for diagnostic in source.diagnostics:
        assert diagnostic.location.line >= 1
        assert diagnostic.location.column >= 1
        assert diagnostic.render()


@given(st.text(alphabet=st.sampled_from("ab:-?[]{}&*!|>'\"%@`#, \n\t<1~")))
@settings(max_examples=300)
def test_text_of_yaml_s_own_signs_raises_nothing(text: str) -> None:
    parse_text(text, "x.yaml")


@given(st.binary())
def test_any_bytes_yield_diagnostics_and_raise_nothing(data: bytes) -> None:
    source = parse_bytes(data, "x.yaml")
    assert source.root is not None or source.diagnostics
    assert all(diagnostic.render() for diagnostic in source.diagnostics)


@given(st.lists(st.tuples(st.from_regex(r"[a-z]{1,8}", fullmatch=True), st.text(PRINTABLE)), unique_by=lambda p: p[0]))
def test_marks_point_at_the_right_text(pairs: list[tuple[str, str]]) -> None:
    text = "# 🦙 wide characters before\n" + "".join(
        f"{key}:  {json.dumps(value, ensure_ascii=False)}\n" for key, value in pairs
    )
    root = parse_text(text, "x.yaml").root
    for key, value in pairs:
        start, end = root.keys_at[key]
        assert text[start:end] == key
        start, end = root.values_at[key]
        assert text[start:end] == json.dumps(value, ensure_ascii=False)


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_locations_count_lines_and_characters(newline: str) -> None:
    text = newline.join(["# one", "a: 1", "日本: {b: [x, 'y']}", ""])
    source = parse_text(text, "x.yaml")
    assert str(source.locate(source.root.keys_at["a"][0])) == "x.yaml:2"
    inner = source.root["日本"]
    assert source.locate(inner["b"].items_at[1][0]).column == 13
    assert source.line(3) == "日本: {b: [x, 'y']}"


def test_collections_know_where_they_stand() -> None:
    text = "flow: {a: [1, 2]}\nblock:\n  - 1\n"
    root = parse_text(text, "x.yaml").root
    start, end = root["flow"].span
    assert text[start:end] == "{a: [1, 2]}"
    start, end = root["flow"]["a"].span
    assert text[start:end] == "[1, 2]"
    assert root["block"].span == (27, 27)
    assert isinstance(root["block"], Seq)
    assert isinstance(root, Map)


def test_keys_are_text_as_written() -> None:
    root = parse_text("1: a\ntrue: b\n~: c\n017: d\n'': e\n", "x.yaml").root
    assert list(root) == ["1", "true", "~", "017", ""]


def test_an_alias_shares_its_value() -> None:
    root = parse_text("a: &x {b: 1}\nc: *x\nd: [*x, &y 5, *y]\n", "x.yaml").root
    assert root["c"] is root["a"]
    assert root["d"] == [{"b": 1}, 5, 5]


def test_an_anchor_may_be_given_again() -> None:
    assert parse_text("[&x 1, *x, &x 2, *x]", "x.yaml").root == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "empty-file"),
        ("# only a comment\n", "empty-file"),
        ("---\n...\n", "empty-file"),
        ("a: 1\na: 2\n", "duplicate-key"),
        ("a: 1\n'a': 2\n", "duplicate-key"),
        ("a: &a [*a]\n", "recursive-alias"),
        ("a: *b\n", "unknown-anchor"),
        ("<<: {a: 1}\n", "merge-key"),
        ("? [a]\n: 1\n", "complex-key"),
        ("&a b: 1\n*a : 2\n", "complex-key"),
        ("? \n: 1\n", "empty-key"),
        ("a: !x 1\n", "yaml-tag"),
        ("a: !!binary aGk=\n", "yaml-tag"),
        ("!x {a: 1}\n", "yaml-tag"),
        ("a: !!map [1]\n", "yaml-tag"),
        ("!!int a: 1\n", "yaml-tag"),
        ("--- 1\n--- 2\n", "many-documents"),
        ("%YAML 1.1\n---\na: 1\n", "yaml-version"),
        ("a: [1\n", "yaml-syntax"),
        ("a: 'b\n", "yaml-syntax"),
        ("\ta: 1\n", "yaml-syntax"),
        ("a: b: c\n", "yaml-syntax"),
        ("a: @b\n", "yaml-syntax"),
        ("a: \x07\n", "control-character"),
        ("a: '\u2028'\n", "control-character"),
        ("a: '\u2029'\n", "control-character"),
        ("a: '\x85'\n", "control-character"),
        ("a: '\x7f'\n", "control-character"),
        ("a: '\ufeff'\n", "control-character"),
        ("a: " + "9" * 1000, "bad-number"),
        ("[" * 70 + "]" * 70, "too-deep"),
    ],
)
def test_each_defect_is_named(text: str, code: str) -> None:
    assert codes(parse_text(text, "x.yaml")) == [code]


def test_a_quoted_merge_key_is_an_ordinary_key() -> None:
    assert parse_text("'<<': 1\n", "x.yaml").root == {"<<": 1}


def test_core_tags_are_allowed() -> None:
    source = parse_text("!!map {a: !!str 1, b: !!seq [!!float 1], c: ! 2, !!str d: !!null ~}", "x.yaml")
    assert source.diagnostics == ()
    assert source.root == {"a": "1", "b": [1.0], "c": "2", "d": None}


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\xef\xbb\xbfa: 1\n", "encoding"),
        ("a: 1\n".encode("utf-16"), "encoding"),
        ("a: 1\n".encode("utf-32"), "encoding"),
        (b"a: \xff\n", "encoding"),
        (b"a: caf\xe9", "encoding"),
        (b"a: \xed\xa0\x80\n", "encoding"),
        (b"a: \x00\n", "control-character"),
    ],
)
def test_each_wrong_encoding_is_named(data: bytes, code: str) -> None:
    assert codes(parse_bytes(data, "x.yaml")) == [code]


def test_a_wrong_byte_is_pointed_at() -> None:
    (diagnostic,) = parse_bytes("a: 1\nb: 日本".encode() + b"\xff tail\n", "x.yaml").diagnostics
    assert (diagnostic.location.line, diagnostic.location.column) == (2, 6)


def test_several_defects_of_one_file_are_all_told() -> None:
    source = parse_text("a: 1\na: 2\n<<: {}\nb: !x 1\n", "x.yaml")
    assert codes(source) == ["duplicate-key", "merge-key", "yaml-tag"]
    assert source.root == {"a": 1, "b": "1"}


def test_aliases_are_bounded_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "MAX_ALIASES", 2)
    assert codes(parse_text("[&a 1, *a, *a]", "x.yaml")) == []
    assert codes(parse_text("[&a 1, *a, *a, *a]", "x.yaml")) == ["too-many-aliases"]


def test_aliases_are_bounded_by_what_they_stand_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "MAX_NODES", 30)
    assert codes(parse_text("[&a [1, 2, 3], &b [*a, *a], [*b]]", "x.yaml")) == []
    assert codes(parse_text("[&a [1, 2, 3], &b [*a, *a], [*b, *b]]", "x.yaml")) == ["too-large"]


def test_aliases_are_bounded_in_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "MAX_DEPTH", 5)
    assert codes(parse_text("[&a [[1]], [*a]]", "x.yaml")) == []
    assert codes(parse_text("[&a [[[1]]], [[*a]]]", "x.yaml")) == ["too-deep"]


def test_a_billion_laughs_cost_nothing() -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{name}: &{name} [{', '.join([f'*{below}'] * 10)}]" for below, name in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    assert codes(parse_text("\n".join(lines), "x.yaml")) == ["too-large"]


def test_numbers_that_are_not_finite_are_remembered() -> None:
    text = "a: .nan\nb: [-.inf, 1e999, 1.5]\n"
    assert [text[slice(*span)] for span in parse_text(text, "x.yaml").odd_numbers] == [".nan", "-.inf", "1e999"]


def test_a_large_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "large.yaml"
    file.write_bytes(b"#" * (MAX_BYTES + 1))
    assert codes(read_source(file)) == ["too-large"]


def test_a_directory_and_a_missing_file_are_diagnostics(tmp_path: Path) -> None:
    assert codes(read_source(tmp_path)) == ["unreadable-file"]
    assert codes(read_source(tmp_path / "missing.yaml")) == ["unreadable-file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read any file")
def test_an_unreadable_file_is_a_diagnostic(tmp_path: Path) -> None:
    file = tmp_path / "secret.yaml"
    file.touch(mode=0o000)
    assert codes(read_source(file)) == ["unreadable-file"]


TEXTS = [
    "a: 1\nb:\n  - x\n  - {c: 'd', e: [1.5, true]}\n",
    "a: &x [1, 2]\nb: *x\n",
    "a: 1\na: 2\n",
    "a: [1\n",
    "a: |\n  text\n  more\n",
]


@pytest.mark.parametrize("text", TEXTS)
def test_without_libyaml_the_tree_is_the_same(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = parse_text(text, "x.yaml")
    monkeypatch.setattr(yaml, "__with_libyaml__", False)
    pure = parse_text(text, "x.yaml")
    assert pure.root == fast.root
    assert codes(pure) == codes(fast)
    if isinstance(fast.root, Map):
        assert pure.root.keys_at == fast.root.keys_at
        assert pure.root.values_at == fast.root.values_at


def test_a_file_may_have_sixteen_mebibytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert source.MAX_BYTES == 16 * 1024 * 1024
    path = tmp_path / "x.yaml"
    path.write_bytes(b"#" * (1 << 20))
    monkeypatch.setattr(source, "MAX_BYTES", 1 << 20)
    assert [one.code for one in source.read_source(path).diagnostics] == ["empty-file"]
    path.write_bytes(b"#" * ((1 << 20) + 1))
    (found,) = source.read_source(path).diagnostics
    assert (found.code, found.message) == ("too-large", "the file is larger than 1 MiB")
