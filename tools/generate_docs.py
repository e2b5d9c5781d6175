"""Write docs/spec-reference.md from the schema and the names of tensors, and docs/python-api.md from the docstrings.

python tools/generate_docs.py            write it
python tools/generate_docs.py --check    exit 1 if one is out of date
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = ROOT / "schema" / "spec.schema.json"
TARGET = ROOT / "docs" / "spec-reference.md"
API = ROOT / "docs" / "python-api.md"

INTRODUCTION = """\
<!-- Written by tools/generate_docs.py from schema/spec.schema.json and spec/tensor_names.py; change those instead. -->

# Spec reference

A spec is one YAML file. Its suite name is its path without the extension. Editors that speak JSON Schema show this
page as you type, when the file begins with `# yaml-language-server: $schema=` and the path of `spec.schema.json`.

```yaml
version: 1
model: {recipe: glass-0.8m}
engines: [hf]
reference: {engine: hf, dtype: float32}
dtype: bfloat16
cases:
  - name: capital
    prompt: The capital of France is
    tolerance: {logits: {cosine: 0.99}}
```

## How a spec is read

- Scalars are those of YAML 1.2: `1e-3` is a number; `on`, `no` and `12:30:00` are text; `017` is seventeen. Keys are
  text as written. Numbers are finite.
- Duplicate keys, tags, merge keys (`<<`) and a second document are errors. Aliases are allowed, within bounds.
- A field of a case comes from, strongest first: the matrix, the case, the spec's top level, `defaults`. Mappings are
  merged key by key, everything else is replaced, with these exceptions:
  - `tags` add up.
  - A `model` that names `id`, `path` or `recipe`, a `prompt` that names `text`, `messages` or `token_ids`, and a
    `reference` that names its `engine` replace the whole mapping. Without one of these keys they are merged.
  - The patterns of a case's `tolerance` come before those of `defaults`; the rules of one pattern are not merged.
  - `xfail` replaces the whole; `null` takes it away.
- A case needs a model, an input, an engine, a reference or a golden, and something to check: `tensors` with their
  `tolerance`, `decode` with `tokens`, `attention`, or `trajectory: sampler` (the last two need neither reference nor
  golden). Every tensor listed needs a rule, and every rule must be able to come to bear.
- A case becomes one case for each engine and each combination of its matrix, with the id
  `name[engine=hf,dtype=float32]`: the engine first, then the axes as written. A case whose reference equals its
  candidate compares nothing and is an error; exclude it.
"""

TENSOR_NAMES = """\
## Tensor names

A tensor has the same name on every engine. `{i}` is a number from 0: of a layer, or of a denoising pass. The rows are
the tokens of the input (for a model with a canvas, of the canvas), without a batch axis. A model has those of these
tensors that it computes: one without a mixture of experts has no `router`.

| name | shape | what it is |
| --- | --- | --- |
"""

PATTERNS = """
`tensors` and `tolerance` take names and patterns of names:

- `*` stands for any part of one segment, the text between two dots: `layers.*.output` is the output of every layer, and
  not `layers.0.mlp.output`.
- `**` stands for any run of segments: `layers.**` is everything of the layers.
- Passes are those of a `low_confidence` decode. Choose them by names or patterns that begin with `passes.`.
- A pattern has at most four wildcards.
- A name or pattern of `tensors` (without it, of `tolerance`) that chooses no tensor of the model is an error.
"""

SECTIONS = (
    *("case", "defaults", "variant", "model", "reference", "peer", "prompt", "decode", "tokens", "attention"),
    *("trajectory", "at", "batch"),
    *("tolerance", "rules", "golden", "benchmark", "data", "likelihood", "baseline", "compare"),
    *("matrix", "requires", "xfail"),
)


def load() -> dict[str, Any]:
    """Return the schema."""
    schema: dict[str, Any] = json.loads(SCHEMA.read_text(encoding="utf-8"))
    return schema


def render(schema: Mapping[str, Any]) -> str:
    """Return the page."""
    definitions = schema["$defs"]
    parts = [INTRODUCTION, render_tensor_names(), "## Spec\n", f"{schema['description']}\n"]
    parts.append(render_table(schema, definitions))
    for name in SECTIONS:
        parts += render_section(name, definitions)
    return "\n".join(parts)


def render_tensor_names() -> str:
    """Return the section of the tensors' vocabulary."""
    from specrunner.spec.tensor_names import TENSORS

    rows = [f"| `{name}` | `{shape}` | {meaning} |\n" for name, (shape, meaning) in TENSORS.items()]
    return TENSOR_NAMES + "".join(rows) + PATTERNS


