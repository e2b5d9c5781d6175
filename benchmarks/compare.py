"""What comparing costs: one pass with every measurement, against assert_close, Polygraphy and plain torch.

    python benchmarks/compare.py [--gigabytes 0.01,0.1,1] [--repeat 3] [--threads 1]

Writes a float32 pair of each size (each tensor) to a temporary directory. Every contender runs in a process of its own
on the mapped files, `--repeat` times, all contenders in turn; small pairs are compared several times in one process.
The table gives the best wall and CPU time of one comparison, each with its ratio to our pass, the throughput (bytes of
both tensors by CPU second), and the most private memory beyond the mapped files. Two contenders are bounds: reading
both tensors once, and the shortest expression of torch that compares anything, `(a - r).abs().max()`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WIDTH = 4096
ENOUGH = 2**27
"""Bytes of each tensor that one process compares at least."""
CONTENDERS = {
    "one pass, all measurements": "ours",
    "one pass, with kl and top-10": "ours_vocabulary",
    "torch.testing.assert_close": "assert_close",
    "polygraphy CompareFunc.simple": "polygraphy",
    "torch (a - r).abs().max()": "difference",
    "torch read both": "read",
}


def write_pair(directory: Path, gigabytes: float) -> None:
    """Write `a` and `r` [rows, 4096], apart by noise of one part in a million."""
    import torch
    from safetensors.torch import save_file

    rows = int(gigabytes * 2**30 / 4 / WIDTH)
    generator = torch.Generator().manual_seed(0)
    reference = torch.empty(rows, WIDTH)
    for start in range(0, rows, 4096):
        reference[start : start + 4096].normal_(generator=generator)
    save_file({"x": reference}, directory / "r.safetensors")
    for start in range(0, rows, 4096):
        part = reference[start : start + 4096]
        part += part * torch.randn(part.shape, generator=generator) * 1e-6
    save_file({"x": reference}, directory / "a.safetensors")


def private_memory() -> int:
    """Return this process's resident memory that is not file pages, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise OSError("no RssAnon in /proc/self/status")


class PeakMemory:
    """Samples the private memory from a thread, since the kernel's own peak counts mapped file pages too."""

    def __enter__(self) -> PeakMemory:
        import threading

        self.start = self.peak = private_memory()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.peak = max(self.peak, private_memory())

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.peak = max(self.peak, private_memory())


def run_contender(name: str, directory: Path, threads: int) -> dict[str, float]:
    """Compare the pair once, in this process."""
    import torch
    from safetensors import safe_open

    torch.set_num_threads(threads)
    with safe_open(directory / "a.safetensors", "pt") as a, safe_open(directory / "r.safetensors", "pt") as r:
        candidate, reference = a.get_tensor("x"), r.get_tensor("x")
    # Both files are touched first, so that nobody pays for the disk.
    float(candidate.sum() + reference.sum())
    compare = globals()[f"compare_{name}"]
    compare(candidate[:64], reference[:64])  # what is imported and made on the first call
    times = max(1, round(ENOUGH / (candidate.numel() * 4)))
    with PeakMemory() as memory:
        started, busy = time.perf_counter(), time.process_time()
        for _ in range(times):
            compare(candidate, reference)
        seconds, busy = time.perf_counter() - started, time.process_time() - busy
    return {"seconds": seconds / times, "cpu": busy / times, "bytes": memory.peak - memory.start}


def compare_ours(candidate, reference, extra=()):  # type: ignore[no-untyped-def]
    from specrunner.checks.sources import MemorySource
    from specrunner.checks.tensors import compare_tensors
    from specrunner.spec.model import Rule

    rules = [
        Rule("allclose", {"rtol": 1e-4, "atol": 1e-5, "outliers": 0.0}),
        Rule("ulp", {"max": 1000, "over_one": 1.0}),
        Rule("cosine", {"min": 0.999}),
        Rule("sqnr", {"min": 40.0}),
        *extra,
    ]
    results = compare_tensors("x", MemorySource("x", candidate), MemorySource("x", reference), rules)
    assert all(result.passed for result in results), results


