"""The reference page is the schema's, and its example is a valid spec."""

from __future__ import annotations

import runpy
from pathlib import Path

from specrunner.spec.loader import read_spec
from specrunner.spec.rules import rule_names
from specrunner.spec.schema import load_schema
from specrunner.spec.source import parse_text

ROOT = Path(__file__).parents[2]
TOOL = runpy.run_path(str(ROOT / "tools" / "generate_docs.py"))
PAGE = (ROOT / "docs" / "spec-reference.md").read_text(encoding="utf-8")


def test_the_page_is_up_to_date() -> None:
    assert TOOL["render"](load_schema()) == PAGE, "run python tools/generate_docs.py"


def test_every_field_is_in_its_definition_s_section() -> None:
    schema = load_schema()
    definitions = schema["$defs"]
    sections = {part.partition("\n")[0]: part for part in PAGE.split("\n## ")[1:]}
    fields = {name: part["properties"] for name, part in definitions.items() if "properties" in part}
    assert {"case", "model", "decode", "golden", "benchmark"} < set(fields)
    for name, properties in {"Spec": schema["properties"], **fields}.items():
        if name == "rules":
            assert all(f"### {rule}\n" in sections["rules"] for rule in properties)
        elif name in ("defaults", "variant"):
            without = sections[name].partition("without ")[2]
            assert set(properties) == {key for key in fields["case"] if f"`{key}`" not in without}
        else:
            assert [key for key in properties if f"\n| `{key}` | " not in sections[name]] == []


def test_every_rule_is_on_the_page_with_its_fields() -> None:
    parts = {part.partition("\n")[0]: part.partition("\n## ")[0] for part in PAGE.split("\n### ")[1:]}
    assert set(rule_names()) <= set(parts)
    for rule, part in load_schema()["$defs"]["rules"]["properties"].items():
        assert [key for key in part.get("properties", ()) if f"\n| `{key}` | " not in parts[rule]] == []


def test_every_link_leads_to_a_section() -> None:
    import re

    for target in re.findall(r"\]\(#([a-z_]+)\)", PAGE):
        assert f"\n## {target}\n" in PAGE


def test_the_first_example_is_valid() -> None:
    text = PAGE.split("```yaml\n", 2)[1].split("```")[0]
    cases, diagnostics = read_spec(parse_text(text, "x.yaml"), "x", ("hf",), ("glass-0.8m",))
    assert diagnostics == []
    assert len(cases) == 1


def test_the_examples_of_fields_are_yaml_of_our_own_reading() -> None:
    for block in PAGE.split("```yaml\n")[2:]:
        for line in block.split("```")[0].splitlines():
            assert parse_text(line, "x.yaml").diagnostics == (), line
