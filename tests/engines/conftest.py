"""Checkpoints for the adapters' tests, built once a test session into a cache of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from specrunner.engines.base import Engine
from specrunner.models.recipes import ensure_model
from specrunner.requests import Session
from specrunner.spec.model import Model

Start = Callable[..., Engine]
Ensure = Callable[[Model], str]


@pytest.fixture(scope="session")
def ensure(tmp_path_factory: pytest.TempPathFactory) -> Ensure:
    """`ensure_model` with a cache of the test session's own; the environment stays as it is for the other tests."""
    folder = tmp_path_factory.mktemp("cache")

    def build(model: Model) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SPECRUNNER_CACHE", str(folder))
            return ensure_model(model)

    return build


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory, ensure: Ensure) -> Iterator[Start]:
    """Load an engine, or return it when an equal session is loaded already."""
    engines: dict[str, Engine] = {}

    def load(kind: type[Engine], recipe: str, dtype: str = "float32", **options: Any) -> Engine:
        model = Model(recipe=recipe, trust_remote_code=recipe == "tiny-llada2")
        session = Session(kind.name, "", model, dtype, "cpu", options)
        if session.key not in engines:
            engines[session.key] = kind(session, ensure(model), tmp_path_factory.mktemp("workspace"))
            engines[session.key].facts = engines[session.key].load()  # type: ignore[attr-defined]
        return engines[session.key]

    yield load
    for engine in engines.values():
        engine.close()
