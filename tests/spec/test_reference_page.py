"""The reference page is the schema's, and its example is a valid spec."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from specrunner.spec.loader import read_spec
from specrunner.spec.rules import rule_names
from specrunner.spec.schema import load_schema
from specrunner.spec.source import parse_text
from specrunner.spec.tensor_names import TEMPLATES

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


def find_nested(part: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every field of a mapping and of what is written out in it, in mappings and lists of them."""
    for key, field in part.get("properties", {}).items():
        yield name + key, field
        yield from find_nested(field, f"{name}{key}.")
        yield from find_nested(field.get("items", {}), f"{name}{key}[].")


def test_a_field_within_a_field_has_a_row_with_its_default() -> None:
    schema = load_schema()
    sections = {part.partition("\n")[0]: part for part in PAGE.split("\n## ")[1:]}
    found = []
    for name, definition in schema["$defs"].items():
        for path, field in find_nested(definition):
            if name == "rules" or not set(path) & set(".["):
                continue
            [row] = [line for line in sections[name].splitlines() if line.startswith(f"| `{path}` | ")]
            default = row.split(" | ")[2].strip("` ")
            assert float(default) == field["default"] if "default" in field else default in ("", "required")
            assert field["description"][:20] in row
            found.append(path)
    known = {"near_tie.kappa", "near_tie.max_share", "sampler.kappa", "messages[].role", "messages[].content"}
    assert known <= set(found)


def test_a_field_within_a_list_within_a_field_has_a_row() -> None:
    inner = {"type": "integer", "description": "Depth.", "default": 3}
    items = {"type": "object", "description": "One.", "properties": {"c": inner}}
    middle = {
        "type": "object",
        "description": "Some.",
        "properties": {"b": {"type": "array", "items": items} | {"description": "Bs."}},
    }
    table = TOOL["render_table"]({"properties": {"a": middle}}, {})
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == ["| `a`", "| `a.b`", "| `a.b[].c`"]
    assert "| `a.b[].c` | integer | `3` | Depth. |" in table


def test_every_tensor_is_on_the_page_with_its_shape() -> None:
    section = PAGE.partition("\n## Tensor names\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([^`]+)` \| `\[[^`]+\]` \| .+ \|$", section, flags=re.MULTILINE)
    assert rows == list(TEMPLATES)


def test_every_link_leads_to_a_section() -> None:
    headings = {line[3:].lower().replace(" ", "-") for line in PAGE.splitlines() if line.startswith("## ")}
    targets = set(re.findall(r"\]\(#([^)]+)\)", PAGE))
    assert {"tensor-names", "case"} <= targets
    assert targets - headings == set()


def test_a_page_that_a_description_names_is_a_link() -> None:
    assert TOOL["link_pages"]("See docs/engine-options.md.") == "See [engine options](engine-options.md)."
    assert TOOL["link_pages"]("(docs/spec-reference.md#tensor-names)") == "([tensor names](#tensor-names))"
    assert re.findall(r"[^/(]docs/\S+", PAGE) == []


def test_the_first_example_is_valid() -> None:
    text = PAGE.split("```yaml\n", 2)[1].split("```")[0]
    cases, diagnostics = read_spec(parse_text(text, "x.yaml"), "x", ("hf",), ("glass-0.8m",))
    assert diagnostics == []
    assert len(cases) == 1


def test_the_examples_of_fields_are_yaml_of_our_own_reading() -> None:
    for block in PAGE.split("```yaml\n")[2:]:
        for line in block.split("```")[0].splitlines():
            assert parse_text(line, "x.yaml").diagnostics == (), line
