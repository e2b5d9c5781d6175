"""A session that is forked off an imported engine computes what one does that imported the engine itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from specrunner.engines.base import Engine
from specrunner.engines.hf.adapter import HfEngine
from specrunner.engines.sglang.adapter import SglangEngine
from specrunner.engines.vllm.adapter import VllmEngine
from specrunner.spec.model import Decode, Prompt
from tests.engines.served import ALL, Served, find_python

DECODES = {
    "glass-0.8m": Decode(algorithm="greedy", max_new_tokens=6),
    "tiny-llada2": Decode(algorithm="low_confidence", max_new_tokens=32, block_length=16, threshold=0.9),
}
ENGINES = [
    pytest.param(HfEngine, "glass-0.8m", marks=pytest.mark.slow),
    pytest.param(HfEngine, "tiny-llada2", marks=pytest.mark.slow),
    pytest.param(VllmEngine, "glass-0.8m", marks=[pytest.mark.vllm, pytest.mark.timeout(1800)]),
    pytest.param(SglangEngine, "tiny-llada2", marks=[pytest.mark.sglang, pytest.mark.timeout(1800)]),
]
"""One model an engine, where an import takes a quarter of a minute: SGLang's is the one that forks processes, too."""


@pytest.mark.parametrize(("kind", "model"), ENGINES)
def test_forked_and_started_sessions_compute_the_same_bits(kind: type[Engine], model: str, tmp_path: Path) -> None:
    if find_python(kind) is None:
        pytest.skip(f"there is no environment for {kind.name}: specrunner engines install {kind.name}")
    prompt = Prompt(token_ids=tuple(range(3, 35)))
    found = []
    for fresh in (False, True):
        workspace = tmp_path / f"fresh-{fresh}"
        workspace.mkdir()
        served = Served(kind, model, workspace, fresh=fresh, num_threads=2)  # threads are what a fork could break
        try:
            parent = int(Path(f"/proc/{served.worker.pid}/stat").read_text().rpartition(")")[2].split()[1])
            assert (parent == os.getpid()) is fresh
            stored = served.ask(prompt, (), DECODES[model])
            found.append((served.tensors(prompt, ALL), stored.output_token_ids, served.facts["versions"]))
        finally:
            served.worker.close()
    (forked, *rest), (started, *expected) = found
    assert rest == expected
    assert forked.keys() == started.keys() and forked
    for name, tensor in started.items():
        assert torch.equal(forked[name].view(torch.uint8), tensor.view(torch.uint8)), name
