"""Digests of checkpoints: any change shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from specrunner.engines import checkpoint_digest
from specrunner.engines.checkpoint_digest import describe_checkpoint

FILES = {
    "config.json": b"{}",
    "modeling.py": b"pass",
    "model-1.safetensors": bytes(range(256)) * 40,
    "model-2.safetensors": bytes(5000),
    "tokenizer.json": b"[]",
    "README.md": b"words",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize("name", ["config.json", "modeling.py", "model-1.safetensors", "model-2.safetensors"])
def test_model_digest_sees_one_changed_byte(folder: Path, name: str) -> None:
    before = describe_checkpoint(folder)
    content = bytearray(FILES[name])
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    after = describe_checkpoint(folder)
    assert before["model_digest"] != after["model_digest"]
    assert before["tokenizer_digest"] == after["tokenizer_digest"]


def test_tokenizer_has_a_digest_of_its_own_and_the_readme_none(folder: Path) -> None:
    before = describe_checkpoint(folder)
    (folder / "tokenizer.json").write_bytes(b"[1]")
    (folder / "README.md").write_bytes(b"other words")
    after = describe_checkpoint(folder)
    assert before["model_digest"] == after["model_digest"]
    assert before["tokenizer_digest"] != after["tokenizer_digest"]


def test_a_renamed_shard_is_another_checkpoint(folder: Path) -> None:
    before = describe_checkpoint(folder)["model_digest"]
    (folder / "model-2.safetensors").rename(folder / "model-3.safetensors")
    assert describe_checkpoint(folder)["model_digest"] != before


def test_large_weights_are_sampled_and_that_is_stated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = describe_checkpoint(folder)
    assert (whole["weights_digested"], whole["weights_bytes"]) == ("whole", 256 * 40 + 5000)
    monkeypatch.setattr(checkpoint_digest, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(checkpoint_digest, "SAMPLE_BYTES", 16)
    sampled = describe_checkpoint(folder)
    assert sampled["weights_digested"] == "sampled"
    for position in (0, len(FILES["model-1.safetensors"]) - 1):
        content = bytearray(FILES["model-1.safetensors"])
        content[position] ^= 1
        (folder / "model-1.safetensors").write_bytes(content)
        assert describe_checkpoint(folder)["model_digest"] != sampled["model_digest"]


def test_no_tokenizer_has_no_digest(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert describe_checkpoint(folder)["tokenizer_digest"] is None
