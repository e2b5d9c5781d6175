"""The large random LLaDA2: the tensors of the architecture, mini's sizes, the values of bfloat16."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from specrunner.models.random_llada2 import MINI, SHIPPED, draw_rows, list_tensors, write_config, write_shard


def test_it_has_the_tensors_of_the_architecture() -> None:
    """The shipped checkpoint, trained from the modeling files, has the same names and shapes at its own sizes."""
    config = json.loads((SHIPPED / "config.json").read_text())
    with safe_open(SHIPPED / "model.safetensors", "pt") as weights:
        shipped = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    assert {name: shape for name, shape, _, _ in list_tensors(config, config["num_hidden_layers"])} == shipped


def test_it_has_the_sizes_of_mini() -> None:
    """20 layers are 16.3 billion parameters, which the model card calls 16B; 2 are 1.5 billion."""

    def count(layers: int) -> int:
        return sum(math.prod(shape) for _, shape, _, _ in list_tensors(MINI, layers))

    assert round(count(20) / 1e9, 1) == 16.3
    assert round(count(2) / 1e9, 2) == 1.51


def test_the_config_is_the_tiny_one_but_for_what_mini_states(tmp_path: Path) -> None:
    write_config(tmp_path, MINI)
    written = json.loads((tmp_path / "config.json").read_text())
    shipped = json.loads((SHIPPED / "config.json").read_text())
    assert set(written) == set(shipped)
    assert {key for key in shipped if written[key] != shipped[key]} <= {*MINI, "num_hidden_layers", "max_window_layers"}
    assert (tmp_path / "modeling_llada2_moe.py").is_file()


def test_a_shard_is_what_safetensors_reads_rounded_to_nearest_even(tmp_path: Path) -> None:
    draws = [("a.weight", (37, 24), 0.5, 0.0), ("b.bias", (5,), 0.2, 1.0)]
    write_shard(tmp_path / "x.safetensors", draws)
    read = load_file(tmp_path / "x.safetensors")
    assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in read.items()} == {
        "a.weight": ((37, 24), torch.bfloat16),
        "b.bias": ((5,), torch.bfloat16),
    }
    assert read["a.weight"].float().std().item() == pytest.approx(0.5, rel=0.1)
    assert read["b.bias"].float().mean().item() == pytest.approx(1.0, abs=0.4)


def test_the_values_do_not_depend_on_the_pieces() -> None:
    draw = ("a.weight", (40, 8), 1.0, 0.0)
    whole, pieces = (b"".join(part.tobytes() for part in draw_rows(draw, values)) for values in (1 << 20, 24))
    assert whole == pieces


def test_rounding_agrees_with_torch() -> None:
    draw = ("a.weight", (64, 64), 1.7, 0.3)
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(b"a.weight")))
    wide = generator.standard_normal((64, 64), dtype=np.float32) * np.float32(1.7) + np.float32(0.3)
    bits = np.concatenate(list(draw_rows(draw)))
    assert np.array_equal(bits, torch.from_numpy(wide).bfloat16().view(torch.int16).numpy().view(np.uint16))
