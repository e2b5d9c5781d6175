"""Numbers written into a spec, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from specrunner.calibration.rewriting import format_limit, write_limits
from specrunner.errors import ConfigurationError
from specrunner.spec.model import Location

SPEC = """\
# a comment: {sqnr: 10}
cases:
  - name: a
    tolerance:
      "layers.*": {sqnr: 10} # measured 18
      logits:   {kl: {mean: 1e-3,  p99: 1e-2}, cosine: 0.9}
  - name: b
    tolerance: {"layers.*": exact, logits: {kl: {mean: 1e-3}}}
"""


def test_only_the_numbers_change(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(SPEC)
    path = file.as_posix()
    layers, logits = Location(path, 5, 7), Location(path, 6, 7)
    written = write_limits(
        {
            (layers, "layers.*", "sqnr", "min"): 12.0,
            (logits, "logits", "kl", "p99"): 2.5e-5,
            (logits, "logits", "cosine", "min"): 0.999,
            (logits, "logits", "top_k", "overlap"): 0.5,
            (Location(path, 8, 17), "layers.*", "exact", ""): 3.0,
        }
    )
    assert written == {path: 3}
    expected = SPEC.replace("{sqnr: 10} # m", "{sqnr: 12} # m").replace("p99: 1e-2", "p99: 2.5e-5")
    assert file.read_text() == expected.replace("cosine: 0.9}", "cosine: 0.999}")


def test_a_full_disk_leaves_the_spec_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(SPEC)

    def refuse(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(ConfigurationError, match=r"cannot write the limits to .*a\.yaml: no space left on device"):
        write_limits({(Location(file.as_posix(), 5, 7), "layers.*", "sqnr", "min"): 12.0})
    assert file.read_text() == SPEC


def test_a_spec_behind_a_link_stays_there_with_its_mode(tmp_path: Path) -> None:
    file, link = tmp_path / "a.yaml", tmp_path / "b.yaml"
    file.write_text(SPEC)
    file.chmod(0o600)
    link.symlink_to(file)
    assert write_limits({(Location(link.as_posix(), 5, 7), "layers.*", "sqnr", "min"): 12.0})
    assert link.is_symlink() and "{sqnr: 12}" in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("value", "text"), [(41.0, "41"), (0.985, "0.985"), (3.2e-5, "3.2e-5"), (1e-12, "1e-12")])
def test_numbers_are_written_as_specs_write_them(value: float, text: str) -> None:
    assert format_limit(value) == text
