"""Names that would lead elsewhere: nothing is written or deleted outside the folder that is meant."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specrunner.errors import GoldenError
from specrunner.golden import manifest as manifests
from specrunner.golden.keys import Slot, find_root, name_case, name_device
from specrunner.golden.manifest import Manifest
from specrunner.golden.store import State, manifest_path, read_manifest, remove, write_golden
from specrunner.spec.loader import read_spec
from specrunner.spec.source import parse_text

HOSTILE = (
    "..", ".", "../x", "../../etc/passwd", "/etc/passwd", "a/../../b", "a\\..\\b", "~/x", "x\0y", "\ud800", "a" * 5000,
    "", "-rf", " ", "\n", "*", "%2e%2e%2f",
)  # fmt: skip


def make_manifest() -> Manifest:
    return Manifest(
        **dict.fromkeys(("case", "device", "engine", "dtype", "model_digest", "tokenizer_digest", "spec_digest"), "x"),
        **dict.fromkeys(("agreement", "reason", "date", "specrunner"), "x"),
        **{name: {} for name in ("options", "facts", "model", "settings")},
        seed=0,
        repeats=2,
        prompt_token_ids=(1,),
        output_token_ids=None,
    )


@given(st.text() | st.sampled_from(HOSTILE))
def test_a_case_s_id_is_one_plain_file_name(case_id: str) -> None:
    try:
        name = name_case(case_id)
    except UnicodeEncodeError:
        assert any(0xD800 <= ord(char) <= 0xDFFF for char in case_id)
        return
    assert Path(name).name == name and name not in ("", ".", "..")
    assert len(f"{name}@{'d' * 60}.0123456789ab.safetensors") <= 255
    assert name.isascii() and name.isprintable()


@given(st.text() | st.sampled_from(HOSTILE))
def test_a_device_is_one_plain_file_name(device: str) -> None:
    name = name_device(device)
    assert Path(name).name == name
    assert len(name) <= 80


@pytest.mark.parametrize("name", [name for name in HOSTILE if "\0" not in name and "\ud800" not in name])
def test_no_spec_has_a_case_of_such_a_name(name: str) -> None:
    text = "version: 1\nmodel: {recipe: glass-0.8m}\nengines: [hf]\nreference: {engine: hf}\ncases:\n"
    text += f"  - {{name: {json.dumps(name)}, prompt: hi, tolerance: {{logits: exact}}}}\n"
    cases, diagnostics = read_spec(parse_text(text, "x.yaml"), "x", ("hf",), ("glass-0.8m",))
    assert cases == [] and diagnostics


@given(st.lists(st.sampled_from(("..", ".", "specs", "golden", "a", "b.yaml", "~")), min_size=1, max_size=8))
def test_goldens_lie_below_their_root(parts: list[str]) -> None:
    root, suite = find_root(os.path.normpath("/".join([*parts, "x.yaml"])))
    slot = Slot(root, suite, name_case("c[engine=hf]"), "cpu-x86_64")
    assert os.path.normpath(slot.stem).startswith(os.path.normpath(root))


@pytest.fixture
def place(tmp_path: Path) -> tuple[Slot, Path]:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("keep")
    root = tmp_path / "golden"
    root.mkdir()
    return Slot(root, "suite", "case--engine=hf", "cpu-x86_64"), outside


def test_nothing_is_written_through_a_folder_that_is_a_link(place: tuple[Slot, Path]) -> None:
    slot, outside = place
    (slot.root / "suite").symlink_to(outside, target_is_directory=True)
    with pytest.raises(GoldenError, match="leads out of"):
        write_golden(slot, State.NEW, make_manifest(), b"x")
    with pytest.raises(GoldenError, match="leads out of"):
        remove(slot)
    assert [file.name for file in outside.iterdir()] == ["precious"]


def test_a_file_that_is_a_link_is_replaced_and_not_followed(place: tuple[Slot, Path]) -> None:
    slot, outside = place
    (slot.root / "suite").mkdir()
    manifest_path(slot, State.NEW).symlink_to(outside / "precious")
    write_golden(slot, State.NEW, make_manifest(), b"x")
    assert (outside / "precious").read_text() == "keep"
    assert not manifest_path(slot, State.NEW).is_symlink()


@pytest.mark.parametrize("suite", ["..", "../..", "/tmp", "a/../../b"])
def test_a_slot_outside_its_root_is_refused(place: tuple[Slot, Path], suite: str) -> None:
    slot, _ = place
    with pytest.raises(GoldenError, match="leads out of"):
        write_golden(Slot(slot.root, suite, slot.case, slot.device), State.NEW, make_manifest(), b"x")


@pytest.mark.parametrize("name", ["../outside/precious", "/etc/passwd", "..", "a/b.safetensors", "x\0y"])
def test_a_manifest_names_a_file_beside_itself(place: tuple[Slot, Path], name: str) -> None:
    slot, outside = place
    write_golden(slot, State.ACCEPTED, make_manifest(), b"x")
    path = manifest_path(slot)
    content = json.loads(path.read_text())
    content.pop("digest")
    content["tensors_file"] = name
    content["tensors_sha256"] = hashlib.sha256(b"keep").hexdigest()
    path.write_text(json.dumps({**content, "digest": manifests._digest(content)}))
    with pytest.raises(GoldenError, match="names a file elsewhere"):
        read_manifest(slot)
    assert (outside / "precious").exists()


@pytest.mark.parametrize(
    "change", [{"tensors": 5}, {"prompt_token_ids": None}, {"case": None, "tensors": {"a": {}}}, {"tensors": {"a": 1}}]
)
def test_a_manifest_of_other_types_is_damaged(place: tuple[Slot, Path], change: dict[str, object]) -> None:
    slot, _ = place
    write_golden(slot, State.ACCEPTED, make_manifest(), b"")
    path = manifest_path(slot)
    content = {**json.loads(path.read_text()), **change}
    content.pop("digest")
    path.write_text(json.dumps({**content, "digest": manifests._digest(content)}))
    with pytest.raises(GoldenError):
        read_manifest(slot)


def test_a_manifest_of_deep_lists_is_damaged() -> None:
    with pytest.raises(GoldenError):
        Manifest.from_text("[" * 100_000, "x")
