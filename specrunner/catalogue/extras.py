"""The command that brings an optional part of specrunner, such as `hf` or `benchmarks`."""

from __future__ import annotations

import json
import shlex
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

_DISTRIBUTION = "specrunner"


@cache
def install_command(extra: str) -> str:
    """Return the command, for a shell, that installs an extra into the environment specrunner runs in.

    Where specrunner was installed from a folder or file of this machine, it comes from there again, as pip's
    `direct_url.json` tells (PEP 610): an index may have no such version, or another.

    Args:
        extra: a key of `[project.optional-dependencies]`.
    """
    from importlib import metadata  # when it is told: not at the start of every command

    try:
        source, is_editable = _find_source()
    except (metadata.PackageNotFoundError, OSError, ValueError, LookupError, AttributeError, TypeError):
        source, is_editable = None, False
    option = "-e " if is_editable else ""
    return f"pip install {option}{shlex.quote(f'{source or _DISTRIBUTION}[{extra}]')}"


def _find_source() -> tuple[Path | None, bool]:
    """Return the local folder or file that specrunner was installed from, and whether that is editable."""
    from importlib import metadata

    text = metadata.distribution(_DISTRIBUTION).read_text("direct_url.json")
    origin = json.loads(text or "{}")
    url = urlsplit(origin["url"])
    path = Path(unquote(url.path))
    if url.scheme != "file" or not path.exists():
        return None, False
    return path, bool(origin.get("dir_info", {}).get("editable"))
