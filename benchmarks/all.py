"""All benchmarks, one after the other: the tables of docs/performance.md from one machine in one go.

    python benchmarks/all.py [--long] [NAME ...] > figures.txt

Prints each benchmark's own table, and then one table with a line for each figure: what was measured, the ratio of two
things timed in turn in the same run, and how it grows. `--long` takes the sizes of docs/performance.md, for which a
quiet machine of two cores needs half an hour; without it they are small. What needs an engine that is not installed is
left out, and said.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One script.

    Attributes:
        short: its arguments.
        long: its arguments under `--long`.
        figure: matches the lines of its table that are repeated in the one table.
        says: what the ratio of those lines is.
        needs: engines without which it cannot run.
    """

    short: str
    long: str
    figure: str
    says: str
    needs: tuple[str, ...] = ()


BENCHMARKS = {
    "startup": Benchmark("--rounds 3", "--rounds 9", r"^specrunner ", "to `python -c pass`"),
    "load": Benchmark("", "", r"^(one file|100 files)", "load and validate, to libyaml's compose; to the same paused"),
    "planning": Benchmark(
        "--cases 1000,10000", "--cases 1000,10000,100000", r"^ +[\d,]+ ", "to PyYAML's parse; time per case"
    ),
    "run_overhead": Benchmark(
        "--cases 40 --rounds 1 --warm-up 0",
        "--cases 200 --rounds 2",
        r"^(wall|processors|\.\.\.)",
        "a run to the bare engines",
        ("vllm", "sglang"),
    ),
    "load_once": Benchmark(
        "--cases 1,10 --rounds 1", "--cases 1,3,10,30,100 --rounds 2", r"^ +\d+ ", "N runs of one case to one run of N"
    ),
    "shared_import": Benchmark(
        "--specs 1,4 --rounds 1",
        "--specs 1,2,4,8 --rounds 3",
        r"^ +\d+ ",
        "a run in which each session imports to ours",
    ),
    "rerun": Benchmark("--cases 100 --rounds 3", "--cases 1000 --rounds 5", r"^again|^reading", "to the first run"),
    "compare": Benchmark(
        "--gigabytes 0.01,0.1 --repeat 1 --without polygraphy",
        "--gigabytes 0.01,0.1,1 --repeat 2",
        r"^ +[\d.]+ ",
        "wall and CPU time, to one pass with all measurements",
    ),
    "golden_size": Benchmark("--tokens 4,16", "--tokens 4,16,64,256", r"^ +\d+ ", "bytes, to raw safetensors"),
    "ray_overhead": Benchmark(
        "--cases 10 --rounds 1", "--cases 10,100 --rounds 3", r"^ +\d+ ", "to the local run, on one node and on two"
    ),
    "html_report": Benchmark("", "", r"^\d", "opening it, to a bare page"),
}


def find_missing(engines: tuple[str, ...]) -> list[str]:
    """Return those engines that have no environment here."""
    command = [sys.executable, "-m", "specrunner", "engines", "list"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout if engines else ""
    return [name for name in engines if not re.search(rf"^{name} .* ready ", printed, re.MULTILINE)]


def run_script(name: str, arguments: str) -> tuple[int, str]:
    """Run a benchmark; print what it prints as it comes; return its exit status and its output."""
    lines = []
    command = [sys.executable, str(HERE / f"{name}.py"), *arguments.split()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    return process.returncode, "".join(lines)


def main() -> int:
    """Run them; the exit status is 1 when one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true", help="the sizes of docs/performance.md")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)} (default: all)")
    options = parser.parse_args()
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}")
    failed, table = [], []
    for name in options.names or BENCHMARKS:
        benchmark = BENCHMARKS[name]
        arguments = benchmark.long if options.long else benchmark.short
        print(f"\n## python benchmarks/{name}.py {arguments}  (load {os.getloadavg()[0]:.1f})\n", flush=True)
        if missing := find_missing(benchmark.needs):
            print(f"left out: {', '.join(missing)} not installed")
            continue
        started = time.perf_counter()
        status, printed = run_script(name, arguments)
        print(f"\n{time.perf_counter() - started:.0f} s", flush=True)
        if status:
            failed.append(name)
        lines = printed.splitlines()
        chosen = [number for number, line in enumerate(lines) if re.search(benchmark.figure, line)]
        table.append(f"\n{name}: {benchmark.says}")
        if chosen and chosen[0]:
            table.append(f"  {lines[chosen[0] - 1]}")  # the heads of the columns
        table += [f"  {lines[number]}" for number in chosen]
    print("\n# All of it")
    print("\n".join(table))
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
