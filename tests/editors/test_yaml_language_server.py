"""What an editor shows: the real yaml-language-server over the shipped specs, a broken one, and one being written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from specrunner.spec.schema import find_schema
from tests.editors.language_client import LanguageClient
from tests.npm_packages import install_packages

pytestmark = [pytest.mark.editors, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
VERSION = "1.25.0"
SPECS = sorted(file.relative_to(ROOT).as_posix() for file in ROOT.glob("specs/**/*.yaml"))
BROKEN = """\
# yaml-language-server: $schema={schema}
version: 1
model: {{recipe: glass-0.8m}}
reference: {{engine: hf, dtype: float32}}
engines: [hf]
cases:
  - name: one
    promt: Alice
    tolerance: {{logits: {{cosine: much}}}}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("npm")
    node = install_packages(folder, {"yaml-language-server": VERSION})
    package = folder / "node_modules" / "yaml-language-server"
    assert json.loads((package / "package.json").read_text())["version"] == VERSION
    return [node, str(package / "bin" / "yaml-language-server"), "--stdio"]


@pytest.fixture(scope="module")
def editor(server: list[str]) -> Iterator[LanguageClient]:
    client = LanguageClient(server, ROOT)
    yield client
    client.close()


def write(folder: Path, text: str) -> Path:
    file = folder / "spec.yaml"
    file.write_text(text.format(schema=os.path.relpath(find_schema(), folder)))
    return file


@pytest.mark.parametrize("spec", SPECS)
def test_shipped_specs_have_no_diagnostics(editor: LanguageClient, spec: str) -> None:
    assert editor.open(ROOT / spec) == []


def test_mistakes_are_shown_at_their_lines(editor: LanguageClient, tmp_path: Path) -> None:
    found = editor.open(write(tmp_path, BROKEN))
    places = {entry["range"]["start"]["line"]: entry["message"] for entry in found}
    assert set(places) == {7, 8}
    assert "promt" in places[7]
    assert "number" in places[8]


def test_keys_are_completed(editor: LanguageClient, tmp_path: Path) -> None:
    file = write(tmp_path, BROKEN.replace("    promt: Alice\n", "    \n"))
    editor.open(file)
    answer = editor.ask("completion", file, 7, 4)
    labels = {item["label"] for item in answer["items"]}
    assert {"prompt", "decode", "tensors", "tags"} <= labels
    assert "name" not in labels  # it is there already


def test_values_are_completed(editor: LanguageClient, tmp_path: Path) -> None:
    file = write(tmp_path, BROKEN.replace("    promt: Alice\n", "    dtype: \n"))
    editor.open(file)
    labels = {item["label"] for item in editor.ask("completion", file, 7, 11)["items"]}
    assert {"float32", "float64", "bfloat16", "float16"} <= labels


def test_hover_shows_the_description(editor: LanguageClient, tmp_path: Path) -> None:
    file = write(tmp_path, BROKEN)
    editor.open(file)
    shown = editor.ask("hover", file, 8, 6)["contents"]["value"]
    schema = json.loads(find_schema().read_text())
    description = schema["$defs"]["tolerance"]["description"]
    assert description.split(".")[0][:40] in shown.replace("\\", "")
