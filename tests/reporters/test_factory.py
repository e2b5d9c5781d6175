"""Which reporters a run gets, and what they cost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from specrunner.config import OUTPUT_FORMATS
from specrunner.reporters.base import REPORTERS, Reporter, find_reporter
from specrunner.reporters.factory import TERMINALS


@pytest.mark.parametrize("name", REPORTERS)
def test_every_named_reporter_is_there(name: str) -> None:
    assert issubclass(find_reporter(name), Reporter)


def test_every_output_format_names_a_reporter() -> None:
    assert TERMINALS.keys() == set(OUTPUT_FORMATS)
    assert set(TERMINALS.values()) <= set(REPORTERS)


def test_a_run_without_reports_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from specrunner.reporters import create_reporters\n"
        "create_reporters(stdout=sys.stdout, stderr=sys.stderr)\n"
        "print([name for name in ('junit_xml', 'lxml', 'numpy', 'rich', 'torch', 'yaml') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
