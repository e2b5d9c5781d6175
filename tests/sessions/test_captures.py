"""Captures on disk: complete or an error, never half."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest

from specrunner.engines.base import Capture
from specrunner.errors import CaptureIncomplete
from specrunner.sessions.captures import CAPTURE_FILE, TENSORS_FILE, read_capture, write_capture


def make_capture() -> Capture:
    """A capture with one tensor and one decode."""
    tensors = {"logits": numpy.arange(6, dtype=numpy.float64).reshape(2, 3)}
    return Capture([5, 6], tensors, output_token_ids=[7], facts={"passes": 1})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    write_capture(tmp_path, make_capture())
    stored = read_capture(tmp_path)
    assert stored.prompt_token_ids == (5, 6)
    assert stored.output_token_ids == (7,)
    assert stored.facts == {"passes": 1}
    assert stored.tensors_path is not None
    numpy.testing.assert_array_equal(load_file(str(stored.tensors_path))["logits"], make_capture().tensors["logits"])


def test_a_capture_without_tensors_needs_no_file(tmp_path: Path) -> None:
    write_capture(tmp_path, Capture([1], output_token_ids=[]))
    stored = read_capture(tmp_path)
    assert stored.tensors_path is None
    assert stored.output_token_ids == ()


@pytest.mark.parametrize("damage", ["no mark", "half a mark", "no tensors", "truncated tensors"])
def test_half_a_capture_is_none(tmp_path: Path, damage: str) -> None:
    write_capture(tmp_path, make_capture())
    if damage == "no mark":
        (tmp_path / CAPTURE_FILE).unlink()
    elif damage == "half a mark":
        (tmp_path / CAPTURE_FILE).write_text((tmp_path / CAPTURE_FILE).read_text()[:20])
    elif damage == "no tensors":
        (tmp_path / TENSORS_FILE).unlink()
    else:
        data = (tmp_path / TENSORS_FILE).read_bytes()
        (tmp_path / TENSORS_FILE).write_bytes(data[:-4])
    with pytest.raises(CaptureIncomplete):
        read_capture(tmp_path)


def test_facts_are_json(tmp_path: Path) -> None:
    write_capture(tmp_path, make_capture())
    assert json.loads((tmp_path / CAPTURE_FILE).read_text())["complete"] is True
