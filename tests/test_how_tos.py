"""What the tutorial and the how-tos promise: commands that exist, valid specs, true pictures."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import specrunner
from specrunner.cli import main, make_parser

ROOT = Path(specrunner.__file__).parents[1]
PAGES = [
    ROOT / "docs" / "tutorial.md",
    *sorted((ROOT / "docs" / "how-to").glob("*.md")),
    *(ROOT / "docs").glob("ci/*.md"),
]


def find_blocks(page: Path, language: str) -> list[str]:
    pattern = rf"^ *```{language}\n(.*?)^ *```"
    return [textwrap.dedent(block) for block in re.findall(pattern, page.read_text(), flags=re.DOTALL | re.MULTILINE)]


def find_commands(page: Path) -> list[str]:
    lines = [line for block in find_blocks(page, "sh") for line in block.splitlines()]
    lines += re.findall(r"`(specrunner [a-z][^`…]*)`", page.read_text().replace("\n", " "))
    return [line.split(" > ")[0] for line in lines if line.startswith("specrunner ")]


COMMANDS = [pytest.param(line, id=f"{page.stem}: {line}") for page in PAGES for line in find_commands(page)]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_exist(line: str) -> None:
    make_parser(None, whole=True).parse_args(shlex.split(line)[1:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_specs_are_valid(page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index, block in enumerate(find_blocks(page, "yaml")):
        spec = tmp_path / f"{index}.yaml"
        spec.write_text(block)
        assert main(["validate", str(spec)]) == 0, capsys.readouterr()


def test_pages_have_commands_and_specs() -> None:
    assert len(COMMANDS) > 15
    assert sum(len(find_blocks(page, "yaml")) for page in PAGES) >= 1


def test_the_map_of_how_tos_has_every_page() -> None:
    folder = ROOT / "docs" / "how-to"
    listed = set(re.findall(r"\]\(([\w-]+\.md)\)", (folder / "README.md").read_text()))
    assert listed == {page.name for page in folder.glob("*.md")} - {"README.md"}


@pytest.mark.slow
def test_the_architecture_picture_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "draw_architecture.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_picture_of_a_failure_is_small() -> None:
    assert (ROOT / "docs" / "images" / "failure.png").stat().st_size <= 200_000
