"""`specrunner init`: write one spec that runs at once."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from specrunner.errors import ConfigurationError, ExitCode, UsageError

EXAMPLES = """\
examples:
  specrunner init                     write specs/first.yaml
  specrunner init checks/llada2       write checks/llada2/first.yaml
"""

SPEC_NAME = "first.yaml"

SPEC = """\
# yaml-language-server: $schema={schema}
#
# A first spec. The model is a small English Llama that comes with specrunner's `hf` extra; it loads in a moment on any
# machine. `specrunner run {path}` runs it; ask more of it (`cosine: 0.99999`), and see it fail.
version: 1
tags: [correctness] # `specrunner run -t correctness` runs what has the tag
model: {{recipe: glass-0.8m}}
reference: {{engine: hf, dtype: float32}} # what the engines are held against
engines: [hf] # add vllm or sglang once `specrunner engines install` has installed them

cases:
  - name: bfloat16
    description: every layer stays this close to float32
    dtype: bfloat16
    prompt: Alice was beginning to get very tired of sitting by her sister on the bank
    tolerance:
      "layers.*.output": {{cosine: 0.999}}
      logits: {{cosine: 0.999, kl: {{mean: 1e-2, p99: 1e-1}}}}

  - name: greedy-decode
    description: the same tokens with attention computed step by step
    dtype: float32
    reference: {{options: {{attn_implementation: sdpa}}}}
    options: {{hf: {{attn_implementation: eager}}}}
    prompt: "“What a curious feeling!” said Alice;"
    decode: {{max_new_tokens: 16}}
    tokens: exact
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's argument."""
    parser.add_argument("folder", nargs="?", default="specs", metavar="DIR", help="where to (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    """Write the spec, and the schemas of specs and name maps for editors where there are none.

    Raises:
        UsageError: the spec is there already.
        ConfigurationError: it cannot be written.
    """
    from specrunner.engines.name_map_mistakes import SCHEMA as MAP_SCHEMA_NAME
    from specrunner.spec.schema import SCHEMA_NAME, find_schema

    folder = Path(options.folder)
    spec = folder / SPEC_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        schemas = {name: place_schema(folder, name) for name in (SCHEMA_NAME, MAP_SCHEMA_NAME)}
        text = SPEC.format(schema=os.path.relpath(schemas[SCHEMA_NAME], folder), path=spec)
        with spec.open("x", encoding="utf-8") as stream:
            stream.write(text)
        for name, schema in schemas.items():
            if not schema.exists():
                schema.write_bytes(find_schema(name).read_bytes())
    except FileExistsError as error:
        raise UsageError(f"{error.filename} is there already", help="name another folder, or remove it") from error
    except OSError as error:
        raise ConfigurationError(f"cannot write {spec}: {(error.strerror or str(error)).lower()}") from error
    print(f"wrote {spec}; try: specrunner run {spec}")
    return ExitCode.PASSED


def place_schema(folder: Path, name: str) -> Path:
    """Return the file `schema/NAME` at or above `folder`, else where a copy goes: into `folder`."""
    start = folder.absolute()
    found = (above / "schema" / name for above in (start, *start.parents))
    return next((file for file in found if file.is_file()), start / name)
