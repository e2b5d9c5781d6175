"""Want of memory is the same error, whoever sees it first: a worker, or one of the adapters."""

from __future__ import annotations

from pathlib import Path

import pytest

from specrunner.engines.hf.checkpoint import explain_error
from specrunner.engines.sglang import failures as sglang
from specrunner.engines.vllm import failures as vllm
from specrunner.errors import EngineOutOfMemory
from specrunner.sessions.worker import describe_error

OutOfMemoryError = type("OutOfMemoryError", (RuntimeError,), {})


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OutOfMemoryError("tried to allocate 9.99 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried ..."),
        RuntimeError("Not enough memory. Please try to increase --mem-fraction-static"),
        ValueError("Free memory on device is less than requested memory"),
    ],
    ids=repr,
)
def test_want_of_memory_is_recognised_by_all(error: Exception, tmp_path: Path) -> None:
    told = describe_error(error)
    assert (told["kind"], told["fatal"]) == (EngineOutOfMemory.kind, True)
    explained = [
        explain_error("load it", error),
        sglang.explain_failure("load it", type(error).__name__, str(error)),
        vllm.explain_failure("load it", error, tmp_path / "log"),
    ]
    assert [type(one) for one in explained] == [EngineOutOfMemory] * 3


def test_other_errors_are_none_of_memory(tmp_path: Path) -> None:
    error = RuntimeError("illegal memory access")
    assert not describe_error(error)["fatal"]
    assert not isinstance(explain_error("load it", error), EngineOutOfMemory)
    assert not isinstance(sglang.explain_failure("load it", "RuntimeError", str(error)), EngineOutOfMemory)
    assert not isinstance(vllm.explain_failure("load it", error, tmp_path / "log"), EngineOutOfMemory)
