"""Cases and captures made by hand, for goldens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from specrunner.catalogue.recipes import find_recipe
from specrunner.checks.evidence import LoadedCapture
from specrunner.checks.sources import MemorySource
from specrunner.golden.kept import Golden
from specrunner.golden.record import Captured, make_golden, write_new
from specrunner.golden.store import accept
from specrunner.models.recipes import recipe_folder
from specrunner.spec.model import Case, Decode, EngineChoice, GoldenChoice, Location, Model, Prompt, Rule, Tolerance

FACTS: dict[str, Any] = {
    "device": "cpu",
    "model_digest": "ea20527061cb224d",
    "tokenizer_digest": "fedcba9876543210",
    "versions": {"torch": "2.13.0"},
    "attention_backend": "sdpa",
}

CHECKPOINT = {"config.json": "{}", "model.safetensors": "weights"}
"""The files of a checkpoint, by name, whose digest `FACTS` states."""


def plant_checkpoint(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the checkpoint of `make_case` on this machine, and return its folder."""
    monkeypatch.setenv("SPECRUNNER_CACHE", str(root / "cache"))
    folder = recipe_folder(find_recipe("glass-0.8m"))
    folder.mkdir(parents=True)
    for name, text in CHECKPOINT.items():
        (folder / name).write_text(text)
    return folder


def sqnr(least: float) -> tuple[Rule, ...]:
    return (Rule("sqnr", {"min": least}),)


def make_case(root: Path, name: str = "capital", **changes: Any) -> Case:
    """Return a case of `root/specs/a/spec.yaml` with a golden."""
    location = Location((root / "specs/a/spec.yaml").as_posix(), 7, 5)
    fields: dict[str, Any] = {
        "suite": "specs/a/spec",
        "name": name,
        "parameters": (("engine", "hf"),),
        "location": location,
        "candidate": EngineChoice("hf", "float32"),
        "reference": None,
        "model": Model(recipe="glass-0.8m"),
        "prompt": Prompt(text="hi"),
        "tensors": ("embeddings", "logits"),
        "tolerance": (Tolerance("**", sqnr(80), location),),
        "decode": Decode(4),
        "tokens": Rule("exact"),
        "golden": GoldenChoice(),
    }
    return Case(**{**fields, **changes})


def make_capture(
    scale: float = 0.0, *, rows: int = 12, width: int = 4000, output: tuple[int, ...] = (5, 6, 7, 8)
) -> LoadedCapture:
    """Return a capture whose logits are off by a relative L2 error of `scale`, in row 5 by three times as much."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, width, generator=generator) * 3
    noise = torch.randn(rows, width, generator=generator) * 3 * scale
    noise[5] *= 3
    tensors = {
        "embeddings": MemorySource("embeddings", torch.arange(rows * 8.0).view(rows, 8)),
        "logits": MemorySource("logits", logits + noise),
    }
    return LoadedCapture(tuple(range(1, rows + 1)), tensors, output)


def make(case: Case, *captures: LoadedCapture, **changes: Any) -> Golden:
    """Make a golden of captures."""
    facts = {**FACTS, **changes.pop("facts", {})}
    return make_golden(case, [Captured(capture, facts) for capture in captures], reason="a test", **changes)


def keep(case: Case, *captures: LoadedCapture, **changes: Any) -> Golden:
    """Make a golden, write it and accept it."""
    golden = write_new(make(case, *(captures or (make_capture(),)), **changes))
    accept(golden.slot, "first")
    return golden
