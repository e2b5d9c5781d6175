"""What a benchmark's kept answers come from counts as what captures come from does, from before the engine's load."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from specrunner.cache import stamps
from specrunner.cache.watch import watch_sources
from specrunner.sessions.answers import Tell
from specrunner.spec.model import Model
from tests.cache.test_stamps import Laboratory


@pytest.fixture
def laboratory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Laboratory:
    monkeypatch.setenv("SPECRUNNER_CACHE", str(tmp_path / "cache"))
    laboratory = Laboratory(tmp_path / "laboratory")
    laboratory.write(laboratory.folder / "patched" / "plugin.py", "1")
    laboratory.environment = replace(laboratory.environment, env={"PYTHONPATH": str(laboratory.folder / "patched")})
    return laboratory


def watch(laboratory: Laboratory) -> Tell:
    return watch_sources(laboratory.session, laboratory.environment, laboratory.threads)


def state(laboratory: Laboratory, variable: str) -> None:
    laboratory.environment = replace(laboratory.environment, env={**laboratory.environment.env, variable: "1"})


CHANGES: dict[str, Callable[[Laboratory], None]] = {
    "a weight": lambda lab: lab.write(lab.model / "model.safetensors", "weightz"),
    "a plugin on PYTHONPATH": lambda lab: lab.write(lab.folder / "patched" / "plugin.py", "2"),
    "an editable source": lambda lab: lab.write(lab.source / "engine" / "attention.py", "sigmoid"),
    "a package that is built again": lambda lab: lab.write(
        lab.site / "plugin-1.dist-info" / "RECORD", "a,sha256=b,7\n"
    ),
    **{
        variable: lambda lab, variable=variable: state(lab, variable)
        for variable in ("VLLM_ATTENTION_BACKEND", "SGLANG_X", "ATEN_CPU_CAPABILITY", "NVIDIA_TF32_OVERRIDE")
    },
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_changes_the_answers_has_another_stamp(laboratory: Laboratory, what: str) -> None:
    before = watch(laboratory)()
    assert before == laboratory.stamp().key == watch(laboratory)()
    CHANGES[what](laboratory)
    after = watch(laboratory)()
    assert after is not None and after != before


def test_code_that_is_saved_while_the_engine_loads_leaves_no_stamp(laboratory: Laboratory) -> None:
    tell = watch(laboratory)
    laboratory.write(laboratory.source / "engine" / "attention.py", "sigmoid")
    assert tell() is None, "nobody knows which of the two answers"
    assert watch(laboratory)() is not None


def test_a_model_that_the_load_fetches_is_found_again(laboratory: Laboratory) -> None:
    laboratory.session = replace(laboratory.session, model=Model(path=str(laboratory.folder / "later")))
    tell = watch(laboratory)
    assert tell() is None
    laboratory.write(laboratory.folder / "later" / "config.json", "{}")
    assert tell() == watch(laboratory)() is not None


def test_a_gpu_of_a_kind_that_cannot_be_told_leaves_no_stamp(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stamps, "describe_gpus", lambda: ())
    laboratory.session = replace(laboratory.session, device="cuda")
    assert watch(laboratory)() is None


def test_the_name_maps_that_a_session_is_given_count(laboratory: Laboratory) -> None:
    """A node of a cluster unpacks the caller's."""
    folder = laboratory.folder / "maps"
    laboratory.write(folder / "hf" / "own.yaml", "one map")
    laboratory.environment = replace(laboratory.environment, env={"SPECRUNNER_NAME_MAPS": str(folder)})
    before = watch(laboratory)()
    laboratory.write(folder / "hf" / "own.yaml", "another map")
    assert before is not None and watch(laboratory)() not in (None, before)
