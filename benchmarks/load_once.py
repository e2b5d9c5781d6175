"""What a load per case costs: N cases in one run, which loads each engine once, against a run for every case.

    python benchmarks/load_once.py [--engine hf|vllm|sglang] [--cases 1,3,10,30,100] [--rounds 3]

A run for every case is what engines' own test suites do that construct the engine inside each test. Both ways load the
candidate and its reference (Transformers), make the same requests and the same comparisons, one session at a time, and
keep nothing. In every round one case is run on its own and then N cases in one run, for each N; the time of N runs is N
times that of the one in the same round, so that a machine that gets busier cancels out of the ratio, of which the
median over the rounds is printed. Processor time counts that of all processes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from timing import Cost, time_processes

HEAD = """\
version: 1
model: {{recipe: glass-0.8m}}
dtype: float32
device: cpu
engines: [{engine}]
options: {{{engine}: {{num_threads: 1}}}}
reference: {{engine: hf, dtype: float32, options: {{attn_implementation: eager, num_threads: 1}}}}
defaults: {{tolerance: {{"layers.*.output": {{sqnr: 80}}, logits: {{sqnr: 80}}}}}}
cases:
"""


def write_spec(path: Path, engine: str, cases: int) -> None:
    """Write `cases` cases, each with a prompt of its own."""
    lines = []
    for index in range(cases):
        ids = [(7 * position * position + 3 * position + index) % 1000 for position in range(8 + 2 * (index % 50))]
        lines.append(f"  - {{name: case-{index}, prompt: {{token_ids: {ids}}}}}\n")
    path.write_text(HEAD.format(engine=engine) + "".join(lines), encoding="utf-8")


def main() -> None:
    """Print what the plan says, and one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("vllm", "sglang", "hf"), default="hf")
    parser.add_argument("--cases", default="1,3,10,30,100", help="sizes (default 1,3,10,30,100)")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    sizes = [int(size) for size in options.cases.split(",")]
    command = [sys.executable, "-m", "specrunner", "run", "--no-cache", "--strict", "-j", "1"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    alone: list[Cost] = []
    together: dict[int, list[Cost]] = {size: [] for size in sizes}
    with tempfile.TemporaryDirectory() as name:
        spec = Path(name) / "cases.yaml"
        write_spec(spec, options.engine, max(sizes))
        planned = subprocess.run([*command, "--plan", str(spec)], check=True, capture_output=True, text=True).stdout
        for number in range(options.rounds):
            chosen = number * max(sizes) // options.rounds  # short prompts and long ones
            alone.append(time_processes([*command, f"{spec}::case-{chosen}"], environment)[0])
            for size in sizes:
                write_spec(spec, options.engine, size)
                together[size].append(time_processes([*command, str(spec)], environment)[0])
            write_spec(spec, options.engine, max(sizes))
    print("the plan:", next(line for line in planned.splitlines() if "sessions" in line))
    print(f"{options.engine}, reference hf, one session at a time; medians of {options.rounds}")
    print(f"{'':>6}{'one run, s':>13}{'N runs, s':>12}{'ratio':>8}{'one run, cpu':>15}{'N runs, cpu':>13}{'ratio':>8}")
    for size, found in together.items():
        line = f"{size:>6}"
        for clock, widths in (("wall", (13, 12)), ("cpu", (15, 13))):
            pairs = [(getattr(a, clock), size * getattr(b, clock)) for a, b in zip(found, alone, strict=True)]
            ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratio = statistics.median(b / a for a, b in pairs)
            line += f"{ours:>{widths[0]}.1f}{theirs:>{widths[1]}.1f}{ratio:>8.1f}"
        print(line)


if __name__ == "__main__":
    main()
