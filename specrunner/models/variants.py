"""Checkpoints made from one that specrunner ships, with one thing changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from specrunner.models.random_llada2 import SHIPPED


def build_unscaled_llada2(folder: Path) -> None:
    """Write tiny-llada2 with a `routed_scaling_factor` of 1.0: an engine that ignores the factor is right about it."""
    shutil.copytree(SHIPPED, folder, dirs_exist_ok=True)
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(config | {"routed_scaling_factor": 1.0}, indent=2) + "\n", encoding="utf-8")
