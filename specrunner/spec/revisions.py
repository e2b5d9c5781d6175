"""Revisions of hub models: where they come from, and which of them are pinned."""

from __future__ import annotations

import re
from collections.abc import Mapping

MODEL_WORDS = {
    "revision": "revision",
    "code_revision": "revision",
    "trust_remote_code": "trust_remote_code",
    "allow_pickle": "allow_pickle",
}
"""Keys of an engine's options that would say what a field of `model` says, and that field, whatever the engine."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_VARIABLE = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)")


def find_variable(revision: str | None) -> str | None:
    """Return the environment variable that `$NAME` names, or None for any other revision."""
    match = _VARIABLE.fullmatch(revision or "")
    return match.group(1) if match else None


def resolve_revision(revision: str | None, environ: Mapping[str, str]) -> str | None:
    """Return a revision with `$NAME` replaced by the variable's value; it stays as it is where that is not set."""
    variable = find_variable(revision)
    return environ.get(variable) or revision if variable else revision


def is_commit(revision: str | None) -> bool:
    """Tell whether a revision is the full hash of a commit, which stands for the same files for ever."""
    return _COMMIT.fullmatch(revision or "") is not None
