"""What one import of an engine for all of a run's sessions saves: a run that forks them against one that does not.

    python benchmarks/shared_import.py [--engine hf|vllm|sglang] [--specs 1,2,4,8] [--rounds 3]

Each spec has a model and a dtype of its own, one case, and Transformers' eager attention in float32 as its reference:
N specs take N sessions of the engine and a few of Transformers. Nothing is kept. In every round each N is run both
ways, one after the other, one session at a time; the ratio is the median over the rounds. Processor time counts that
of all processes.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from timing import Cost, time_processes

MODELS = ("glass-0.8m", "tiny-mixtral", "tiny-qwen3-moe")
DTYPES = ("float32", "bfloat16", "float16")
SPEC = """\
version: 1
model: {{recipe: {model}}}
dtype: {dtype}
device: cpu
engines: [{engine}]
reference: {{engine: hf, dtype: float32, options: {{attn_implementation: eager}}}}
cases:
  - {{name: case, prompt: {{token_ids: [3, 14, 15, 92, 65, 35]}}, tolerance: {{logits: {{sqnr: 5}}}}}}
"""


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("vllm", "sglang", "hf"), default="hf")
    parser.add_argument("--specs", default="1,2,4,8", help="sizes (default 1,2,4,8), at most 9")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    sizes = [int(size) for size in options.specs.split(",")]
    command = [sys.executable, "-m", "specrunner", "run", "--no-cache", "--strict", "-j", "1"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    found: dict[int, list[tuple[Cost, Cost]]] = {size: [] for size in sizes}
    sessions: dict[int, str] = {}
    with tempfile.TemporaryDirectory() as name:
        specs = []
        for number, (model, dtype) in enumerate(itertools.product(MODELS, DTYPES)):
            specs.append(str(Path(name) / f"{number}.yaml"))
            Path(specs[-1]).write_text(SPEC.format(model=model, dtype=dtype, engine=options.engine), encoding="utf-8")
        for size in sizes:
            plan = [*command, "--plan", *specs[:size]]
            planned = subprocess.run(plan, check=True, capture_output=True, text=True).stdout
            sessions[size] = planned.partition(" sessions")[0].split()[-1]
        for _ in range(options.rounds):
            for size in sizes:
                forked, fresh = (
                    time_processes([*command, *more, *specs[:size]], environment)[0] for more in ([], ["--no-fork"])
                )
                found[size].append((forked, fresh))
    print(f"{options.engine}, reference hf, one session at a time; medians of {options.rounds}")
    print(
        f"{'sessions':>10}{'shared, s':>12}{'each, s':>10}{'ratio':>8}{'shared, cpu':>14}{'each, cpu':>12}{'ratio':>8}"
    )
    for size, pairs in found.items():
        line = f"{sessions[size]:>10}"
        for clock, widths in (("wall", (12, 10)), ("cpu", (14, 12))):
            costs = [(getattr(shared, clock), getattr(each, clock)) for shared, each in pairs]
            shared, each = (statistics.median(column) for column in zip(*costs, strict=True))
            ratio = statistics.median(b / a for a, b in costs)
            line += f"{shared:>{widths[0]}.1f}{each:>{widths[1]}.1f}{ratio:>8.2f}"
        print(line)


if __name__ == "__main__":
    main()
