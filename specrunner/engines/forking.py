"""What libraries note when they are imported, and would note otherwise in a process that was forked since."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def renew_import_state() -> None:
    """Let libraries that are imported already obey the environment of this process.

    Transformers notes when it is imported where a checkpoint's code is copied to: one session must not find another's.
    """
    dynamic = sys.modules.get("transformers.dynamic_module_utils")
    if dynamic is not None:
        home = os.environ.get("HF_HOME")
        modules = os.environ.get("HF_MODULES_CACHE") or (home and str(Path(home) / "modules"))
        if modules:
            dynamic.HF_MODULES_CACHE = modules  # type: ignore[attr-defined]
