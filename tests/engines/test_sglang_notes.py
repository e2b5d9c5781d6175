"""Orders and notes between the adapter and the process with SGLang's model, and tensors made of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from specrunner.engines.sglang.adapter import count_together
from specrunner.engines.sglang.failures import explain_failure
from specrunner.engines.sglang.notes import (
    Mailbox,
    Note,
    Order,
    assemble_tensors,
    check_notes,
    failure_note,
)
from specrunner.engines.sglang.plugin import find_rows
from specrunner.errors import (
    CaptureIncomplete,
    EngineError,
    EngineOutOfMemory,
    ModelUnavailable,
    ModelUnsupported,
)

DESCRIBED = {"kv_heads": 1}


def prompt_note(start: int, tensors: dict[str, torch.Tensor], gather: str | None = None) -> Note:
    points = [[name, f"module.of.{name}", gather] for name in tensors]
    rows = len(next(iter(tensors.values())))
    return Note("prompt", {"start": start, "rows": rows, "points": points}, tensors)


def test_an_order_reaches_the_other_side(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    ours, theirs = Mailbox(tmp_path), Mailbox(tmp_path)
    assert theirs.read_order() is None
    for number in (1, 2):
        order = Order(number, ("logits",), 7, threshold=0.95)
        ours.put_order(order)
        assert theirs.read_order() == order


def test_notes_come_back_by_rank_and_in_order(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    ours, ranks = Mailbox(tmp_path), [Mailbox(tmp_path), Mailbox(tmp_path)]
    order = Order(3, ("*",), 4)
    ours.put_order(order)
    for index, rank in enumerate(ranks):
        rank.read_order()
        rank.write_note(prompt_note(0, {"logits": torch.full((2, 3), float(index))}), index)
        rank.write_note(Note("pass", {"block_start": 0}), index)
    notes = ours.take_notes(order)
    assert [[note.kind for note in rank] for rank in notes] == [["prompt", "pass"]] * 2
    assert [float(rank[0].tensors["logits"][0, 0]) for rank in notes] == [0.0, 1.0]
    assert ours.take_notes(order) == []


@pytest.mark.parametrize(
    ("patterns", "wanted"),
    [((), False), (("embeddings",), False), (("logits",), True), (("**",), True), (("l*",), True)],
)
def test_logits_are_computed_when_a_pattern_selects_them(patterns: tuple[str, ...], wanted: bool) -> None:
    assert Order(1, patterns, 1).wants_logits is wanted


def test_chunks_become_one_row_a_token() -> None:
    rows = torch.arange(10.0).reshape(5, 2)
    notes = [[prompt_note(0, {"logits": rows[:3]}), Note("pass", {}), prompt_note(3, {"logits": rows[3:]})]]
    assert torch.equal(assemble_tensors(notes, ("logits",), 5, DESCRIBED)["logits"], rows)


@pytest.mark.parametrize(
    ("starts", "said"),
    [
        ((3,), "began at token 3, where 0"),
        ((0, 2), "began at token 2, where 3"),
        ((0,), "3 tokens were seen for a prompt of 6"),
    ],
)
def test_tokens_that_no_forward_computed_are_an_error(starts: tuple[int, ...], said: str) -> None:
    notes = [[prompt_note(start, {"logits": torch.ones(3, 2)}) for start in starts]]
    with pytest.raises(CaptureIncomplete, match=said):
        assemble_tensors(notes, ("logits",), 6, DESCRIBED)


def test_a_hook_that_did_not_fire_is_an_error() -> None:
    note = prompt_note(0, {"logits": torch.ones(3, 2)})
    note.facts["points"].append(["final_norm", "model.norm", None])
    with pytest.raises(CaptureIncomplete, match=r"hook on model\.norm for final_norm did not fire"):
        assemble_tensors([[note]], ("logits", "final_norm"), 3, DESCRIBED)


def test_no_note_at_all_is_an_error() -> None:
    for notes in ([], [[]], [[Note("pass", {})]]):
        with pytest.raises(CaptureIncomplete, match="did not fire"):
            check_notes(notes)


def test_a_failure_in_the_other_process_is_raised_here() -> None:
    note = failure_note(ModelUnsupported("whole blocks only", help="pad it"))
    with pytest.raises(ModelUnsupported, match="whole blocks only") as caught:
        check_notes([[note]])
    assert caught.value.help == "pad it"


def test_keys_of_replicated_heads_are_taken_once() -> None:
    key = "layers.0.attention.key"
    notes = [[prompt_note(0, {key: torch.ones(2, 4), "logits": torch.ones(2, 4)}, "columns")] for _ in range(2)]
    tensors = assemble_tensors(notes, ("**", "logits"), 2, DESCRIBED)
    assert tensors[key].shape == (2, 4)
    assert tensors["logits"].shape == (2, 8)


@pytest.mark.parametrize(
    ("name", "text", "kind", "said"),
    [
        (
            "RuntimeError",
            "[enforce fail] DefaultCPUAllocator: can't allocate memory",
            EngineOutOfMemory,
            "out of memory",
        ),
        ("RuntimeError", "Not enough memory. Please try to increase", EngineOutOfMemory, "out of memory"),
        ("OutOfMemoryError", "CUDA out of memory. Tried", EngineOutOfMemory, "out of memory"),
        ("SafetensorError", "header too large", ModelUnavailable, "header too large"),
        ("OSError", "no file named x", ModelUnavailable, "no file"),
        (
            "ValueError",
            "Model architectures ['X'] are not supported for now. Supported: a",
            ModelUnsupported,
            "for now",
        ),
        ("TypeError", "got an unexpected keyword argument 'wrong'", ModelUnsupported, "'wrong'"),
        ("ValueError", "pass `trust_remote_code=True`", ModelUnsupported, "code of its own"),
        ("RuntimeError", "\n\nthe kernel went away\nat line 5", EngineError, "the kernel went away"),
    ],
)
def test_failures_become_one_line_of_the_right_kind(
    name: str, text: str, kind: type[EngineError], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specrunner.engines.sglang.failures.version", lambda _package: "0.5.23")
    error = explain_failure("load the model", name, text)
    assert type(error) is kind
    assert said in error.message
    assert "\n" not in error.message


def make_shared_model(layers: int) -> Any:
    class Rotary(torch.nn.Module):
        def forward(self, query: torch.Tensor) -> torch.Tensor:
            return query.mul_(-1)

    class Layer(torch.nn.Module):
        def __init__(self, rotary: torch.nn.Module, scale: float) -> None:
            super().__init__()
            self.rotary, self.scale = rotary, scale

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden + 0 * self.rotary(hidden * self.scale)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            rotary = Rotary()
            self.layers = torch.nn.ModuleList(Layer(rotary, 10.0**index) for index in range(layers))

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                hidden = layer(hidden)
            return hidden

    return Model()


def test_one_module_in_all_layers_is_read_layer_by_layer_before_it_overwrites_its_input() -> None:
    from specrunner.engines.hooks import Geometry, Recorder
    from specrunner.engines.module_index import ModuleIndex
    from specrunner.engines.name_maps import Entry, HookPoint, NameMap

    model = make_shared_model(3)
    entry = Entry(module="layers.{i}.rotary", of="input", index=0)
    points = [HookPoint(f"layers.{layer}.attention.query", f"layers.{layer}.rotary", entry) for layer in (0, 2)]
    recorder = Recorder(ModuleIndex(model, NameMap("sglang", "x", (), "n", {}), 0), points, Geometry(1, 1, 1))
    for _forward in range(2):
        model(torch.ones(1, 1))
    records = recorder.take()
    assert [float(value) for value in records["layers.0.attention.query"]] == [1.0, 1.0]
    assert [float(value) for value in records["layers.2.attention.query"]] == [100.0, 100.0]


def test_the_judged_requests_rows_of_a_batch() -> None:
    batch = SimpleNamespace(input_ids=torch.zeros(9), rids=["b", "a"], extend_seq_lens_cpu=[4, 5])
    alone, judged, absent = (Order(1, (), 4, judged=name) for name in (None, "a", "c"))
    assert (find_rows(alone, batch), find_rows(judged, batch), find_rows(absent, batch)) == (
        slice(0, 9),
        slice(4, 9),
        None,
    )
    assert [alone.request_ids(0), judged.request_ids(0), judged.request_ids(2)] == ["1", "a", "a-2"]


def test_company_has_to_be_seen() -> None:
    notes = [[Note("pass", {"requests": 3}), Note("refresh", {}), Note("pass", {"requests": 1})]]
    assert (count_together(notes), count_together([])) == (1, 0)
    with pytest.raises(CaptureIncomplete, match="one after the other"):
        count_together([[Note("pass", {"requests": 1})]])
