"""Full and read-only disks, and a cache that is no folder: what is said, and that nothing that was there is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults.keeping import check_cache
from tests.workplace import Workplace

Mount = Callable[..., Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mount small or read-only file systems; skip where that is not allowed."""
    places: list[Path] = []

    def run(place: Path, *arguments: str) -> Path:
        place.mkdir(exist_ok=True)
        done = subprocess.run(["mount", *arguments, str(place)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
        places.append(place)
        return place

    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    yield run
    for place in reversed(places):
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.slow
def test_no_room_for_captures(workplace: Workplace, tmp_path: Path, mount: Mount) -> None:
    small = mount(tmp_path / "small", "-t", "tmpfs", "-o", "size=256k", "tmpfs")
    workplace.environment["TMPDIR"] = str(small)
    workplace.write_spec({"large": "slow 0 a", "small": "b"})
    outcome = workplace.run("spec.yaml", "-j", "1")
    assert outcome.code == 10
    assert outcome.verdicts() == {"large": "error", "small": "passed"}
    assert "No space left on device" in str(outcome.report["cases"][0]["failure"])
    assert list(small.iterdir()) == []


@pytest.mark.slow
def test_no_room_in_the_cache(workplace: Workplace, tmp_path: Path, mount: Mount) -> None:
    cache = mount(tmp_path / "cache", "-t", "tmpfs", "-o", "size=256k", "tmpfs")
    workplace.write_spec({"large": "slow 0 a", "small": "b"})
    outcome = workplace.run("spec.yaml")
    assert outcome.code == 0, outcome.stdout
    assert "could not be kept" in outcome.stderr
    assert "No space left on device" in outcome.stderr
    check_cache(cache)


@pytest.mark.slow
def test_no_room_for_the_report(workplace: Workplace, tmp_path: Path, mount: Mount) -> None:
    small = mount(tmp_path / "small", "-t", "tmpfs", "-o", "size=16k", "tmpfs")
    report = small / "r.xml"
    report.write_text("<testsuites/>")
    with suppress(OSError), (small / "ballast").open("wb", buffering=0) as ballast:
        while ballast.write(bytes(4096)):
            pass
    workplace.write_spec({f"c{index}": "a" for index in range(40)})
    process = workplace.start("spec.yaml", "--junit-xml", str(report))
    stdout, _ = process.communicate(timeout=240)
    assert process.returncode == 4
    assert f"cannot write the JUnit report to {report}: no space left on device" in stdout
    assert report.read_text() == "<testsuites/>", "the old report is still there"
    assert sorted(file.name for file in small.iterdir()) == ["ballast", "r.xml"]


@pytest.mark.slow
def test_a_read_only_cache_is_read(workplace: Workplace, tmp_path: Path, mount: Mount) -> None:
    cache = Path(workplace.environment["SPECRUNNER_CACHE"])
    workplace.write_spec({"bad": "wrong"})
    assert workplace.run("spec.yaml").code == 1
    mount(cache, "--bind", "-o", "ro", str(cache))
    if os.access(cache, os.W_OK):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(cache)], check=True)
    outcome = workplace.run("spec.yaml")
    assert outcome.code == 1
    assert outcome.report["cases"][0]["kept"] == "captures"
    workplace.write_spec({"bad": "wrong", "new": "a"})
    outcome = workplace.run("spec.yaml")
    assert outcome.verdicts() == {"bad": "failed", "new": "passed"}
    assert "Read-only file system" in outcome.stderr


@pytest.mark.slow
def test_a_cache_that_is_a_file(workplace: Workplace) -> None:
    cache = Path(workplace.environment["SPECRUNNER_CACHE"])
    shutil.rmtree(cache / "kept")
    (cache / "kept").write_text("not a folder")
    workplace.write_spec({"one": "a"})
    outcome = workplace.run("spec.yaml")
    assert outcome.code == 0, outcome.stderr
    assert "could not be kept" in outcome.stderr
    assert (cache / "kept").read_text() == "not a folder"


@pytest.mark.endurance
def test_no_place_for_temporary_files(workplace: Workplace, tmp_path: Path) -> None:
    custom = tmp_path / "custom"
    custom.mkdir()
    (custom / "sitecustomize.py").write_text("import tempfile\ntempfile.tempdir = '/no/such/folder'\n")
    workplace.environment["PYTHONPATH"] += os.pathsep + str(custom)
    workplace.write_spec({"one": "a"})
    process = workplace.start("spec.yaml")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 4
    assert "no room for temporary files" in stderr
