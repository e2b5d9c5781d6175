"""What a load per case costs: N cases in one run, which loads each engine once, against a run for every case.

    python benchmarks/load_once.py [--engine vllm] [--cases 20] [--separate 20] [--rounds 3]

A run for every case is what engines' own test suites do that construct the engine inside each test. Both ways load the
candidate and its reference (Transformers), make the same requests and the same comparisons, one session at a time. With
`--separate K` only K of the N cases are run on their own, and the time of N such runs is calculated as N times their
mean; the table says so. Both ways are timed in turn, in rounds, so that a machine that gets busier cancels out of the
ratio, of which the median over the rounds is printed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from timing import time_command

HEAD = """\
version: 1
model: {{recipe: glass-0.8m}}
dtype: float32
device: cpu
engines: [{engine}]
reference: {{engine: hf, dtype: float32, options: {{attn_implementation: eager}}}}
defaults: {{tolerance: {{"layers.*.output": {{sqnr: 80}}, logits: {{sqnr: 80}}}}}}
cases:
"""


def write_spec(path: Path, engine: str, cases: int) -> None:
    """Write `cases` cases, each with a prompt of its own."""
    lines = []
    for index in range(cases):
        ids = [(7 * position * position + 3 * position + index) % 1000 for position in range(8 + 2 * index)]
        lines.append(f"  - {{name: case-{index}, prompt: {{token_ids: {ids}}}}}\n")
    path.write_text(HEAD.format(engine=engine) + "".join(lines), encoding="utf-8")


def main() -> None:
    """Print what the plan says, and one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("vllm", "sglang", "hf"), default="vllm")
    parser.add_argument("--cases", type=int, default=20, help="cases in the spec (default 20, at most 50)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--separate", type=int, help="cases to run on their own as well (default: all)")
    options = parser.parse_args()
    separate = min(options.separate or options.cases, options.cases)
    with tempfile.TemporaryDirectory() as name:
        spec = Path(name) / "cases.yaml"
        write_spec(spec, options.engine, options.cases)
        command = [sys.executable, "-m", "specrunner", "run", "--no-cache", "--strict", "-j", "1"]
        plan = subprocess.run([*command, "--plan", str(spec)], check=True, capture_output=True, text=True).stdout

        def run_alone(index: int) -> float:
            return time_command([*command, f"{spec}::case-{index}"])

        chosen = [round(place * (options.cases - 1) / max(1, separate - 1)) for place in range(separate)]
        groups = [chosen[start :: options.rounds] for start in range(options.rounds)]
        rounds = [
            (time_command([*command, str(spec)]), [run_alone(index) for index in group]) for group in groups if group
        ]
    alone = [seconds for _, group in rounds for seconds in group]
    together = statistics.median(seconds for seconds, _ in rounds)
    ratio = statistics.median(options.cases * statistics.mean(group) / seconds for seconds, group in rounds)
    print("the plan:", next(line for line in plan.splitlines() if "sessions" in line))
    each = statistics.mean(alone)
    total = sum(alone) if separate == options.cases else each * options.cases
    how = "measured" if separate == options.cases else f"{options.cases} times the mean of {separate} measured"
    print(f"{options.cases} cases on {options.engine}, reference hf, one session at a time")
    spread = f"({min(seconds for seconds, _ in rounds):.1f} to {max(seconds for seconds, _ in rounds):.1f})"
    print(f"  one run, one load an engine     {together:8.1f} s  {spread}")
    print(f"  one run for one case            {each:8.1f} s  ({min(alone):.1f} to {max(alone):.1f})")
    print(f"  a load per case                 {total:8.1f} s  ({how})")
    print(f"  ratio                           {ratio:8.1f}    (median of {len(rounds)} rounds)")


if __name__ == "__main__":
    main()
