"""Which code of SGLang runs a model: found without importing all of its models, and checked to be its own."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path

from specrunner.errors import ModelUnsupported


def find_model_module(architecture: str) -> str | None:
    """Return the module of SGLang that has a model class of that name, found by its text, or None."""
    spec = importlib.util.find_spec("sglang")
    if spec is None or not spec.submodule_search_locations:
        return None
    definition = re.compile(rf"^class {re.escape(architecture)}\b", re.MULTILINE)
    for file in sorted((Path(spec.submodule_search_locations[0]) / "srt" / "models").glob("*.py")):
        text = file.read_text(encoding="utf-8")
        if definition.search(text) and architecture in text.rpartition("EntryClass")[2]:
            return f"sglang.srt.models.{file.stem}"
    return None


def use_model_alone(architecture: str, workspace: Path) -> None:
    """Have SGLang import the one model it needs, not all: a package that re-exports it.

    Raises:
        ModelUnsupported: SGLang has no code for the architecture, and would fall back to Transformers' own.
    """
    if os.environ.get("SGLANG_EXTERNAL_MODEL_PACKAGE"):
        return  # the user's own models
    module = find_model_module(architecture)
    if module is None:
        raise ModelUnsupported(f"sglang has no model class for the architecture {architecture}")
    folder = workspace / "models"
    package = folder / "specrunner_sglang_model"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "model.py").write_text(f"from {module} import {architecture} as EntryClass\n", encoding="utf-8")
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    os.environ["SGLANG_EXTERNAL_MODEL_PACKAGE"] = package.name


def check_model_class(model_class: str, architecture: str) -> None:
    """Make sure that SGLang runs code of its own.

    Raises:
        ModelUnsupported: it fell back to Transformers' model code.
    """
    if model_class.startswith("sglang.srt.models.transformers"):
        raise ModelUnsupported(f"sglang fell back to Transformers' own code for {architecture}: {model_class}")
