"""The one-process mode of SGLang, with stand-ins for what SGLang brings: which notes belong to which request."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from specrunner.engines.sglang.notes import Note, Order
from specrunner.engines.sglang.runner import Runner

DESCRIBED = {"max_total_tokens": 64, "context_length": 64, "eos_token_ids": []}


@pytest.fixture
def extend(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Put stand-ins for SGLang's modules in place; returns what sets how a prompt is run."""
    runs: list[Callable[[], None]] = []

    def run_prompt(_requests: Any, _runner: Any) -> tuple[list[int], None, None]:
        runs[-1]()
        return [7], None, None

    members: dict[str, dict[str, Any]] = {
        "sglang": {},
        "sglang.benchmark": {"one_batch": SimpleNamespace(extend=run_prompt)},
        "sglang.srt": {},
        "sglang.srt.managers": {},
        "sglang.srt.managers.schedule_batch": {"Req": SimpleNamespace},
        "sglang.srt.sampling": {},
        "sglang.srt.sampling.sampling_params": {"SamplingParams": SimpleNamespace},
    }
    for name, values in members.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    return runs.append


@pytest.fixture
def runner() -> Runner:
    """A runner that nothing was loaded into."""
    made = Runner.__new__(Runner)
    pool = SimpleNamespace(clear=lambda: None)
    vars(made).update(
        _order=None,
        _notes=[],
        _runner=SimpleNamespace(req_to_token_pool=pool, token_to_kv_pool_allocator=pool),
        described=DESCRIBED,
    )
    return made


def test_notes_of_a_failed_request_do_not_fall_on_the_next(
    runner: Runner, extend: Callable[[Callable[[], None]], None]
) -> None:
    sound, broken = Note("prompt", {"start": 0}), Note("failure", {"message": "no tensor matches"})

    def fail() -> None:
        runner._notes.append(broken)
        raise RuntimeError("out of memory")

    extend(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        runner.run([1, 2], Order(1, (), 2), 1, True)
    extend(lambda: runner._notes.append(sound))
    assert runner.run([1, 2], Order(2, (), 2), 1, True)[2] == [[sound]]
    assert runner.run([1, 2], Order(3, (), 2), 1, True)[2] == [[sound]]
