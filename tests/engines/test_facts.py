"""What adapters state in the same words, and which files of a checkpoint are which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from specrunner.engines.base import list_forward_patterns
from specrunner.engines.checkpoint_digest import describe_checkpoint
from specrunner.engines.checkpoint_files import TOKENIZER, VOCABULARIES, has_tokenizer, list_weights
from specrunner.engines.facts import describe_device, list_ids, make_plain
from specrunner.errors import ModelUnsupported
from specrunner.requests import Request
from specrunner.sessions.sizes import measure_weights
from specrunner.spec.model import Decode, Prompt


@pytest.mark.parametrize(("stated", "ids"), [(None, set()), (7, {7}), ([7, 2, 7], {2, 7}), ((3,), {3}), ([], set())])
def test_token_ids_are_stated_as_one_or_several(stated: Any, ids: set[int]) -> None:
    assert list_ids(stated) == ids


def test_a_value_that_json_lacks_becomes_its_text() -> None:
    circle: list[Any] = []
    circle.append(circle)
    assert make_plain({"a": [1, None]}) == {"a": [1, None]}
    assert make_plain(torch.float32) == "torch.float32"
    assert make_plain(circle) == "[[...]]"


def test_a_cpu_is_called_by_its_type() -> None:
    assert describe_device("cpu") == describe_device(torch.device("cpu")) == "cpu"


def test_passes_are_no_patterns_of_a_forward_and_need_a_decode() -> None:
    prompt = Prompt(token_ids=(1,))
    decode = Decode(algorithm="low_confidence", max_new_tokens=1)
    wanted = ("logits", "passes.*.logits")
    assert list_forward_patterns(Request(prompt, tensors=wanted, decode=decode)) == ("logits",)
    assert list_forward_patterns(Request(prompt, tensors=("logits",))) == ("logits",)
    with pytest.raises(ModelUnsupported, match="come from a decode"):
        list_forward_patterns(Request(prompt, tensors=wanted))


@pytest.mark.parametrize("name", VOCABULARIES)
def test_each_kind_of_tokenizer_is_found_and_digested(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("a b")
    assert not has_tokenizer(tmp_path)
    before = describe_checkpoint(tmp_path)["tokenizer_digest"]
    (tmp_path / name).write_text("{}")
    assert has_tokenizer(tmp_path)
    assert describe_checkpoint(tmp_path)["tokenizer_digest"] != before
    assert name in TOKENIZER


@pytest.mark.parametrize("extension", [".safetensors", ".bin", ".gguf", ".pt", ".pth"])
def test_weights_of_every_kind_are_listed_and_weighed(tmp_path: Path, extension: str) -> None:
    (tmp_path / f"b{extension}").write_bytes(b"x" * 100)
    (tmp_path / f"a{extension}").write_bytes(b"x")
    (tmp_path / f"folder{extension}").mkdir()
    (tmp_path / "notes.txt").write_text("no weights")
    assert [file.name for file in list_weights(tmp_path)] == [f"a{extension}", f"b{extension}"]
    assert describe_checkpoint(tmp_path)["weights_bytes"] == 101
    assert measure_weights(tmp_path) == 101
