"""What a case requires of the machine: each requirement at its boundary, and what would meet it."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from specrunner import devices
from specrunner.catalogue.extras import install_command
from specrunner.catalogue.recipes import find_recipe
from specrunner.devices import has_cuda, memory_gb, resolve_device
from specrunner.engines.base import Capabilities
from specrunner.errors import CapabilityMissing
from specrunner.plan import build
from specrunner.plan.build import (
    check_benchmark,
    check_recipe,
    check_requirements,
    check_revision,
    has_package,
    resolve_session_device,
)
from specrunner.spec.model import Benchmark, EngineChoice, Evaluation, Model


def test_memory_that_is_just_enough_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "memory_gb", lambda: 24.0)
    check_requirements({"memory_gb": 24.0})
    check_requirements({"memory_gb": 24})
    with pytest.raises(CapabilityMissing) as caught:
        check_requirements({"memory_gb": 24.5})
    assert caught.value.message == "requires 24.5 GB of memory, this machine has 24 GB"


def test_a_device_that_is_there_is_met(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "has_cuda", lambda: True)
    check_requirements({"device": "cuda"})
    monkeypatch.setattr(build, "has_cuda", lambda: False)
    check_requirements({"device": "cpu"})
    check_requirements({})
    with pytest.raises(CapabilityMissing, match="requires a CUDA device") as caught:
        check_requirements({"device": "cuda"})
    assert "NVIDIA" in str(caught.value.help)


def test_every_package_is_looked_for() -> None:
    check_requirements({"packages": ("json", "os")})
    with pytest.raises(CapabilityMissing, match="requires the package no_such_thing") as caught:
        check_requirements({"packages": ("json", "no_such_thing")})
    assert caught.value.help == "pip install no_such_thing"


def test_packages_are_found_without_being_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("outer_pkg", "outer_pkg/inner", "outer_pkg/inner/core"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "plain_module.py").write_text("raise RuntimeError('imported')")
    for name in ("outer_pkg", "outer_pkg.inner", "outer_pkg.inner.core", "plain_module", "json.decoder"):
        assert has_package(name), name
    absent = ("no_such", "no_such.inner", "outer_pkg.core", "outer_pkg.inner.none", "plain_module.x", "outer_pkg.")
    for name in (*absent, "outer_pkg.inner.core.x.y", "outer_pkg..core"):
        assert not has_package(name), name
    assert "outer_pkg" not in sys.modules


def test_a_module_without_a_spec_is_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bare:
        __spec__ = None

    monkeypatch.setitem(sys.modules, "bare_module", Bare())  # type: ignore[arg-type]
    assert not has_package("bare_module")


@pytest.mark.parametrize(
    ("missing", "built", "message"),
    [
        (["a"], False, "the checkpoint nowhere needs the package a"),
        (["a", "b"], False, "the checkpoint nowhere needs the packages a, b"),
        (["a"], True, ""),
        ([], False, ""),
    ],
)
def test_a_recipe_is_built_already_or_can_be(
    missing: list[str], built: bool, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(find_recipe("glass-0.8m"), name="nowhere", unlisted="it")
    monkeypatch.setattr(type(recipe), "missing_packages", lambda self: missing)
    monkeypatch.setattr(build, "find_recipe", lambda name: recipe)
    monkeypatch.setattr(build, "find_built", lambda recipe: Path("here") if built else None)
    check_recipe.cache_clear()
    try:
        if not message:
            check_recipe(Model(recipe="nowhere"))
            return
        with pytest.raises(CapabilityMissing) as caught:
            check_recipe(Model(recipe="nowhere"))
        assert (caught.value.message, caught.value.help) == (
            message,
            f"{install_command('hf')} && pip install --no-deps it",
        )
    finally:
        check_recipe.cache_clear()


def test_a_revision_that_the_environment_should_give() -> None:
    check_revision(Model(id="a/b", revision="c" * 40))
    check_revision(Model(id="a/b"))
    with pytest.raises(CapabilityMissing, match="the revision of a/b is not given") as caught:
        check_revision(Model(id="a/b", revision="$COMMIT"))
    assert str(caught.value.help).startswith("set COMMIT to")


@pytest.mark.parametrize(
    ("changes", "own_data"), [({}, False), ({"file": "/x.jsonl"}, True), ({"hub": True}, True)], ids=str
)
def test_the_data_package_is_needed_where_the_spec_brings_no_data(
    changes: dict[str, Any], own_data: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def find_missing(own_data: bool) -> list[str]:
        asked.append(own_data)
        return ["lm-eval", "data"]

    monkeypatch.setattr(build, "find_missing_packages", find_missing)
    with pytest.raises(CapabilityMissing, match="benchmarks need lm-eval and data beside specrunner"):
        check_benchmark(Benchmark(Evaluation(("mmlu",), **changes), "absolute"))
    assert asked == [own_data]
    check_benchmark(None)


BOTH = Capabilities(dtypes={"cpu": ("float32",), "cuda": ("float32", "float16")})
CPU = Capabilities(dtypes={"cpu": ("float32",)})


@pytest.mark.parametrize(
    ("device", "dtype", "capabilities", "cuda", "found"),
    [
        ("auto", "float32", BOTH, True, "cuda"),
        ("auto", "float32", BOTH, False, "cpu"),
        ("auto", "float32", CPU, True, "cpu"),
        ("auto", "float16", BOTH, True, "cuda"),
        ("auto", "float16", BOTH, False, "hf does not compute in float16 on cpu"),
        ("cpu", "float32", BOTH, True, "cpu"),
        ("cpu", "float16", BOTH, True, "hf does not compute in float16 on cpu"),
        ("cuda", "float32", BOTH, True, "cuda"),
        ("cuda", "float32", BOTH, False, "no CUDA device on this machine"),
        ("cuda", "float32", CPU, True, "hf does not compute in float32 on cuda"),
    ],
)
def test_the_device_of_a_session(
    device: str, dtype: str, capabilities: Capabilities, cuda: bool, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "has_cuda", lambda: cuda)
    monkeypatch.setattr(devices, "has_cuda", lambda: cuda)
    choice = EngineChoice("hf", dtype, device)
    if found in ("cpu", "cuda"):
        assert resolve_session_device(choice, capabilities) == found
        return
    with pytest.raises(CapabilityMissing) as caught:
        resolve_session_device(choice, capabilities)
    assert caught.value.message == found


@pytest.mark.parametrize("cuda", [True, False])
def test_only_auto_is_resolved(cuda: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "has_cuda", lambda: cuda)
    assert resolve_device("auto") == ("cuda" if cuda else "cpu")
    assert [resolve_device(name) for name in ("cpu", "cuda", "xpu", "abc")] == ["cpu", "cuda", "xpu", "abc"]


@pytest.mark.parametrize("there", [(), ("/proc/driver/nvidia/version",), ("/dev/nvidiactl",)])
@pytest.mark.parametrize("visible", [None, "0,1", " ", "", "-1", "none"])
def test_cuda_needs_a_driver_and_a_gpu_that_is_visible(
    there: tuple[str, ...], visible: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "exists", lambda self: str(self) in there)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    has_cuda.cache_clear()
    try:
        found = has_cuda()
    finally:
        has_cuda.cache_clear()
    assert found == (bool(there) and visible in (None, "0,1"))


def test_memory_is_told_in_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"SC_PHYS_PAGES": 6_000_000, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
    assert memory_gb() == pytest.approx(24.576)