def render_section(name: str, definitions: Mapping[str, Any]) -> list[str]:
    """Return the section of one definition of the schema."""
    definition = definitions[name]
    parts = [f"## {name}\n", f"{link_pages(definition['description'])}\n"]
    if name in ("defaults", "variant"):
        missing = [f"`{key}`" for key in definitions["case"]["properties"] if key not in definition["properties"]]
        return [*parts, f"The keys are those of a [case](#case), without {', '.join(missing)}.\n"]
    if name == "rules":
        for rule, part in definition["properties"].items():
            parts += [f"### {rule}\n", f"{describe(part)}\n"]
            if "properties" in part:
                parts.append(render_table(part, definitions))
            parts += render_examples(part, rule)
        return parts
    if "properties" in definition:
        parts.append(render_table(definition, definitions))
    return [*parts, *render_examples(definition, name)]


def render_table(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """Return the table of a mapping's keys."""
    rows = ["| key | value | default | meaning |", "| --- | --- | --- | --- |", *list_rows(schema, definitions)]
    return "\n".join(rows) + "\n"


def list_rows(schema: Mapping[str, Any], definitions: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return a row for each key of a mapping, followed by those of the mappings in it that have no section.

    Args:
        schema: of the mapping.
        definitions: of the whole schema.
        prefix: what leads to the mapping, `near_tie.`, or `messages[].` where it is an item of a list.
    """
    rows = []
    required = schema.get("required", ())
    for key, part in schema["properties"].items():
        target, part = resolve(part, definitions)
        item_target, item = resolve(part.get("items", {}), definitions)
        section = next((name for name in (target, item_target) if name in SECTIONS), None)
        default = "required" if key in required else f"`{flow(part['default'])}`" if "default" in part else ""
        value = f"[{name_type(part)}](#{section})" if section else name_type(part)
        rows.append(f"| `{prefix}{key}` | {value} | {default} | {describe(part)} |")
        for nested, suffix in ((part, "."), (item, "[].")):
            if section is None and "properties" in nested:
                rows += list_rows(nested, definitions, f"{prefix}{key}{suffix}")
    return rows


def resolve(part: Mapping[str, Any], definitions: Mapping[str, Any]) -> tuple[str | None, Mapping[str, Any]]:
    """Return the name of the definition that a field refers to, or None, and the field's own schema."""
    target = part["$ref"].rsplit("/", 1)[-1] if "$ref" in part else None
    return target, definitions[target] if target else part


def describe(part: Mapping[str, Any]) -> str:
    """Return what a field means, with its unit and range."""
    unit = f" Unit: {part['x-unit']}." if "x-unit" in part else ""
    bounds = " Range: " + limits(part) + "." if limits(part) else ""
    return (link_pages(part["description"]) + unit + bounds).replace("|", "\\|")


def link_pages(text: str) -> str:
    """Make links of the pages that a description names as an editor can show them: `docs/PAGE.md#SECTION`."""

    def link(named: re.Match[str]) -> str:
        page, section = named.groups()
        target = ("" if page == TARGET.stem else f"{page}.md") + (f"#{section}" if section else "")
        return f"[{(section or page).replace('-', ' ')}]({target})"

    return re.sub(r"docs/([a-z-]+)\.md(?:#([a-z-]+))?", link, text)


def limits(part: Mapping[str, Any]) -> str:
    """Return the range of a number; bounds that only keep nonsense out are left out."""
    words = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
    return ", ".join(f"{sign} {flow(part[key])}" for key, sign in words if key in part and abs(part[key]) < 2**20)


def name_type(part: Mapping[str, Any]) -> str:
    """Return what kind of value a schema takes, in words."""
    if "const" in part:
        return f"`{flow(part['const'])}`"
    if "enum" in part:
        return ", ".join(f"`{value}`" for value in part["enum"])
    values = part["then"].get("enum", ()) if part.get("if") == {"type": "string"} else ()
    words = {
        "object": "mapping",
        "array": "list",
        "string": ", ".join(f"`{value}`" for value in values) or "text",
        "integer": "integer",
        "number": "number",
        "boolean": "true or false",
        "null": "`null`",
    }
    kinds = part.get("type", [])
    return " or ".join(words[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds))


def render_examples(part: Mapping[str, Any], name: str) -> list[str]:
    """Return the examples of a field as YAML."""
    examples = part.get("examples", ())
    lines = [f"{name}: {flow(example)}" for example in examples]
    return ["```yaml\n" + "\n".join(lines) + "\n```\n"] if lines else []


def flow(value: Any) -> str:
    """Return a value in YAML's flow style."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quote(key)}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(flow(item) for item in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return quote(value) if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)


def quote(text: str) -> str:
    """Return a text as a YAML scalar."""
    return text if text and not set(text) & set("*:{}[]#&!,") else f'"{text}"'


def main() -> int:
    """Write or check the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 when a page is out of date")
    options = parser.parse_args()
    import describe_api

    status = 0
    for target, text in ((TARGET, render(load())), (API, describe_api.render())):
        if not options.check:
            target.write_text(text, encoding="utf-8")
        elif not target.is_file() or target.read_text(encoding="utf-8") != text:
            print(f"{target.relative_to(ROOT)} is out of date: run python tools/generate_docs.py", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
