"""Askers that share a folder: one keeps the process, the others read along, and one takes over when it goes away."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from specrunner.testing.verdicts import Verdicts


@pytest.fixture
def ask(place: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make an asker for cases of one spec, in a folder that all askers share."""
    place.write("a.yaml", "name: one, prompt: a", "name: stuck, prompt: hang", "name: last, prompt: b")
    monkeypatch.chdir(place.folder)
    for name, value in place.environment.items():
        monkeypatch.setenv(name, value)
    shared = tmp_path / "shared"
    shared.mkdir()
    return lambda *names: Verdicts(shared, ["a.yaml"], [node_id(name) for name in names], {})


def node_id(name: str) -> str:
    return f"a.yaml::{name}[engine=misbehaving]"


@pytest.mark.slow
def test_one_takes_over_when_the_keeper_goes_away(place: Any, ask: Any, tmp_path: Path) -> None:
    keeper, other = ask("one", "stuck"), ask("one", "last")
    assert keeper.wait_for(node_id("one")).verdict == "passed"
    found: list[str] = []
    waiting = threading.Thread(target=lambda: found.append(other.wait_for(node_id("one")).verdict))
    waiting.start()
    waiting.join(30)
    assert found == ["passed"]
    assert len(place.loads.read_text().splitlines()) <= 2, "the other one started nothing"
    keeper.close(finish=False)
    with (tmp_path / "shared" / "verdicts.jsonl").open("a") as stream:
        stream.write('{"node_id": "a.yaml::last[eng')  # what a killed process leaves
    assert other.wait_for(node_id("last")).verdict == "passed"
    assert other.complete
    other.close(finish=True)
