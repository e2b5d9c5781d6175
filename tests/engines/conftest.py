"""Checkpoints for the adapters' tests, built once a test session into a cache of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from specrunner.engines.base import Engine
from specrunner.models.recipes import ensure_model
from specrunner.plan.model import Session
from specrunner.spec.model import Model

Start = Callable[..., Engine]


@pytest.fixture(scope="session", autouse=True)
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECRUNNER_CACHE", str(folder))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield folder


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> Iterator[Start]:
    """Load an engine, or return it when an equal session is loaded already."""
    engines: dict[str, Engine] = {}

    def load(kind: type[Engine], recipe: str, dtype: str = "float32", **options: Any) -> Engine:
        model = Model(recipe=recipe, trust_remote_code=recipe == "tiny-llada2")
        session = Session(kind.name, "", model, dtype, "cpu", options)
        if session.key not in engines:
            engines[session.key] = kind(session, ensure_model(model), tmp_path_factory.mktemp("workspace"))
            engines[session.key].facts = engines[session.key].load()  # type: ignore[attr-defined]
        return engines[session.key]

    yield load
    for engine in engines.values():
        engine.close()
