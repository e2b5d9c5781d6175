"""The capture extension's parts, on models small enough to calculate by hand."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from specrunner.engines.hooks import Geometry
from specrunner.engines.module_index import ModuleIndex
from specrunner.engines.name_maps import Entry, HookPoint, NameMap
from specrunner.engines.vllm.subject import keep_chunks
from specrunner.engines.vllm.worker import (
    QuietRecorder,
    attention_windows,
    drop_causality,
    hand_over,
    join_chunks,
    keep_request,
    list_requests,
    take_tensors,
)
from specrunner.errors import CaptureIncomplete

GEOMETRY = Geometry(heads=2, kv_heads=1, head_dim=2)
NO_MAP = NameMap("vllm", "x", (), "n", {})


class Router:
    """Not a module, like vLLM's."""

    def select_experts(self, hidden_states: torch.Tensor, router_logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return hidden_states * 2, router_logits.argmax(-1)


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router = Router()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        weights, _ = self.router.select_experts(hidden_states=hidden, router_logits=hidden + 1)
        return weights


class Layer(nn.Module):
    """Returns (hidden, residual) and overwrites both afterwards, as fused kernels do."""

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return hidden, hidden * 10


def test_a_residual_is_added_and_survives_what_overwrites_it() -> None:
    model = nn.Sequential(Layer())
    entry = Entry(module="0", sum=(0, 1))
    recorder = QuietRecorder(ModuleIndex(model, NO_MAP, 0), [HookPoint("layers.0.output", "0", entry)], GEOMETRY)
    hidden, residual = model(torch.ones(3, 4))
    hidden.zero_()
    residual.zero_()
    assert torch.equal(recorder.take()["layers.0.output"][0], torch.full((3, 4), 11.0))


def test_a_method_of_an_attribute_is_read_on_both_sides_and_restored() -> None:
    model = nn.Sequential(Experts())
    method = "router.select_experts"
    points = [
        HookPoint("layers.0.router.logits", "0", Entry(module="0", method=method, of="input", index=1)),
        HookPoint("layers.0.router.expert_weights", "0", Entry(module="0", method=method, index=0)),
    ]
    recorder = QuietRecorder(ModuleIndex(model, NO_MAP, 0), points, GEOMETRY)
    model(torch.ones(2, 2))
    records = recorder.take()
    assert torch.equal(records["layers.0.router.logits"][0], torch.full((2, 2), 2.0))
    assert torch.equal(records["layers.0.router.expert_weights"][0], torch.full((2, 2), 2.0))
    recorder.remove()
    model(torch.ones(2, 2))
    assert recorder.take() == {}


def test_a_failing_hook_does_not_break_the_forward() -> None:
    model = nn.Sequential(nn.Identity())
    point = HookPoint("layers.0.attention.query", "0", Entry(module="0", part="query"))
    recorder = QuietRecorder(ModuleIndex(model, NO_MAP, 0), [point], GEOMETRY)
    model(torch.ones(2, 5))
    assert recorder.error is not None
    assert "5 columns, expected 8" in recorder.error


def test_chunks_are_joined_along_the_tokens_whatever_the_layout() -> None:
    heads = [torch.zeros(4, 2, 3), torch.ones(1, 2, 3)]
    joined = join_chunks(heads)
    assert joined.shape == (5, 6)
    assert joined[4].eq(1).all()
    assert join_chunks([torch.zeros(3, 2)]).shape == (3, 2)


def test_what_is_recorded_in_inference_mode_can_be_handed_over_without_a_copy() -> None:
    model = nn.Sequential(nn.Identity())
    recorder = QuietRecorder(ModuleIndex(model, NO_MAP, 0), [HookPoint("embeddings", "0", Entry(module="0"))], GEOMETRY)
    with torch.inference_mode():
        model(torch.ones(2, 2))
    taken = recorder.take()["embeddings"][0]
    hand_over({"embeddings": taken}, "nowhere", os.getpid())
    assert take_tensors("nowhere")["embeddings"].data_ptr() == taken.data_ptr()


def test_the_metadata_of_a_batch_stops_being_causal() -> None:
    seen: list[Any] = []

    class Builder:
        def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> str:
            seen.append((common_prefix_len, common_attn_metadata.causal, fast_build))
            return "metadata"

    builder = Builder()
    drop_causality(builder)
    built = builder.build(common_prefix_len=3, common_attn_metadata=SimpleNamespace(causal=True), fast_build=True)
    assert built == "metadata"
    assert seen == [(3, False, True)]


def test_windows_are_read_off_the_attention_layers() -> None:
    layers = {
        "a": SimpleNamespace(impl=SimpleNamespace(sliding_window=16)),
        "b": SimpleNamespace(impl=SimpleNamespace(sliding_window=-1)),
        "c": SimpleNamespace(impl=SimpleNamespace(sliding_window=None)),
        "d": SimpleNamespace(),
        "e": SimpleNamespace(impl=SimpleNamespace(sliding_window=(127, 0))),
    }
    config = SimpleNamespace(compilation_config=SimpleNamespace(static_forward_context=layers))
    assert attention_windows(config) == {"a": 16, "e": 127}


def test_one_requests_rows_are_cut_out_of_packed_forwards() -> None:
    layouts = [{"first": 2, "second": 3}, {"second": 1, "first": 2}, {"second": 1}]
    chunks = [torch.arange(5.0)[:, None], torch.arange(5.0, 8)[:, None], torch.arange(8.0, 9)[:, None]]
    assert list_requests(layouts) == ["first", "second"]
    rows = [torch.cat(keep_request({"x": chunks}, layouts, number)["x"]).flatten().tolist() for number in (0, 1)]
    assert rows == [[0.0, 1.0, 6.0, 7.0], [2.0, 3.0, 4.0, 5.0, 8.0]]
    with pytest.raises(CaptureIncomplete, match="x has 4 rows for 5 tokens of a batch"):
        keep_request({"x": [chunks[0][:4]]}, layouts[:1], 0)


def test_a_lone_request_is_not_prefilled_in_a_hurry() -> None:
    class Scheduler:
        def get_request_counts(self) -> tuple[int, int]:
            return 1, 0

        def schedule(self) -> tuple[int, int]:
            return self.get_request_counts()

    scheduler = Scheduler()
    keep_chunks(scheduler)
    assert (scheduler.schedule(), scheduler.get_request_counts()) == ((1, 1), (1, 0))


def test_tensors_reach_the_adapter_through_memory_or_a_file(tmp_path: Path) -> None:
    with torch.inference_mode():
        buffer = torch.arange(6.0).reshape(2, 3)
    for caller, files in ((os.getpid(), []), (-1, ["c.0"])):
        hand_over({"logits": buffer[:1]}, str(tmp_path / "c.0"), caller)
        assert [file.name for file in tmp_path.iterdir()] == files
        taken = take_tensors(str(tmp_path / "c.0"))["logits"]
        assert taken.tolist() == [[0.0, 1.0, 2.0]]
        assert taken.untyped_storage().nbytes() == 12, "nothing of a larger buffer is kept alive"
        taken += 1  # not one of inference mode
        assert buffer[0, 0] == 0
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(FileNotFoundError):
            take_tensors(str(tmp_path / "c.0"))