def compare_ours_vocabulary(candidate, reference):  # type: ignore[no-untyped-def]
    from specrunner.spec.model import Rule

    extra = (Rule("kl", {"mean": 1e-3, "p99": 1e-2}), Rule("top_k", {"k": 10, "overlap": 0.9}))
    compare_ours(candidate, reference, extra)


def compare_assert_close(candidate, reference):  # type: ignore[no-untyped-def]
    import torch

    torch.testing.assert_close(candidate, reference, rtol=1e-4, atol=1e-5)


def compare_difference(candidate, reference):  # type: ignore[no-untyped-def]
    assert float((candidate - reference).abs().max()) < 1e-3


def compare_read(candidate, reference):  # type: ignore[no-untyped-def]
    assert float(candidate.sum()) != float(reference.abs().sum())


def compare_polygraphy(candidate, reference):  # type: ignore[no-untyped-def]
    from polygraphy.comparator import CompareFunc, IterationResult

    results = [IterationResult({"x": tensor.numpy()}, runner_name="r") for tensor in (candidate, reference)]
    verdict = CompareFunc.simple(rtol=1e-4, atol=1e-5, check_error_stat="max")(*results)
    assert all(bool(value) for value in verdict.values())


def main() -> None:
    """Run every contender in turn at every size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", default="0.01,0.1,1", help="of each tensor (default 0.01,0.1,1)")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--without", action="append", default=[], choices=CONTENDERS.values(), help="leave one out")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(run_contender(arguments.contender, arguments.directory, arguments.threads)))
        return
    chosen = {label: name for label, name in CONTENDERS.items() if name not in arguments.without}
    print(f"float32 pairs, {arguments.threads} thread(s), best of {arguments.repeat}")
    print(f"{'GB':>6}  {'':30}{'seconds':>9}{'ratio':>7}{'cpu s':>9}{'ratio':>7}{'GB/s':>7}{'extra MB':>10}")
    for gigabytes in map(float, arguments.gigabytes.split(",")):
        with tempfile.TemporaryDirectory() as temporary:
            directory = Path(temporary)
            write_pair(directory, gigabytes)
            best = find_best(chosen, directory, arguments.repeat, arguments.threads)
        ours = best["one pass, all measurements"]
        for label, found in best.items():
            seconds, cpu = found["seconds"], found["cpu"]
            columns = f"{seconds:9.3f}{seconds / ours['seconds']:7.2f}{cpu:9.3f}{cpu / ours['cpu']:7.2f}"
            print(f"{gigabytes:>6g}  {label:30}{columns}{2 * gigabytes / cpu:7.2f}{found['bytes'] / 2**20:10.0f}")


def find_best(chosen: dict[str, str], directory: Path, repeat: int, threads: int) -> dict[str, dict[str, float]]:
    """Run the contenders in turn; return by label the smallest times and the most memory of each."""
    best: dict[str, dict[str, float]] = {}
    for _ in range(repeat):
        for label, name in chosen.items():
            found = run_in_process(name, directory, threads)
            if found is not None:
                print(f"{name}: {found['seconds']:.3f} s", file=sys.stderr, flush=True)
                kept = best.setdefault(label, found)
                for clock in ("seconds", "cpu"):
                    kept[clock] = min(kept[clock], found[clock])
                kept["bytes"] = max(kept["bytes"], found["bytes"])
    return best


def run_in_process(name: str, directory: Path, threads: int) -> dict[str, float] | None:
    """Run one contender in a process of its own; None when its package is not installed."""
    command = [sys.executable, __file__, "--contender", name, "--directory", str(directory), "--threads", str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if "No module named 'polygraphy'" in done.stderr:
        return None
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
