"""Where a session's checkpoint is on this machine; a recipe is built first, once, under our own interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

from specrunner.errors import EngineError, ModelUnavailable
from specrunner.spec.model import Model


class Checkpoints:
    """The checkpoints of one run; safe to ask from several threads."""

    def __init__(self) -> None:
        self._built: dict[str, str | EngineError] = {}
        self._lock = threading.Lock()

    def locate(self, model: Model) -> str:
        """Return a checkpoint's directory or hub id.

        Raises:
            ModelUnavailable: its recipe could not be built, now or before.
        """
        if model.recipe is None:
            return model.path or model.id or ""
        with self._lock:
            if model.recipe not in self._built:
                self._built[model.recipe] = build_recipe(model.recipe)
        found = self._built[model.recipe]
        if isinstance(found, EngineError):
            raise found
        return found


def build_recipe(recipe: str) -> str | EngineError:
    """Return the directory of a recipe's checkpoint, which is built if need be, or why there is none."""
    from specrunner.catalogue.recipes import RECIPES
    from specrunner.models.recipes import find_built

    built = find_built(RECIPES[recipe])
    if built is not None:
        return str(built)
    done = subprocess.run(
        [sys.executable, "-m", "specrunner.models.recipes", recipe],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    if done.returncode == 0:
        return done.stdout.strip().splitlines()[-1]
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    message = lines[-1].removeprefix("error: ") if lines else f"exit status {done.returncode}"
    return ModelUnavailable(f"the recipe {recipe} could not be built: {message}", log_tail="\n".join(lines[-40:]))
