"""What the hand-written scripts share: their arguments, and how they say where their time went."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

BEGUN = time.perf_counter()


def read_arguments() -> tuple[str, list[str]]:
    """Return the checkpoint and the prompts of `SCRIPT MODEL PROMPTS.json`."""
    return sys.argv[1], json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))


def tell_times(loaded: float, rows: int) -> None:
    """Print the seconds of start and load, those of the forwards, and the rows of logits, as JSON.

    Args:
        loaded: when the model was there, by `time.perf_counter`.
        rows: of logits, in all.
    """
    now = time.perf_counter()
    print(json.dumps({"load": loaded - BEGUN, "forwards": now - loaded, "rows": rows}))
