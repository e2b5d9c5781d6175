"""Where a session's checkpoint is on this machine; a recipe is built first, once, under our own interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import IO

from specrunner.errors import EngineError, ModelUnavailable
from specrunner.folders import join_import_path
from specrunner.sessions.process import Cancelled, end_tree, start_child
from specrunner.spec.model import Model


class Checkpoints:
    """The checkpoints of one run; safe to ask from several threads."""

    def __init__(self) -> None:
        self._built: dict[str, str | EngineError] = {}
        self._lock = threading.Lock()

    def locate(self, model: Model, cancelled: Callable[[], bool] = lambda: False) -> str:
        """Return a checkpoint's directory or hub id.

        Args:
            model: the checkpoint.
            cancelled: polled ten times a second while a recipe is built, by this thread or another.

        Raises:
            Cancelled: `cancelled()` became true; nothing of the build goes on.
            ModelUnavailable: its recipe could not be built, now or before.
        """
        if model.recipe is None:
            return model.path or model.id or ""
        with self._lock:
            if model.recipe not in self._built:
                self._built[model.recipe] = build_recipe(model.recipe, cancelled)
        found = self._built[model.recipe]
        if isinstance(found, EngineError):
            raise found
        return found


def build_recipe(recipe: str, cancelled: Callable[[], bool]) -> str | EngineError:
    """Return the directory of a recipe's checkpoint, which is built if need be, or why there is none.

    Raises:
        Cancelled: `cancelled()` became true; the build has been ended.
    """
    from specrunner.catalogue.recipes import RECIPES
    from specrunner.models.recipes import find_built

    built = find_built(RECIPES[recipe])
    if built is not None:
        return str(built)
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        status = _run_builder(recipe, stdout, stderr, cancelled)
        stdout.seek(0)
        stderr.seek(0)
        if status == 0:
            return stdout.read().strip().splitlines()[-1]
        lines = [line for line in stderr.read().splitlines() if line.strip()]
    message = lines[-1].removeprefix("error: ") if lines else f"exit status {status}"
    return ModelUnavailable(f"the recipe {recipe} could not be built: {message}", log_tail="\n".join(lines[-40:]))


def _run_builder(recipe: str, stdout: IO[str], stderr: IO[str], cancelled: Callable[[], bool]) -> int:
    """Run the building process to its end, and return its exit status.

    Raises:
        Cancelled: `cancelled()` became true; the process and what it had started are gone.
    """
    if cancelled():
        raise Cancelled
    mark = f"{os.getpid()}-{recipe}-build"
    command = [sys.executable, "-m", "specrunner.sessions.builder", recipe]
    variables = {**os.environ, "PYTHONPATH": join_import_path()}
    # Nothing is said on the channel: that it is open tells the builder that we live.
    process, channel = start_child(command, variables, mark, stdout=stdout, stderr=stderr)
    try:
        while not cancelled():
            with suppress(subprocess.TimeoutExpired):
                return process.wait(timeout=0.1)
        raise Cancelled
    finally:
        end_tree(process, mark)
        channel.close()
