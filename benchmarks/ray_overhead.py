"""What Ray costs: the same run on this machine alone, on a cluster of one node, and on one of two nodes.

    python benchmarks/ray_overhead.py [--cases 10,100] [--rounds 3]

All three have the machine's cores and two sessions side by side: two on this machine (`-j 2`), two on a node of two
cores, one on each of two nodes of one core. Both clusters run here, each with its own raylets, and are up before
anything is timed; what a run adds is joining the cluster, starting actors, and bringing captures back through the
object store. All take turns; wall time, since the engines' processes are the cluster's and not the command's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

from timing import time_command

STORE = 200_000_000
"""Bytes of each node's object store."""

HEAD = """\
version: 1
model: {recipe: glass-0.8m}
dtype: float32
device: cpu
engines: [hf]
options: {hf: {num_threads: 1}}
reference: {engine: hf, dtype: float32, options: {attn_implementation: eager, num_threads: 1}}
defaults: {tolerance: {"layers.*.output": {sqnr: 80}, logits: {sqnr: 80}}}
cases:
"""


def write_spec(path: Path, cases: int) -> None:
    """Write `cases` cases of 64 tokens."""
    lines = [
        f"  - {{name: c{index}, prompt: {{token_ids: {[(index + 7 * place) % 1000 for place in range(64)]}}}}}\n"
        for index in range(cases)
    ]
    path.write_text(HEAD + "".join(lines), encoding="utf-8")


def start_cluster(nodes: int, cores: int):  # type: ignore[no-untyped-def]
    """Start a cluster on this machine."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cores, "object_store_memory": STORE})
    for _ in range(nodes - 1):
        cluster.add_node(num_cpus=cores, object_store_memory=STORE)
    return cluster


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="10,100", help="sizes (default 10,100)")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    try:
        import ray  # noqa: F401
    except ImportError:
        print("ray is not installed: pip install 'specrunner[ray]'")
        return
    os.environ |= {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "HF_HUB_OFFLINE": "1"}
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    shapes = {"one node": (1, 2), "two nodes": (2, 1)}
    print(f"glass-0.8m on Transformers, SDPA against eager attention; medians of {options.rounds}, wall seconds")
    print(f"{'cases':>6}{'local':>9}" + "".join(f"{shape:>12}{'ratio':>8}" for shape in shapes))
    sizes = [int(size) for size in options.cases.split(",")]
    times: dict[tuple[str, int], list[float]] = {}
    ratios: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        spec = Path(name) / "spec.yaml"
        command = [sys.executable, "-m", "specrunner", "run", str(spec), "--no-cache", "--strict", "-j", "2"]
        for shape, (nodes, cores) in shapes.items():
            cluster = start_cluster(nodes, cores)
            try:
                on_ray = [*command, "--executor", "ray", "--ray-address", cluster.address]
                write_spec(spec, min(sizes))
                time_command(on_ray), time_command(command)
                for _ in range(options.rounds):
                    for size in sizes:
                        write_spec(spec, size)
                        there, here = time_command(on_ray), time_command(command)
                        times.setdefault((shape, size), []).append(there)
                        times.setdefault(("local", size), []).append(here)
                        ratios.setdefault((shape, size), []).append(there / here)
            finally:
                cluster.shutdown()
    for size in sizes:
        line = f"{size:>6}{statistics.median(times['local', size]):>9.1f}"
        for shape in shapes:
            line += f"{statistics.median(times[shape, size]):>12.1f}{statistics.median(ratios[shape, size]):>8.2f}"
        print(line)


if __name__ == "__main__":
    main()
