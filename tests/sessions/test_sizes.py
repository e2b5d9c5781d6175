"""What a session takes up, and what there is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from specrunner.requests import Session
from specrunner.sessions.sizes import (
    PROCESS_BYTES,
    WEIGHTS_MARGIN,
    count_needed_gpus,
    estimate_memory,
    estimate_need,
    list_gpus,
    measure_available_memory,
)
from specrunner.spec.model import Model


def session(model: Model, dtype: str = "float32", device: str = "cpu", **options: Any) -> Session:
    return Session("hf", "own", model, dtype, device, options)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Return a checkpoint of 3,000 bytes of bfloat16 weights in two shards, with the same once more as a pickle."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"torch_dtype": "bfloat16"}))
    (folder / "model-1.safetensors").write_bytes(b"x" * 1000)
    (folder / "model-2.safetensors").write_bytes(b"x" * 2000)
    (folder / "model.bin").write_bytes(b"x" * 3000)
    return folder


@pytest.mark.parametrize(("dtype", "ratio"), [("bfloat16", 1), ("float32", 2), ("float64", 4)])
def test_weights_count_in_the_dtype_they_are_loaded_in(checkpoint: Path, dtype: str, ratio: int) -> None:
    extra = estimate_memory(session(Model(path=str(checkpoint)), dtype)) - PROCESS_BYTES
    assert extra == int(3000 * ratio * WEIGHTS_MARGIN)


def test_a_checkpoint_of_unknown_dtype_counts_as_it_is(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text("{")
    assert estimate_memory(session(Model(path=str(checkpoint)))) == PROCESS_BYTES + int(3000 * WEIGHTS_MARGIN)


def test_a_hub_model_is_measured_where_it_was_downloaded(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshots = tmp_path / "hub" / "models--org--name" / "snapshots"
    snapshots.mkdir(parents=True)
    (snapshots / "abc").symlink_to(checkpoint)
    there, absent = Model(id="org/name", revision="abc"), Model(id="org/other")
    assert estimate_memory(session(there, "bfloat16")) == PROCESS_BYTES + int(3000 * WEIGHTS_MARGIN)
    assert estimate_memory(session(absent)) == PROCESS_BYTES


def test_a_cache_of_keys_and_values_counts_on_a_cpu() -> None:
    options = {"kv_cache_memory_bytes": 5000}
    assert estimate_memory(session(Model(id="a/b"), **options)) == PROCESS_BYTES + 5000
    assert estimate_memory(session(Model(id="a/b"), device="cuda", **options)) == PROCESS_BYTES


@pytest.mark.parametrize(
    ("options", "gpus"),
    [
        ({}, 1),
        ({"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, 4),
        ({"tp_size": 8}, 8),
        ({"tp_size": "x"}, 1),
    ],
)
def test_gpus_come_from_the_engines_own_options(options: dict[str, Any], gpus: int) -> None:
    on_cuda = session(Model(id="a/b"), device="cuda", **options)
    assert count_needed_gpus(on_cuda) == gpus
    assert estimate_need(on_cuda).gpus == gpus
    assert estimate_need(session(Model(id="a/b"), **options)).gpus == 0


@pytest.mark.parametrize(
    ("stated", "gpus"),
    [("3,5", ("3", "5")), ("", ()), ("-1", ()), ("1,-1,2", ("1",)), (" 2 , GPU-a1-b ", ("2", "GPU-a1-b"))],
)
def test_visible_gpus_are_those_the_caller_states(stated: str, gpus: tuple[str, ...]) -> None:
    assert list_gpus({"CUDA_VISIBLE_DEVICES": stated}) == gpus


def test_without_a_statement_the_machines_gpus_are_counted(tmp_path: Path) -> None:
    assert list_gpus({}, tmp_path) == ()
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia4", "nvidiactl", "nvidia-uvm"):
        (tmp_path / "dev" / name).touch()
    assert list_gpus({}, tmp_path) == ("0", "1")
    (tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0").mkdir(parents=True)
    assert list_gpus({}, tmp_path) == ("0",)


def test_available_memory_is_the_smaller_of_the_machines_and_the_control_groups(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 90 kB\nMemAvailable:   50 kB\n")
    assert measure_available_memory(tmp_path) == 50 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.current").write_text("1000\n")
    (group / "memory.max").write_text("max\n")
    assert measure_available_memory(tmp_path) == 50 * 1024
    (group / "memory.max").write_text("5000\n")
    assert measure_available_memory(tmp_path) == 4000
    assert measure_available_memory(tmp_path / "nowhere") > 1 << 30
