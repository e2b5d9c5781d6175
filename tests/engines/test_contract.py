"""A plugin whose methods return something else than they must is named, with what it returned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from specrunner.engines.base import Capabilities, Capture, Engine
from specrunner.errors import EngineError
from specrunner.requests import Request, Session
from specrunner.sessions.worker import load_engine
from specrunner.spec.model import Model, Prompt

REQUEST = Request(Prompt(token_ids=(1, 2)))


class LooseEngine(Engine):
    """Returns what it was told to."""

    name = "loose"
    returned: Any = None

    @classmethod
    def capabilities(cls) -> Capabilities:
        return Capabilities(dtypes={"cpu": ("float32",)})

    def load(self) -> dict[str, Any]:
        return self.returned

    def capture(self, request: Request) -> Capture:
        return self.returned

    def capture_led(self, request: Request, reference: Any, *, routing: bool) -> Capture:
        return self.returned


def start(returned: Any, tmp_path: Path) -> Engine:
    session = Session("loose", "none", Model(path="model"), "float32", "cpu")
    message = {
        "engine": f"{__name__}:LooseEngine",
        "session": session.to_json(),
        "model_path": str(tmp_path),
        "workspace": str(tmp_path),
    }
    engine = load_engine(message)
    engine.returned = returned  # type: ignore[attr-defined]
    return engine


@pytest.mark.parametrize(
    ("returned", "said"),
    [(None, "None"), ({"logits": []}, "a value of the type dict"), ([1], "a value of the type list")],
)
def test_a_capture_that_is_none_is_named(tmp_path: Path, returned: Any, said: str) -> None:
    engine = start(returned, tmp_path)
    for method, call in (
        ("capture", lambda: engine.capture(REQUEST)),
        ("capture_led", lambda: engine.capture_led(REQUEST, {}, routing=False)),
        ("capture", lambda: engine.read_logits([1, 2])),
    ):
        with pytest.raises(EngineError) as caught:
            call()
        assert caught.value.message.startswith("engine `loose` (")
        assert caught.value.message.endswith(f":LooseEngine) returned {said} from `{method}`")
        assert f"`{method}` must return a specrunner.Capture" in (caught.value.help or "")


def test_facts_that_are_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"LooseEngine\) returned None from `load`") as caught:
        start(None, tmp_path).load()
    assert "a dict, the session's facts" in (caught.value.help or "")


def test_what_keeps_the_contract_is_left_alone(tmp_path: Path) -> None:
    capture = Capture([1, 2])
    assert start(capture, tmp_path).capture(REQUEST) is capture
    facts: dict[str, Any] = {"versions": {}}
    assert start(facts, tmp_path).load() is facts
