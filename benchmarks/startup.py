"""How long `specrunner --help` takes, as a ratio to `python -c pass` measured in the same run.

python benchmarks/startup.py [--rounds 15]
"""

from __future__ import annotations

import argparse
import sys

from timing import compare, time_command


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    bare = [sys.executable, "-c", "pass"]
    print(f"{'command':<32}{'median s':>10}{'python -c pass':>16}{'ratio':>8}")
    for arguments in (["--help"], ["run", "--help"], ["--version"]):
        command = [sys.executable, "-m", "specrunner", *arguments]
        ours, base, ratio = compare(lambda c=command: time_command(c), lambda: time_command(bare), rounds)  # type: ignore[misc]
        print(f"{'specrunner ' + ' '.join(arguments):<32}{ours:>10.3f}{base:>16.3f}{ratio:>8.2f}")


if __name__ == "__main__":
    main()
