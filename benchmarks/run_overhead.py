"""What specrunner adds to the engines' own time: a run against a hand-written script with the same loads and forwards.

    python benchmarks/run_overhead.py [--prompts 24] [--tokens 128] [--rounds 3]

Both load SmolLM2-135M in float32 twice (SDPA and eager attention) with as many threads, and run every prompt through
both. The script keeps the logits in memory and compares nothing. Each is timed with one prompt and with all; the
difference is the time beyond the fixed start-up.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import textwrap
from pathlib import Path

from timing import time_command

SCRIPT = """
import json, sys, torch
from transformers import AutoModelForCausalLM
path, prompts, threads = sys.argv[1], json.load(open(sys.argv[2])), int(sys.argv[3])
torch.set_num_threads(threads)
for attention in ("sdpa", "eager"):
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation=attention).eval()
    with torch.inference_mode():
        kept = [model(torch.tensor([ids]), use_cache=False).logits for ids in prompts]
    del model, kept
"""


def write_inputs(folder: Path, name: str, prompts: list[list[int]], threads: int) -> None:
    """Write the spec and the script's input for the same prompts."""
    (folder / f"{name}.json").write_text(str(prompts))
    cases = "\n".join(f"  - {{name: p{index}, prompt: {{token_ids: {ids}}}}}" for index, ids in enumerate(prompts))
    head = textwrap.dedent(
        f"""\
        version: 1
        model: {{recipe: smollm2-135m}}
        engines: [hf]
        options: {{hf: {{attn_implementation: sdpa, num_threads: {threads}}}}}
        reference: {{engine: hf, dtype: float32, options: {{attn_implementation: eager, num_threads: {threads}}}}}
        defaults: {{tolerance: {{logits: {{allclose: {{rtol: 1.0e-3, atol: 1.0e-2}}}}}}}}
        cases:
        """
    )
    (folder / f"{name}.yaml").write_text(head + cases + "\n")


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    from specrunner.models.recipes import ensure_model
    from specrunner.spec.model import Model

    path = ensure_model(Model(recipe="smollm2-135m"))
    generator = random.Random(0)
    prompts = [[generator.randrange(100, 40000) for _ in range(options.tokens)] for _ in range(options.prompts)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(options.threads)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "bare.py").write_text(SCRIPT)
        write_inputs(folder, "one", prompts[:1], options.threads)
        write_inputs(folder, "all", prompts, options.threads)

        def bare(which: str) -> float:
            arguments = [str(path), str(folder / f"{which}.json"), str(options.threads)]
            return time_command([sys.executable, str(folder / "bare.py"), *arguments], environment)

        def ours(which: str, jobs: int) -> float:
            arguments = ["run", "--no-cache", str(folder / f"{which}.yaml"), "-j", str(jobs)]
            return time_command([sys.executable, "-m", "specrunner", *arguments], environment)

        subjects = {
            "hand-written script": bare,
            "specrunner run -j 1": lambda which: ours(which, 1),
            "specrunner run -j 2": lambda which: ours(which, 2),
        }
        times: dict[tuple[str, str], list[float]] = {}
        for _ in range(options.rounds):
            for which in ("one", "all"):
                for subject, run in subjects.items():
                    times.setdefault((subject, which), []).append(run(which))
    print(
        f"{options.prompts} prompts of {options.tokens} tokens, 2 loads, {options.threads} thread(s) a load; medians, s"
    )
    print(f"{'':<22}{'start-up':>10}{'all':>8}{'beyond start-up':>17}{'ratio beyond':>14}{'ratio all':>11}")
    base: dict[str, float] = {}
    for subject in subjects:
        fixed = statistics.median(times[subject, "one"])
        whole = statistics.median(times[subject, "all"])
        base = base or {"beyond": whole - fixed, "whole": whole}
        beyond = whole - fixed
        print(
            f"{subject:<22}{fixed:>10.1f}{whole:>8.1f}{beyond:>17.1f}"
            f"{beyond / base['beyond']:>14.2f}{whole / base['whole']:>11.2f}"
        )


if __name__ == "__main__":
    main()
