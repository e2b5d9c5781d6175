"""A fault in any of the eight points of specs/llada2/mini.yaml shows first in the case of that point."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specrunner.cli import main
from specrunner.spec.tensor_names import model_order

ROOT = Path(__file__).parents[1]

POINTS = {
    "1": "embeddings-scaled",
    "2": "rope-reversed",
    "3": "routing-bias-ignored",
    "4": "layers-residual-dropped",
    "5": "layers-attention-exchanged",
    "6": "norms-final-dropped",
    "7": "head-rescaled",
    "8": "sampler-low-threshold",
}
"""By point, the fault that is planted in it. docs/llada2.md has the table."""

POINT_8 = ("8-", "every-pass")
HF_ALONE = {"4", "8"}
"""Points whose fault can be planted in Transformers alone."""


def point_of(case: str) -> str:
    """Return the point that a case stands for."""
    return "8" if case.startswith(POINT_8) else case.partition("-")[0]


@pytest.mark.engine
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "engine",
    [
        pytest.param("hf", marks=pytest.mark.slow),
        pytest.param("vllm", marks=pytest.mark.vllm),
        pytest.param("sglang", marks=pytest.mark.sglang),
    ],
)
def test_a_fault_in_a_point_shows_first_in_its_case(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    points = {point: fault for point, fault in POINTS.items() if engine == "hf" or point not in HF_ALONE}
    report = tmp_path / "matrix.json"
    chosen = f"model=tiny and engine={engine} and dtype=float32 and length=41 and not geometry"
    words = ["prove", "specs/llada2/mini.yaml"]
    if engine == "hf":
        words.append("specs/llada2/tiny-decode.yaml")
        chosen = f"({chosen}) or (every-pass and task=sum)"
    words += ["--json", str(report), "--only", "faults", "-k", chosen]
    for fault in points.values():
        words += ["--fault", fault]
    assert main(words) == 0, capsys.readouterr().out
    matrix = json.loads(report.read_text(encoding="utf-8"))
    found = {row["fault"]: find_first(row["entries"]) for row in matrix["faults"]}
    assert {point: point_of(found[fault]) for point, fault in points.items()} == dict(zip(points, points, strict=True))


def find_first(entries: list[dict[str, str]]) -> str:
    """Return the case whose first failed check is of the earliest tensor of the model; tokens come after tensors."""
    failed = [
        ((model_order(tensor) if tensor != "tokens" else (4, 0, 0)), index, entry["case"].partition("::")[2])
        for index, entry in enumerate(entries)
        if entry["outcome"] == "caught"
        for tensor in [entry["first"].partition(" ")[0]]
    ]
    return min(failed)[2]
