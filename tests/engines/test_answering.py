"""Requests made of plain ones - traces, probes, led runs - on an engine whose whole behaviour stands here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specrunner.engines.answering import answer_request
from specrunner.engines.base import Capabilities, Capture, Engine
from specrunner.engines.following import list_states
from specrunner.engines.probing import choose_other
from specrunner.errors import CaptureIncomplete, ModelUnsupported
from specrunner.requests import Evidence, Request, Session
from specrunner.sessions.captures import StoredCapture
from specrunner.spec.model import Decode, Model, Prompt

VOCABULARY = 50


class SmallEngine(Engine):
    """Logits of a position say the sum of what it sees; the next token is that sum modulo the vocabulary."""

    name = "small"
    sees: Callable[[int, int], bool] = staticmethod(lambda query, key: key <= query)
    layered = True
    slip: int | None = None  # the free run goes wrong at this many tokens

    @classmethod
    def capabilities(cls) -> Capabilities:
        return Capabilities(dtypes={"cpu": ("float64",)})

    def load(self) -> dict[str, Any]:
        return {}

    def capture(self, request: Request) -> Capture:
        ids = list(request.prompt.token_ids or ())
        capture = Capture(ids)
        if not self.layered and any("layers" in pattern for pattern in request.tensors):
            raise CaptureIncomplete("no layers")
        if request.tensors:
            sums = np.array([[sum(ids[k] for k in range(len(ids)) if self.sees(q, k))] for q in range(len(ids))])
            capture.tensors["logits"] = np.eye(VOCABULARY)[sums[:, 0] % VOCABULARY] + sums / 1000
            if self.layered:
                capture.tensors["layers.0.output"] = np.hstack([sums, np.ones_like(sums)]).astype(float)
        if request.decode is not None:
            known = list(ids)
            for _ in range(request.decode.max_new_tokens):
                slip = len(known) == self.slip
                known.append(sum(known) % VOCABULARY + slip)
            capture.output_token_ids = known[len(ids) :]
        return capture


def start(**changes: Any) -> SmallEngine:
    engine = type("Changed", (SmallEngine,), changes)
    session = Session("small", "none", Model(recipe="none"), "float64", "cpu")
    return engine(session, "", Path())  # type: ignore[no-any-return]


def stored(output: list[int], **facts: Any) -> StoredCapture:
    return StoredCapture(None, (), (3, 4), tuple(output), facts)


ASK = Request(Prompt(token_ids=(3, 4)), decode=Decode(4))
HONEST = start().capture(ASK).output_token_ids or []


def test_a_trace_gives_the_logits_that_chose_each_token() -> None:
    capture = answer_request(start(), Request(ASK.prompt, decode=Decode(4), trace=True))
    assert capture.output_token_ids == HONEST
    assert capture.tensors["steps.logits"].shape == (4, VOCABULARY)
    assert capture.tensors["steps.logits"].argmax(1).tolist() == HONEST


def lead(engine: Engine, followed: StoredCapture, how: str = "tokens") -> Capture:
    request = Request(ASK.prompt, decode=ASK.decode, follow=Evidence("s", "r"), lead=how)
    return answer_request(engine, request, followed)


def test_an_equal_run_is_one_segment() -> None:
    capture = lead(start(), stored(HONEST))
    assert capture.facts["segments"] == [{"start": 0, "token_ids": HONEST}]
    assert not capture.tensors


def test_behind_a_mismatch_the_run_goes_on_from_the_references_tokens() -> None:
    capture = lead(start(slip=3), stored(HONEST))
    first, second = capture.facts["segments"]
    assert (first["start"], first["token_ids"][0], first["token_ids"][1]) == (0, HONEST[0], HONEST[1] + 1)
    assert second == {"start": 2, "token_ids": HONEST[2:]}
    assert capture.output_token_ids == first["token_ids"]
    assert capture.tensors["steps.1.logits"].argmax() == HONEST[1]


def test_a_mismatch_at_the_end_needs_no_further_run() -> None:
    capture = lead(start(slip=5), stored(HONEST))
    assert capture.facts["segments"][-1] == {"start": 4, "token_ids": []}


def test_every_state_of_the_reference_is_visited() -> None:
    trajectory = [
        {"block_start": 0, "tokens_before": [3, 4, 9, 9], "accepted": [3], "accepted_token_ids": [7]},
        {"block_start": 0, "tokens_before": [3, 4, 9, 7], "accepted": [2], "accepted_token_ids": [6]},
        {"block_start": 4, "tokens_before": [9, 9], "accepted": [4, 5], "accepted_token_ids": [1, 2]},
    ]
    assert list_states([3, 4], trajectory) == [[3, 4, 9, 9], [3, 4, 9, 7], [3, 4, 6, 7, 9, 9]]
    capture = lead(start(), stored([6, 7, 1, 2], trajectory=trajectory), "passes")
    assert {name: tensor.shape for name, tensor in capture.tensors.items()} == {
        "steps.0.logits": (4, VOCABULARY),
        "steps.1.logits": (4, VOCABULARY),
        "steps.2.logits": (2, VOCABULARY),
    }


@pytest.mark.parametrize("layered", [True, False])
def test_a_probe_shows_who_sees_whom(layered: bool) -> None:
    sees = staticmethod(lambda query, key: key // 2 <= query // 2)
    request = Request(Prompt(token_ids=(3, 8, 5, 1, 9)), probe=True)
    capture = answer_request(start(sees=sees, layered=layered), request)
    expected = [[key // 2 <= query // 2 for key in range(5)] for query in range(5)]
    assert ("probe.layers.0.output" in capture.tensors) is layered
    assert (capture.tensors["probe.logits"] > 0).tolist() == expected
    assert capture.tensors["probe.noise.logits"].tolist() == [0.0] * 5
    assert capture.facts["probe_forwards"] == 8


@pytest.mark.parametrize(("ids", "place", "other"), [
    ([5, 6], 0, 6), ([5, 6], 1, 5), ([5, 5, 7], 0, 7), ([5, 5], 0, 4), ([0], 0, 1),
])  # fmt: skip
def test_the_exchanged_token_is_another_one(ids: list[int], place: int, other: int) -> None:
    assert choose_other(ids, place) == other


def test_an_engine_that_cannot_be_led_says_so() -> None:
    with pytest.raises(ModelUnsupported, match="cannot feed its layers"):
        start().capture_led(ASK, {}, routing=False)
    with pytest.raises(ModelUnsupported, match="no tensors to lead"):
        lead(start(), stored(HONEST), "inputs")
