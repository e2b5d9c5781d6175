"""The JSON report that `prove --json` and `compare --json` write."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specrunner.files import cannot_write, prepare_path, write_atomically

STDOUT = "-"
"""The target that stands for standard output."""

_WHAT = "JSON report"


def prepare_report(target: str | None) -> None:
    """Make sure, before anything runs, that the report can be written.

    Args:
        target: a file, `-` or None.

    Raises:
        ConfigurationError: it cannot, and why.
    """
    if target is not None and target != STDOUT:
        prepare_path(Path(target), _WHAT)


def write_report(target: str, content: Mapping[str, Any]) -> None:
    """Write the report, whole.

    Raises:
        ConfigurationError: the file cannot be written any more; the old one is still there.
    """
    from specrunner.reporters.console import Console

    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    if target == STDOUT:
        Console(sys.stdout).write(text)
        return
    try:
        write_atomically(Path(target), text.encode())
    except OSError as error:
        raise cannot_write(Path(target), _WHAT, error) from error
