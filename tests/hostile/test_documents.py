"""Documents that nobody means well: each ends in cases or in diagnostics, soon."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from specrunner.cli import main
from specrunner.environments import locks
from specrunner.errors import UsageError
from specrunner.plan import capabilities
from specrunner.spec import cases, consistency, tree
from specrunner.spec.keywords import compile_keywords
from specrunner.spec.source import parse_bytes
from tests.hostile.documents import ROOT, maker
from tests.hostile.judging import judge

EXAMPLES = int(os.environ.get("SPECRUNNER_FUZZ_EXAMPLES", "300"))
"""Documents of each property test; tools/fuzz_specs.py is for more than thousands."""

HEAD = (
    "version: 1\nmodel: {recipe: glass-0.8m}\nengines: [hf]\nreference: {engine: hf, dtype: float32}\ndtype: bfloat16\n"
)
CASE = "cases:\n  - {name: a, prompt: hi, tolerance: {logits: exact}}\n"


def with_field(text: str) -> str:
    return f"{HEAD}cases:\n  - name: a\n    prompt: hi\n    {text}\n"


def with_matrix(text: str) -> str:
    return with_field(f"tolerance: {{logits: exact}}\n    matrix: {text}")


def nest(depth: int) -> str:
    """Return a list that holds itself one level less deep twice: 2**depth numbers in so many lines."""
    text = "&a0 [1]"
    for level in range(1, depth + 1):
        text = f"&a{level} [{text}, *a{level - 1}]"
    return text


def count_to(number: int) -> str:
    return f"[{', '.join(str(index + 1) for index in range(number))}]"


@given(st.integers(min_value=0))
@settings(max_examples=EXAMPLES)
def test_any_mutation_of_a_spec_is_valid_or_refused(seed: int) -> None:
    kind, data = maker().make(random.Random(seed))
    started = time.process_time()
    outcome, count = judge(data)
    assert outcome == "valid" or outcome.startswith("refused: ")
    assert time.process_time() - started < 2 + count * 0.002, kind


@given(
    st.recursive(
        st.text(max_size=8) | st.floats() | st.integers() | st.none() | st.booleans(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=8), inner),
    ),
    st.sampled_from(
        (
            "model",
            "matrix",
            "tolerance",
            "prompt",
            "decode",
            "benchmark",
            "golden",
            "attention",
            "requires",
            "options",
            "xfail",
            "tags",
            "engines",
            "reference",
        )
    ),
)
@settings(max_examples=EXAMPLES // 4)
@example(["\ud800"], "tags")
def test_any_value_of_any_field_is_valid_or_refused(value: object, name: str) -> None:
    text = with_field(f"tolerance: {{logits: exact}}\n    {name}: {json.dumps(value)}")
    judge(text.encode())


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "{a: " * 100_000,
        "- " * 100_000,
        "? " * 100_000,
        "&a " * 100_000,
        "*a " * 100_000,
        "!" * 100_000,
        "|\n" * 100_000,
        "'" * 100_000,
        ": " * 100_000,
        "%X a\n" * 100_000,
        "---\n" * 100_000,
        "\t" * 100_000,
        "\r" * 100_000,
        "{" + "a:" * 100_000,
        "{}" * 100_000,
        "a: &a [*a]",
        "&a [*a, &a *a]",
        "\x00",
        "a: \x1b[31m",
        "\ufeffa: 1",
        "a: \u2028",
        "".join("  " * depth + "a:\n" for depth in range(1000)),
    ],
    ids=lambda text: repr(text[:8]),
)
def test_signs_without_end_are_refused_at_once(text: str) -> None:
    started = time.process_time()
    assert judge(text.encode())[0].startswith("refused: ")
    assert time.process_time() - started < 1


@pytest.mark.parametrize("data", [
    b"\xff\xfev\x00", b"\xfe\xff\x00v", b"\x00\x00\xfe\xff", b"\xef\xbb\xbfversion: 1", b"a: \xff", b"a: \xed\xa0\x80",
    b"\xc0\x80",
])  # fmt: skip
def test_encodings_are_refused(data: bytes) -> None:
    assert judge(data)[0] in ("refused: encoding",)


LARGE = {
    "plain scalar": "a: " + "x" * 10_000_000,
    "escapes": 'a: "' + "\\x41" * 2_500_000 + '"',
    "spaces": " " * 10_000_000,
    "comment": "#" + "x" * 10_000_000,
    "alias bomb": "a: &a0 [x]\n" + "".join(f"b{i}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(30)),
    "unknown aliases": "a: [" + ", ".join(f"&anchor{i} 1" for i in range(900)) + ", *anchpr" * 5000 + "]",
    "repeated keys in one line": "{" + "a: 1, " * 100_000 + "}",
    "keys of a mapping": HEAD + CASE + "".join(f"versiom{i}: 1\n" for i in range(50_000)),
    "keys of a case": with_field("".join(f"toleranc{i}: 1\n    " for i in range(50_000))),
    "engines": f"version: 1\nengines: [{', '.join(f'vlm{i}' for i in range(20_000))}]\n{CASE}",
    "tags": f"{HEAD}tags: [{', '.join(f't{i}' for i in range(20_000))}]\n{CASE}",
    "patterns": with_field(f"tensors: [{', '.join(f'layers.{i}.output' for i in range(2000))}]\n    tolerance: {{}}"),
    "layer numbers": with_field(
        "tolerance: {" + ", ".join(f"{i}*{i + 9000}*{i + 999}*{i + 5000}*x: exact" for i in range(1000, 1250)) + "}"
    ),
    "a long pattern": with_field("tolerance: {? '" + "1." * 200_000 + "' : exact}"),
    "wildcards": with_field("tolerance: {'" + "*" * 200_000 + "': exact}"),
    "a long name": f"{HEAD}cases:\n  - {{name: {'a' * 1_000_000}, prompt: hi, tolerance: {{logits: exact}}}}\n",
    "values of an axis": with_matrix(f"{{timeout: {count_to(50_000)}}}"),
    "a product": with_matrix("{" + ", ".join(f"x{i}: {{a: {{}}, b: {{}}}}" for i in range(900)) + "}"),
    "exclusions": with_matrix(
        f"{{timeout: {count_to(250)}, prompt.length: {count_to(250)}, exclude: [{'{timeout: 0}, ' * 900}]}}"
    ),
    "attention": with_field("attention: {geometry: matrix, matrix: [" + '"1", ' * 50_000 + "]}"),
    "wrong cases": HEAD + "cases:\n" + "".join(
        f"  - {{name: a{i}, prompt: hi, tolerance: {{logitz: exact}}}}\n" for i in range(5_000)
    ),
    "mistakes by alias": HEAD + "cases:\n  - {name: a, prompt: hi, tolerance: {logits: exact}, options: &o {"
    + ", ".join(f"o{i}: {i}" for i in range(900)) + "}}\n" + "".join(
        f"  - {{name: a{i}, prompt: hi, tolerance: {{logits: exact}}, options: *o}}\n" for i in range(100)
    ),
    "engines by alias": f"version: 1\nengines: [{nest(17)}, [*a16, *a16, 1]]\n{CASE}",
    "options by alias": f"{HEAD}options: {{hf: {{a: {nest(17)}}}}}\n{CASE}",
    "unknown keys by alias": f"{HEAD}options: &o {{{', '.join(f'o{i}: {i}' for i in range(900))}}}\n" + "".join(
        f"defaults{i}: {{options: *o}}\n" for i in range(9)
    ) + "cases: [" + "*o, " * 100 + "]",
    "a model by alias": f"version: 1\nmodel: {nest(17).replace('[1]', '[' + 'a' * 9000 + ']')}\nengines: [hf]\n{CASE}",
    "axes by alias": f"{HEAD}matrix: {{timeout: &v {count_to(900)}, " + ", ".join(
        f"decode.x{i}: *v" for i in range(900)
    ) + "}\nwrong: 1\n" + CASE,
    "not cases": HEAD + "cases: [" + "1, " * 50_000 + "]",
    "a great number": with_field(f"tolerance: {{logits: {{sqnr: {'9' * 399}}}}}"),
    "a greater number": with_field(f"tolerance: {{logits: {{sqnr: {'9' * 5_000_000}}}}}"),
    "beyond float": with_field("tolerance: {logits: {sqnr: 1e999}}"),
    "not a number": with_field("tolerance: {logits: {sqnr: .nan}}"),
    "many tokens": with_field(f"tokens: exact\n    decode: {{max_new_tokens: 1{'0' * 390}}}"),
    "a date": with_field("tolerance: exact\n    description: 2001-12-14t21:59:43.10-05:00"),
    "a line break in a name": HEAD + 'cases:\n  - {name: "a\\n", prompt: hi, tolerance: {logits: exact}}\n',
}  # fmt: skip


@pytest.mark.parametrize("name", LARGE)
def test_huge_documents_are_refused_within_seconds(name: str) -> None:
    data = LARGE[name].encode()
    started = time.process_time()
    outcome, _ = judge(data)
    took = time.process_time() - started
    assert outcome.startswith("refused: "), outcome
    assert took < 2, f"{took:.1f} s"


@pytest.mark.slow
def test_a_file_at_the_limits_is_read_within_seconds() -> None:
    """A million values: as many as a file may have."""
    started = time.process_time()
    outcome, _ = judge(
        with_field(f"tolerance: {{logits: exact}}\n    prompt: {{token_ids: [{'1,' * 990_000}]}}").encode()
    )
    assert outcome == "refused: duplicate-key"
    assert time.process_time() - started < 10


def test_every_layer_of_a_deep_model_can_have_its_own_rule() -> None:
    rules = ", ".join(f"layers.{layer}.{name}: exact" for layer in range(100) for name in ("output", "mlp.output"))
    tensors = ", ".join(f"layers.{layer}.output" for layer in range(100))
    started = time.process_time()
    assert judge(with_field(f"tolerance: {{{rules}}}").encode())[0] == "valid"
    assert judge(with_field(f"tensors: [{tensors}]\n    tolerance: {{'**': exact}}").encode())[0] == "valid"
    assert time.process_time() - started < 4


def test_the_cases_of_a_file_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "MAX_CASES", 5)
    entry = "  - {name: %s, prompt: hi, tolerance: {logits: exact}, matrix: {timeout: [1, 2, 3]}}\n"
    assert judge((HEAD + "cases:\n" + entry % "a").encode()) == ("valid", 3)
    assert judge((HEAD + "cases:\n" + entry % "a" + entry % "b").encode()) == ("refused: too-many-cases", 3)


@pytest.mark.parametrize(("name", "outcome"), [("hf-llada2", "valid"), ("none", "refused: unknown-environment")])
def test_lock_files_are_read_once_for_all_cases(monkeypatch: pytest.MonkeyPatch, name: str, outcome: str) -> None:
    read = []

    def read_all() -> dict[str, locks.Lock]:
        read.append(locks.list_locks())
        return read[-1]

    monkeypatch.setattr(capabilities, "list_locks", read_all)
    text = with_matrix(f"{{timeout: {count_to(50)}}}").replace(
        "engines: [hf]", f"engines: [hf]\nenvironments: {{hf: {name}}}"
    )
    assert judge(text.encode()) == (outcome, 50)
    assert len(read) == 1


def test_options_are_looked_through_once_for_all_cases_that_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def look(options: object, *others: object) -> list[capabilities.Refusal]:
        seen.append(options)
        return [capabilities.Refusal("conflicting-keys", "no", "help", ())]

    monkeypatch.setattr(capabilities, "find_refusals", look)
    text = with_matrix(f"{{timeout: {count_to(50)}}}\n    options: {{hf: {{a: 1}}}}")
    assert judge(text.encode()) == ("refused: conflicting-keys", 50)
    assert len(seen) == 1, "candidate and reference of all cases have one and the same"


def test_reading_stops_after_many_problems() -> None:
    source = parse_bytes(b"{" + b"a: 1, " * 100_000 + b"}", "x.yaml")
    assert len(source.diagnostics) == tree.MAX_PROBLEMS
    assert len({id(diagnostic.line_text) for diagnostic in source.diagnostics}) == 1  # of a line of any length


@pytest.mark.parametrize("package", ["a..b", "__main__", "os.path.x", "torch.nowhere.at_all", "json.", "x" * 200])
def test_no_package_name_breaks_the_plan_or_is_imported(package: str) -> None:
    script = "import sys; from specrunner.plan.build import has_package\n"
    script += "print(has_package(sys.argv[1]), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script, package], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout.strip(), done.stderr) == ("False False", "")


def test_packages_are_found_below_packages() -> None:
    from specrunner.plan.build import has_package

    assert has_package("json") and has_package("specrunner.spec.tree") and has_package("xml.etree.ElementTree")


@pytest.mark.parametrize("text", [" " * 100_000 + "(", "not " * 100_000, "(" * 100_000, "a " * 50_000, "((a)" * 20_000])
def test_expressions_of_any_length_are_read_or_refused_at_once(text: str) -> None:
    started = time.process_time()
    with pytest.raises(UsageError):
        compile_keywords(text)
    assert time.process_time() - started < 1


def test_the_command_refuses_with_exit_4_and_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for index, data in enumerate((b"\x00", b"\xff", b"[" * 9999, b"a: &a [*a]", b"version: 1\nversion: 1\n", b"")):
        Path(f"{index}.yaml").write_bytes(data)
        assert main(["validate", f"{index}.yaml"]) == 4
        assert main(["run", "--plan", f"{index}.yaml"]) == 4
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    assert out.count("error[") == err.count("error[") >= 6


def test_limits_are_those_that_the_page_states() -> None:
    page = (ROOT / "docs" / "hostile-input.md").read_text(encoding="utf-8")
    for limit in (
        tree.MAX_KEYS,
        tree.MAX_DEPTH,
        tree.MAX_NODES,
        tree.MAX_ALIASES,
        cases.MAX_CASES,
        consistency.MAX_NUMBERS,
    ):
        assert f"{limit:,}" in page


def test_a_value_that_turns_text_around_is_no_part_of_an_id() -> None:
    """Found by the fuzzing: the id of a case held the mark that has what follows it read from right to left."""
    text = (
        "version: 1\nmodel: {id: a/b}\nengines: [hf]\nreference: {engine: hf, dtype: float32}\ndtype: bfloat16\n"
        "cases:\n  - {name: a, prompt: b, tolerance: {logits: exact}, matrix: {model.revision: [\u202e]}}\n"
    )
    assert judge(text.encode()) == ("refused: bad-label", 0)
