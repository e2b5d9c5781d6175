"""Safetensors files that lie: an error that names the file, whoever reads them, and no memory for what is not there."""

from __future__ import annotations

import contextlib
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.numpy import save

from specrunner.checks.sources import open_tensors
from specrunner.cli import main
from specrunner.comparing import read_side
from specrunner.errors import ModelUnavailable, ModelUnsupported, UsageError
from specrunner.models.checkpoint import Checkpoint

GOOD = save(
    {"logits": numpy.arange(12, dtype=numpy.float32).reshape(3, 4), "embeddings": numpy.ones((3, 2), numpy.float32)}
)


def build(header: Any, data: bytes = b"\0" * 48, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(**changes: Any) -> dict[str, Any]:
    return {"logits": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48], **changes}}


LIES = {
    "empty": b"",
    "short": b"\x01\x00",
    "the header's length beyond the file": build(entry(), length=10_000),
    "the header's length beyond memory": build(entry(), length=2**63),
    "the header's length zero": build(entry(), length=0),
    "a header of noise": build(b"\xff\xfe{{{"),
    "a header of null": build(b"null"),
    "a header that is a list": build(b"[]"),
    "a header of deep lists": build(b"[" * 100_000),
    "a header of deep objects": build(b'{"a":' * 50_000),
    "a tensor that is a number": build({"logits": 1}),
    "no dtype": build({"logits": {"shape": [12], "data_offsets": [0, 48]}}),
    "an unknown dtype": build(entry(dtype="F33")),
    "a dtype of another size": build(entry(dtype="F64")),
    "a shape of another size": build(entry(shape=[3, 5])),
    "a negative shape": build(entry(shape=[-3, -4])),
    "a shape that overflows": build(entry(shape=[2**32, 2**32, 2**32])),
    "a shape that overflows to the size": build(entry(shape=[2**62, 12])),
    "a shape of floats": build(entry(shape=[3.5, 4])),
    "offsets beyond the file": build(entry(data_offsets=[0, 4800], shape=[1200])),
    "offsets that overflow": build(entry(data_offsets=[2**64 - 48, 2**64 - 1])),
    "negative offsets": build(entry(data_offsets=[-48, 0])),
    "offsets backwards": build(entry(data_offsets=[48, 0])),
    "a hole": build(entry(data_offsets=[8, 56]), data=b"\0" * 56),
    "overlapping tensors": build({**entry(), "other": entry()["logits"]}),
    "bytes of nobody": build(entry(), data=b"\0" * 64),
    "bytes cut off": build(entry(), data=b"\0" * 40),
    "a header of 200 MB": build(b" " * (200 << 20)),
}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    (tmp_path / "good.safetensors").write_bytes(GOOD)
    return tmp_path / "good.safetensors"


@pytest.mark.parametrize("lie", LIES)
def test_a_comparison_refuses_a_file_that_lies(
    tmp_path: Path, good: Path, lie: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(LIES[lie])
    for sides in ((path, good), (good, path)):
        assert main(["compare", *map(str, sides)]) == 4
        err = capsys.readouterr().err
        assert err.startswith(f"error: {path} cannot be read: "), err
        assert "Traceback" not in err
    with pytest.raises(SafetensorError):
        open_tensors(path)


@pytest.mark.parametrize("lie", LIES)
def test_the_oracle_refuses_weights_that_lie(tmp_path: Path, lie: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(LIES[lie])
    with pytest.raises((ModelUnavailable, ModelUnsupported)):
        Checkpoint(tmp_path).read("logits", (3, 4))


def test_keys_given_twice_are_refused_or_one_tensor(tmp_path: Path) -> None:
    """Readers differ over which of two counts: none may read beyond the file."""
    text = json.dumps(entry())[1:-1].encode()
    path = tmp_path / "twice.safetensors"
    path.write_bytes(build(b"{" + text + b"," + text + b"}"))
    with contextlib.suppress(UsageError):
        assert list(read_side(str(path)).tensors) == ["logits"]


def test_numbers_that_are_not_finite_are_told(tmp_path: Path, good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = numpy.full((3, 4), numpy.nan, numpy.float32)
    (tmp_path / "nan.safetensors").write_bytes(save({"logits": values}))
    assert main(["compare", str(tmp_path / "nan.safetensors"), str(good), "--tolerance", "{logits: {sqnr: 1}}"]) == 1
    assert "NaN" in capsys.readouterr().out


def test_names_of_tensors_cannot_speak_to_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = numpy.zeros((1, 2), numpy.float32)
    names = {"\x1b[31mred": values, "::stop-commands::x": values, "a\nb": values, "##[error]x": values}
    (tmp_path / "a.safetensors").write_bytes(save(names))
    (tmp_path / "b.safetensors").write_bytes(save(names))
    assert main(["compare", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")]) == 0
    out = capsys.readouterr().out
    assert out.replace("\n", "").isprintable() and len(out.splitlines()) == 6
    assert not any(line.lstrip().startswith("::") or "##[" in line for line in out.splitlines())


@settings(max_examples=150)
@given(
    st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, 40)
)
def test_any_flipped_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(GOOD[: len(GOOD) - cut])
    for at, value in flips:
        if at < len(data):
            data[at] = value
    path = tmp_path_factory.mktemp("flip") / "model.safetensors"
    path.write_bytes(data)
    with contextlib.suppress(UsageError):
        for source in read_side(str(path)).tensors.values():
            source.rows(0, source.row_count).double().sum()
    with contextlib.suppress(ModelUnavailable, ModelUnsupported):
        Checkpoint(path.parent).read("logits", (3, 4))


def record(**changes: Any) -> bytes:
    whole = {"complete": True, "tensors": [], "tensors_bytes": 0, "prompt_token_ids": [], "output_token_ids": None}
    return json.dumps({**whole, "facts": {}, **changes}).encode()


@pytest.mark.parametrize(
    "record",
    [
        *(b"", b"[]", b"{}", b"null", b'{"complete": true}', b'{"tensors": 5}', b"\xff", b"[" * 99999),
        *(record(tensors=["logits"]), record(tensors=["logits"], tensors_bytes="x"), record(prompt_token_ids=7)),
    ],
)
def test_a_broken_capture_is_refused(
    tmp_path: Path, good: Path, record: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "capture"
    folder.mkdir()
    (folder / "capture.json").write_bytes(record)
    assert main(["compare", str(folder), str(good)]) == 4
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
def test_what_is_read_is_mapped_and_not_copied(tmp_path: Path) -> None:
    """A sparse file of 512 MB is opened and compared in their first rows with far less memory."""
    header = json.dumps({"logits": {"dtype": "F32", "shape": [1 << 17, 1024], "data_offsets": [0, 512 << 20]}}).encode()
    path = tmp_path / "large.safetensors"
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        stream.truncate(8 + len(header) + (512 << 20))
    script = (
        "import sys, resource; from specrunner.checks.sources import open_tensors\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "source = open_tensors(sys.argv[1])['logits']; source.rows(0, 8).sum()\n"
        "print(source.shape, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    shape, grown = done.stdout.strip().rsplit(" ", 1)
    assert shape == "(131072, 1024)"
    assert int(grown) < 100
