"""A pair of any size is compared in a bounded amount of memory beyond the mapped files."""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.commands import find_server, start_process

MEGABYTE = 1 << 20


def read_status(name: str) -> int:
    """Return a number of bytes that the kernel keeps of this process; a forked one begins at what it has."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def measure(how: str, paths: tuple[Path, ...], told: Connection) -> None:
    """Compare in a process of its own, and tell by how many bytes it grew at most."""
    from specrunner.checks.sources import open_tensors
    from specrunner.checks.tensors import compare_tensors
    from specrunner.spec.model import Rule

    candidate, reference, *peer = (open_tensors(path)["x"] for path in paths)
    rules = [
        Rule("allclose", {"rtol": 1e-4, "atol": 1e-5, "outliers": 0.0}),
        Rule("ulp", {"max": 1 << 40, "over_one": 1.0}),
        Rule("cosine", {"min": 0.999}),
        Rule("sqnr", {"min": 40.0}),
        Rule("kl", {"mean": 1e-3, "p99": 1e-2}),
        Rule("top_k", {"k": 3, "overlap": 0.5}),
    ]
    if peer:
        rules.append(Rule("noise_floor", {"k": 3.0}))
    before = read_status("VmRSS")
    if how == "pieces":
        results = compare_tensors("x", candidate, reference, rules, peer=peer[0] if peer else None)
        assert all(result.passed for result in results), [result.message for result in results]
    else:
        whole = [source.rows(0, source.row_count) for source in (candidate, reference)]
        torch.testing.assert_close(*whole, rtol=1e-4, atol=1e-5)
    told.send(read_status("VmHWM") - before)


def write(path: Path, shape: tuple[int, int], noise: float) -> Path:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if noise:
        values += values.roll(1, -1) * noise
    save_file({"x": values}, path)
    return path


def grow(how: str, *paths: Path) -> int:
    """Return by how many bytes a process grew at most beyond the mapped files while comparing."""
    receiver, sender = find_server().Pipe(duplex=False)
    process = start_process(measure, how, paths, sender)
    sender.close()
    with receiver:
        process.join()
        assert process.exitcode == 0
        grown: int = receiver.recv()
    return grown - sum(path.stat().st_size for path in paths)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(4096, 2048), (1, 1 << 23), (1 << 20, 8)])
def test_a_triple_of_32_mb_needs_little_beyond_it(tmp_path: Path, shape: tuple[int, int]) -> None:
    paths = [write(tmp_path / f"{number}.safetensors", shape, number * 1e-6) for number in (2, 0, 1)]
    assert grow("pieces", *paths) < 24 * MEGABYTE


@pytest.mark.slow
def test_the_same_measurement_sees_a_comparison_of_whole_tensors(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{number}.safetensors", (4096, 2048), number * 1e-6) for number in (1, 0)]
    assert grow("whole", *paths) > 30 * MEGABYTE


@pytest.mark.slow
def test_a_pair_of_a_gigabyte_needs_at_most_256_mb_beyond_it(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{number}.safetensors", (65_536, 4096), number * 1e-6) for number in (1, 0)]
    assert paths[0].stat().st_size > 1 << 30
    assert grow("pieces", *paths) < 256 * MEGABYTE
