"""All benchmarks, one after the other: the tables of docs/performance.md from one machine in one go.

    python benchmarks/all.py [--long] [NAME ...]

Every figure that claims something is a ratio of two things timed in turn in the same run. `--long` takes the sizes of
docs/performance.md, which need half an hour; without it they are small.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent

SHORT = {
    "startup": ["--rounds", "3"],
    "load": [],
    "planning": ["--cases", "1000,10000"],
    "compare": [],
    "load_once": ["--engine", "hf", "--cases", "10", "--separate", "3", "--rounds", "1"],
    "run_overhead": ["--prompts", "4", "--rounds", "1"],
    "rerun": ["--cases", "100", "--rounds", "3"],
    "html_report": [],
}
LONG = {
    "startup": ["--rounds", "9"],
    "load": [],
    "planning": ["--cases", "1000,10000,100000"],
    "compare": [],
    "load_once": ["--engine", "vllm", "--cases", "50", "--separate", "3", "--rounds", "2"],
    "run_overhead": ["--prompts", "16", "--rounds", "2"],
    "rerun": ["--cases", "1000", "--rounds", "5"],
    "html_report": [],
}


def main() -> int:
    """Run them; the exit status is 1 when one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true", help="the sizes of docs/performance.md")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SHORT)} (default: all)")
    options = parser.parse_args()
    sizes = LONG if options.long else SHORT
    if unknown := set(options.names) - set(sizes):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}")
    failed = []
    for name in options.names or sizes:
        command = [sys.executable, str(HERE / f"{name}.py"), *sizes[name]]
        load = os.getloadavg()[0]
        print(f"\n## {name}: python benchmarks/{name}.py {' '.join(sizes[name])}  (load {load:.1f})\n", flush=True)
        started = time.perf_counter()
        if subprocess.run(command).returncode:
            failed.append(name)
        print(f"\n{time.perf_counter() - started:.0f} s", flush=True)
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
