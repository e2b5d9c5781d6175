"""Two runs at once on one cache and one report: both are right, and the report is the whole report of one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.faults.keeping import check_cache
from tests.workplace import Workplace, count_junit


@pytest.mark.slow
def test_one_cache_and_one_report(workplace: Workplace) -> None:
    shared = {f"c{index}": f"slow 0.1 {index}" for index in range(6)}
    workplace.write_spec({**shared, "one": "a"}, name="one.yaml")
    workplace.write_spec({**shared, "bad": "wrong"}, name="two.yaml")
    runs = [workplace.start(name, "-j", "2") for name in ("one.yaml", "two.yaml")]
    told = [run.communicate(timeout=240) for run in runs]
    assert [run.returncode for run in runs] == [0, 1], told
    assert "7 passed" in told[0][0]
    assert "1 failed" in told[1][0]
    assert not any("could not be kept" in stderr or "damaged" in stderr for _, stderr in told)
    report = json.loads((workplace.folder / "r.json").read_text())
    assert {case["name"] for case in report["cases"]} in ({*shared, "one"}, {*shared, "bad"})
    assert count_junit(workplace.folder / "r.xml")[0] == 7
    assert not list(workplace.folder.glob(".*.tmp"))
    assert check_cache(Path(workplace.environment["SPECRUNNER_CACHE"])) > 0
