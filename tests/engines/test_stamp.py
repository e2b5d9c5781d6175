"""Packages and the processor are found without importing or running anything."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from specrunner.engines import stamp
from specrunner.engines.stamp import describe_processor, find_places


def test_a_package_is_found_where_it_lies_and_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "stamped_package").mkdir()
    (tmp_path / "stamped_package" / "__init__.py").write_text("raise AssertionError")
    (tmp_path / "stamped_module.py").write_text("raise AssertionError")
    assert find_places("stamped_package") == [tmp_path / "stamped_package"]
    assert find_places("stamped_module") == [tmp_path / "stamped_module.py"]
    assert find_places("not_installed_anywhere") == []
    assert not {"stamped_package", "stamped_module"} & sys.modules.keys()


def test_the_first_processor_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stamp, "CPU", tmp_path / "cpuinfo")
    assert describe_processor() == ()
    one, other = (
        "processor: {}\nmodel name: {}\nflags: avx\ncpu MHz: 3000\n".format(*kind) for kind in (("0", "a"), ("1", "b"))
    )
    (tmp_path / "cpuinfo").write_text(one + other, encoding="utf-8")
    assert describe_processor() == ("model name: a", "flags: avx", "", "")
