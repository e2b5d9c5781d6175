"""Lines to a stream whose reader has gone away."""

from __future__ import annotations

import os
from pathlib import Path

from specrunner.reporters.console import Console


def test_a_reader_that_is_gone_costs_no_descriptor() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        console = Console(stream)
        before = len(list(Path("/proc/self/fd").iterdir()))
        console.print("unheard")
        assert len(list(Path("/proc/self/fd").iterdir())) == before
        stream.write("swallowed")
        stream.flush()
