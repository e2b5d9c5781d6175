"""What an unchanged run costs: 1,000 cases run once, and then again with nothing changed.

    python benchmarks/rerun.py [--cases 1000] [--rounds 5]

The cases are real: glass-0.8m on Transformers, SDPA against eager attention. The unit of the second run is what it
cannot do without, reading the specs and planning (`run --plan --no-cache`); both are timed in turn. The last line says
whether the second run imported torch.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from timing import compare, time_command

HEAD = """\
version: 1
model: {recipe: glass-0.8m}
dtype: float32
device: cpu
engines: [hf]
reference: {engine: hf, dtype: float32, options: {attn_implementation: eager}}
defaults: {tolerance: {logits: {sqnr: 80}}}
cases:
"""


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    from specrunner.folders import cache_folder

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = [
            f"  - {{name: c{index}, prompt: {{token_ids: [{index}, 7, 11, 13]}}}}" for index in range(options.cases)
        ]
        (folder / "spec.yaml").write_text(HEAD + "\n".join(cases) + "\n", encoding="utf-8")
        (folder / "cache").mkdir()
        for shared in ("models", "environments"):
            (folder / "cache" / shared).symlink_to(cache_folder() / shared)
        settings = {"HF_HUB_OFFLINE": "1", "SPECRUNNER_CACHE": str(folder / "cache"), "SPECRUNNER_NO_CACHE": "0"}
        environment = {**os.environ, **settings}
        command = [sys.executable, "-m", "specrunner", "run", str(folder / "spec.yaml")]
        first = time_command(command, environment)

        def again() -> float:
            return time_command(command, environment)

        def plan() -> float:
            return time_command([*command, "--plan", "--no-cache"], environment)

        time.sleep(3)  # files that were changed a moment ago are read again
        seconds, unit, ratio = compare(again, plan, options.rounds)
        traced = [sys.executable, "-X", "importtime", *command[1:]]
        imports = subprocess.run(traced, env=environment, capture_output=True, text=True, check=True).stderr
    print(f"{options.cases:,} cases")
    print(f"{'first run':<34}{first:>8.2f} s")
    print(f"{'again, nothing changed':<34}{seconds:>8.2f} s  {seconds / first:.4f} of the first")
    print(f"{'reading and planning alone':<34}{unit:>8.2f} s  again is {ratio:.2f} times that")
    imported = any(line.rpartition("|")[2].strip() == "torch" for line in imports.splitlines())
    print(f"torch imported by the second run: {'yes' if imported else 'no'}")


if __name__ == "__main__":
    main()
