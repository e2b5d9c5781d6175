"""The helper for tests of one's own: green passes, red raises what the terminal tells, nothing found is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from specrunner.errors import NothingVerified, SpecrunnerError
from specrunner.testing import SpecRun, run_specs


@pytest.fixture
def run(place: Any, monkeypatch: pytest.MonkeyPatch) -> SpecRun:
    """A run with one case of each kind."""
    place.write(
        "a.yaml",
        "name: good, prompt: a",
        "name: bad, prompt: wrong",
        "name: known, prompt: wrong, xfail: {reason: it lies}",
        "name: absent, prompt: a, requires: {packages: [no_such_package]}",
    )
    for name, value in place.environment.items():
        monkeypatch.setenv(name, value)
    return run_specs("a.yaml", cwd=place.folder, tags=["by-tag"], parameters={"engine": ["misbehaving"]})


@pytest.mark.slow
def test_verify(run: SpecRun) -> None:
    assert [case.name for case in run.verify("good or known")] == ["good", "known"]
    with pytest.raises(AssertionError, match=r"FAIL  a.yaml::bad\[engine=misbehaving\]\n      at a.yaml:9\n"):
        run.verify()
    with pytest.raises(AssertionError, match="SKIP  a.yaml::absent"):
        run.verify("good or absent")
    assert len(run.verify("good or absent", allow_skips=True)) == 2
    with pytest.raises(AssertionError, match="SKIP"):
        run.verify("absent", allow_skips=True)
    with pytest.raises(NothingVerified):
        run.verify("no-such-case")


def test_what_cannot_run(tmp_path: Path, place: Any) -> None:
    with pytest.raises(SpecrunnerError, match=r"no such file or directory: b\.yaml"):
        run_specs("b.yaml", cwd=tmp_path)
    place.write("a.yaml", "name: bad, prompt: wrong, engins: [hf]")
    with pytest.raises(SpecrunnerError, match="did you mean `engines`?"):
        run_specs("a.yaml", cwd=place.folder)
    with pytest.raises(NothingVerified, match="no case has the tag"):
        run_specs("smoke", tags=["no-such-tag"], cwd=Path(__file__).parents[2] / "specs")
