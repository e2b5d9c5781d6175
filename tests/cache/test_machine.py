"""What a key holds of the machine: kinds of processors and GPUs, and nothing of the very one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from specrunner.cache import machine
from specrunner.cache.machine import ask_driver, describe_gpus, describe_hardware

INFORMATION = "Model: \t\t {model}\nIRQ:   \t\t {irq}\nGPU UUID: \t GPU-{irq}\nVideo BIOS: \t {bios}\n"


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    ask_driver.cache_clear()
    yield
    ask_driver.cache_clear()


def put_driver(root: Path, *models: str, irq: int = 7, bios: str = "96.00", version: str = "550.54.15") -> Path:
    for number, model in enumerate(models):
        folder = root / "proc/driver/nvidia/gpus" / f"0000:0{number}:00.0"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "information").write_text(INFORMATION.format(model=model, irq=irq + number, bios=bios))
    (root / "proc/driver/nvidia").mkdir(parents=True, exist_ok=True)
    (root / "proc/driver/nvidia/version").write_text(f"NVRM version: Module {version}\nGCC version: gcc {irq}\n")
    return root


def put_program(folder: Path, script: str) -> str:
    folder.mkdir()
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)
    return str(folder)


def test_gpus_are_named_with_their_driver(tmp_path: Path) -> None:
    assert describe_gpus(put_driver(tmp_path, "H200", "L4")) == (
        "NVRM version: Module 550.54.15",
        "Model: \t\t H200",
        "Model: \t\t L4",
    )


def test_machines_of_one_kind_are_alike_and_others_are_not(tmp_path: Path) -> None:
    def describe(name: str, *models: str, **changes: object) -> tuple[str, ...]:
        return describe_gpus(put_driver(tmp_path / name, *models, **changes))  # type: ignore[arg-type]

    one = describe("one", "H200")
    assert one == describe("another one", "H200", irq=90)
    assert one == describe("asleep", "H200", bios="??.??"), "a GPU that nothing has used yet says less of itself"
    others = {describe("L4", "L4"), describe("two", "H200", "H200"), describe("driver", "H200", version="560.1")}
    assert len({one, *others}) == 4


def test_where_the_drivers_files_are_not_shown_its_program_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = tmp_path / "count"
    script = f'echo "$@" >> {count}; echo "550.54.15, NVIDIA H200"'
    monkeypatch.setenv("PATH", os.pathsep.join((put_program(tmp_path / "bin", script), os.environ["PATH"])))
    for _ in range(2):
        assert describe_gpus(tmp_path / "nothing") == ("550.54.15, NVIDIA H200",)
    assert count.read_text() == "--query-gpu=driver_version,name --format=csv,noheader\n"


@pytest.mark.parametrize("files", ["none", "no GPU"])
@pytest.mark.parametrize("program", [None, "echo NVIDIA-SMI has failed; exit 9"])
def test_what_cannot_be_told_is_not_guessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: str, program: str | None
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path) if program is None else put_program(tmp_path / "bin", program))
    assert describe_gpus(put_driver(tmp_path) if files == "no GPU" else tmp_path) == ()


def test_gpus_count_where_one_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "describe_gpus", lambda: ("driver", "H200"))
    before = {device: describe_hardware(device) for device in ("cpu", "cuda")}
    assert describe_hardware("cuda") == before["cuda"] != before["cpu"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    assert describe_hardware("cuda") != before["cuda"]
    monkeypatch.setattr(machine, "describe_gpus", lambda: ("driver", "L4"))
    assert describe_hardware("cpu") == before["cpu"]
    assert describe_hardware("cuda")[:-1] != before["cuda"][:-1]
