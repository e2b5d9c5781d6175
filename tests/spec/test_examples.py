"""Example specs, found by themselves: `valid` ones load, `invalid` ones give the diagnostics written beside them.

After a deliberate change of wording, rewrite the expectations and read the difference:

    SPECRUNNER_UPDATE_EXPECTED=1 pytest tests/spec/test_examples.py
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from specrunner.plan.capabilities import check_capabilities
from specrunner.spec.loader import LoadedSpecs, load_specs

EXAMPLES = Path(__file__).parent.parent / "specs"
ENGINES = ("hf", "oracle", "vllm", "sglang")
RECIPES = ("glass-0.8m", "smollm2-135m", "tiny-llada2")
VALID = sorted((EXAMPLES / "valid").glob("*.yaml"))
INVALID = sorted((EXAMPLES / "invalid").glob("*.yaml"))


def load(file: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedSpecs:
    monkeypatch.chdir(file.parent)
    return check_capabilities(load_specs([file.name], engines=ENGINES, recipes=RECIPES))


@pytest.mark.parametrize("file", VALID, ids=lambda file: file.stem)
def test_valid_example_has_the_expected_cases(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(file, monkeypatch)
    assert loaded.diagnostics == ()
    compare("\n".join(case.id for case in loaded.cases) + "\n", file.with_suffix(".expected"))


@pytest.mark.parametrize("file", INVALID, ids=lambda file: file.stem)
def test_invalid_example_has_the_expected_diagnostics(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(file, monkeypatch)
    assert loaded.diagnostics
    compare("\n\n".join(d.render() for d in loaded.diagnostics) + "\n", file.with_suffix(".expected"))


def compare(text: str, expected: Path) -> None:
    if os.environ.get("SPECRUNNER_UPDATE_EXPECTED"):
        expected.write_text(text, encoding="utf-8")
    assert text == expected.read_text(encoding="utf-8")


def test_there_are_enough_examples() -> None:
    assert len(VALID) >= 8
    assert len(INVALID) >= 40


def test_every_expectation_has_its_spec() -> None:
    specs = {file.stem for file in (*VALID, *INVALID)}
    assert {file.stem for file in EXAMPLES.glob("*/*.expected")} == specs
