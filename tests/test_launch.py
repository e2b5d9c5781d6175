"""What a run takes from its settings, whoever starts it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from specrunner.cache.store import kept_folder
from specrunner.config import COMMAND_LINE, Settings
from specrunner.launch import apply_timeout, join_cluster, make_options
from specrunner.sessions.ray import cluster
from tests.reporters.builders import make_case

STATED = Settings(
    jobs=3, strict=True, retries=2, max_fail=4, executor="local", no_cache=False, cache_limit=2.5, timeout=9.0
)


def test_every_setting_of_a_run_reaches_its_options() -> None:
    options = make_options(STATED, ("specrunner", "run"))
    assert (options.jobs, options.strict, options.retries, options.max_fail) == (3, True, 2, 4)
    assert (options.command, options.executor, options.keep_answers) == (("specrunner", "run"), "local", True)
    assert options.share_imports and not make_options(replace(STATED, no_fork=True)).share_imports
    assert options.cache is not None
    assert (options.cache.folder, options.cache.most_bytes) == (kept_folder(), 2.5e9)


def test_without_a_cache_no_answer_is_kept_either() -> None:
    options = make_options(replace(STATED, no_cache=True))
    assert options.cache is None and not options.keep_answers


def test_goldens_are_made_anew() -> None:
    options = make_options(STATED, update_goldens=True)
    assert options.update_goldens and options.cache is None and options.keep_answers


def test_ray_serves_without_a_cache() -> None:
    options = make_options(replace(STATED, executor="ray"))
    assert options.executor == "ray" and options.cache is None


@pytest.mark.parametrize(
    "origin, seconds",
    [(COMMAND_LINE, 9.0), ("SPECRUNNER_TIMEOUT", 9.0), ("[tool.specrunner] in pyproject.toml", 60.0), (None, 60.0)],
)
def test_a_timeout_stands_above_cases_where_it_was_stated_for_this_run(origin: str | None, seconds: float) -> None:
    settings = replace(STATED, origins={} if origin is None else {"timeout": origin})
    [case] = apply_timeout([replace(make_case(), timeout=60.0)], settings)
    assert case.timeout == seconds


def test_a_cluster_is_joined_where_ray_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[Any] = []
    monkeypatch.setattr(cluster, "connect", joined.append)
    join_cluster(replace(STATED, ray_address="10.0.0.1:6379"))
    assert joined == []
    join_cluster(replace(STATED, executor="ray", ray_address="10.0.0.1:6379"))
    assert joined == ["10.0.0.1:6379"]
