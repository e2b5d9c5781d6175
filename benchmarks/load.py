"""Time to load, validate and expand 5,000 cases, against libyaml's own compose of the same text.

    python benchmarks/load.py [--cases 5000] [--repeat 5]

Compose only builds PyYAML's node tree. Ours reads YAML 1.2 values with their positions, validates against the schema,
merges, expands and checks. Both run in one process, in turn, on the same files; the smallest time of each counts.
Loading pauses the cyclic garbage collector; the column "paused" is compose with the collector paused as well.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from specrunner.spec.loader import load_specs

HEAD = """\
version: 1
model: {recipe: glass-0.8m}
engines: [hf]
reference: {engine: hf, dtype: float32}
"""
CASE = """\
  - name: case-{number}
    description: country {number}
    tags: [smoke, part-{part}]
    prompt: {{text: "The capital of country {number} is", length: {length}}}
    dtype: bfloat16
    tensors: [embeddings, "layers.*.output", logits]
    tolerance:
      embeddings: exact
      "layers.*.output": {{allclose: {{rtol: 1e-3, atol: 1e-5}}}}
      logits: {{kl: {{mean: 1e-3, p99: 1e-2}}, top_k: {{k: 10, overlap: 0.98}}}}
    decode: {{max_new_tokens: 16}}
    tokens: exact
"""
MATRIX = "matrix:\n  prompt.length: [1, 2, 3, 4, 5]\n  dtype: [bfloat16, float16]\n"


def write_cases(first: int, count: int) -> str:
    """Return `count` cases that state everything themselves."""
    return "".join(CASE.format(number=n, part=n % 7, length=1 + n % 64) for n in range(first, first + count))


def write_layouts(folder: Path, cases: int) -> dict[str, list[Path]]:
    """Write the same number of expanded cases in three ways: one file, many files, and a matrix of ten combinations."""
    layouts = {
        "one file": {"one.yaml": HEAD + "cases:\n" + write_cases(0, cases)},
        "100 files": {
            f"many/{n:03}.yaml": HEAD + "cases:\n" + write_cases(n * (cases // 100), cases // 100) for n in range(100)
        },
        "one file, matrix of 10": {"matrix.yaml": HEAD + MATRIX + "cases:\n" + write_cases(0, cases // 10)},
    }
    found: dict[str, list[Path]] = {}
    for name, files in layouts.items():
        for file, text in files.items():
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_text(text, encoding="utf-8")
        found[name] = [folder / file for file in files]
    return found


def measure(action: Callable[[], object]) -> float:
    """Return the CPU seconds that one call takes; wall time would measure what else the machine does."""
    gc.collect()
    start = time.process_time()
    action()
    return time.process_time() - start


def compose(files: list[Path]) -> None:
    for file in files:
        yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)


def compose_paused(files: list[Path]) -> None:
    gc.disable()
    try:
        compose(files)
    finally:
        gc.enable()


def load(files: list[Path], cases: int) -> None:
    loaded = load_specs([str(file) for file in files])
    if loaded.diagnostics or len(loaded.cases) != cases:
        sys.exit(f"{len(loaded.cases)} cases, {loaded.diagnostics[:1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    print(f"{options.cases} cases, best of {options.repeat}\n")
    print(
        f"{'layout':<24} {'size':>9} {'compose':>10} {'paused':>10} {'load':>10} "
        f"{'load/compose':>13} {'load/paused':>12}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, files in write_layouts(Path(folder), options.cases).items():
            size = sum(file.stat().st_size for file in files)
            actions = (compose, compose_paused, lambda files: load(files, options.cases))
            times = [[measure(lambda a=action, f=files: a(f)) for action in actions] for _ in range(options.repeat)]
            composed, paused, loaded = (min(column) for column in zip(*times, strict=True))
            seconds = "".join(f"{value:>9.3f} s" for value in (composed, paused, loaded))
            print(f"{name:<24} {size / 1e6:>6.2f} MB{seconds} {loaded / composed:>13.2f} {loaded / paused:>12.2f}")


if __name__ == "__main__":
    main()
