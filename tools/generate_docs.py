"""Write docs/spec-reference.md from schema/spec.schema.json, and docs/python-api.md from the docstrings.

python tools/generate_docs.py            write it
python tools/generate_docs.py --check    exit 1 if one is out of date
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = ROOT / "schema" / "spec.schema.json"
TARGET = ROOT / "docs" / "spec-reference.md"
API = ROOT / "docs" / "python-api.md"

INTRODUCTION = """\
<!-- Written by tools/generate_docs.py from schema/spec.schema.json; change those instead. -->

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
    parts = [INTRODUCTION, "## Spec\n", f"{schema['description']}\n", render_table(schema, definitions)]
    for name in SECTIONS:
        parts += render_section(name, definitions)
    return "\n".join(parts)


def render_section(name: str, definitions: Mapping[str, Any]) -> list[str]:
    """Return the section of one definition of the schema."""
    definition = definitions[name]
    parts = [f"## {name}\n", f"{definition['description']}\n"]
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
    rows = ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
    required = schema.get("required", ())
    for key, part in schema["properties"].items():
        target = part["$ref"].rsplit("/", 1)[-1] if "$ref" in part else None
        part = definitions[target] if target else part
        default = "required" if key in required else f"`{flow(part['default'])}`" if "default" in part else ""
        value = f"[{name_type(part)}](#{target})" if target in SECTIONS else name_type(part)
        rows.append(f"| `{key}` | {value} | {default} | {describe(part)} |")
    return "\n".join(rows) + "\n"


def describe(part: Mapping[str, Any]) -> str:
    """Return what a field means, with its unit and range."""
    unit = f" Unit: {part['x-unit']}." if "x-unit" in part else ""
    bounds = " Range: " + limits(part) + "." if limits(part) else ""
    return (part["description"] + unit + bounds).replace("|", "\\|")


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
    words = {
        "object": "mapping",
        "array": "list",
        "string": "text",
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
