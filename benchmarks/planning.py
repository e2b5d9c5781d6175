"""How planning grows: loading, expanding and planning 1,000 to 100,000 cases, in CPU seconds and memory.

    python benchmarks/planning.py [--cases 1000,10000,100000]

Each size is a process of its own: `specrunner run --plan --no-cache` over files of 100 entries with a matrix of two
dtypes. The unit of the last column is the CPU time of a thousand cases in the smallest size: 1.0
everywhere is linear. PyYAML's own parse of the same files, with libyaml's loader, stands beside it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HEAD = """\
version: 1
model: {recipe: glass-0.8m}
engines: [hf]
reference: {engine: hf, dtype: float32, options: {attn_implementation: eager}}
matrix: {dtype: [float32, bfloat16]}
defaults: {tolerance: {logits: {sqnr: 20}}}
cases:
"""
PER_FILE = 100
WAYS = 2
"""Cases that each entry expands to."""

PARSE = "import sys, yaml\nfor name in sys.argv[1:]: yaml.load(open(name), Loader=yaml.CSafeLoader)\n"


def write_specs(folder: Path, cases: int) -> list[str]:
    """Write specs of so many cases; return their names."""
    names = []
    for first in range(0, cases, PER_FILE * WAYS):
        entries = min(PER_FILE, (cases - first) // WAYS)
        lines = [
            f"  - {{name: c{index}, prompt: {{token_ids: [{first + index}, 2, 3, 4]}}}}" for index in range(entries)
        ]
        path = folder / f"s{first:06}.yaml"
        path.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")
        names.append(str(path))
    return names


def measure(command: list[str], cwd: Path) -> tuple[float, float]:
    """Run a command; return its CPU seconds and the most memory it had, in GB (10**9 bytes)."""
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, f"{command[:5]} ended with {status}"
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="1000,10000,100000", help="sizes (default 1000,10000,100000)")
    sizes = [int(size) for size in parser.parse_args().cases.split(",")]
    print(f"{'cases':>8}{'plan, CPU s':>13}{'memory, GB':>12}{'parse, CPU s':>14}{'ratio':>8}{'per case':>10}")
    unit = 0.0
    for size in sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            names = write_specs(folder, size)
            plan = [sys.executable, "-m", "specrunner", "run", "--plan", "--no-cache", *names]
            seconds, memory = measure(plan, folder)
            parse, _ = measure([sys.executable, "-c", PARSE, *names], folder)
        unit = unit or seconds / size
        plan_and_parse = f"{seconds:>13.2f}{memory:>12.2f}{parse:>14.2f}"
        print(f"{size:>8,}{plan_and_parse}{seconds / parse:>8.1f}{seconds / size / unit:>10.2f}")


if __name__ == "__main__":
    main()
