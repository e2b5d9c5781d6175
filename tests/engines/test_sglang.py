"""SGLang for real, in its own environment, over the protocol that a run uses.

They run under the interpreter that a run would take (`specrunner engines install sglang`) and are skipped without one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import specrunner
from specrunner.engines.hf import HfEngine
from specrunner.engines.oracle import OracleEngine
from specrunner.engines.questions import answer_questions
from specrunner.engines.sglang import SglangEngine
from specrunner.errors import (
    CaptureIncomplete,
    EngineError,
    EngineOutOfMemory,
    EngineTimeout,
    ModelUnavailable,
    ModelUnsupported,
    WorkerDied,
)
from specrunner.models.recipes import ensure_model
from specrunner.requests import Request, Session
from specrunner.sessions.process import find_marked
from specrunner.spec.model import Decode, Model, Prompt
from specrunner.spec.tensor_names import is_auxiliary, model_order
from tests.engines.asked import LONG_ANSWER, find_stop, masked_questions, scored_questions
from tests.engines.served import ALL, Serve, Served, find_python, keep_sessions
from tests.waiting import wait_for

PYTHON = find_python(SglangEngine)
pytestmark = [
    pytest.mark.sglang,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not PYTHON, reason="sglang is not installed: specrunner engines install sglang"),
]

LENGTHS = (1, 2, 3, 5, 7, 8, 13, 15, 16, 17, 21, 24, 31, 32, 33, 40, 47, 48, 63, 64, 65, 96)
MASK = 257
BLOCK = 16


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Sessions of SGLang, loaded once where they can be."""
    with keep_sessions(SglangEngine, tmp_path_factory) as keep:
        yield keep


def difference(candidate: torch.Tensor, reference: torch.Tensor | np.ndarray) -> float:
    """Relative distance of two tensors, by Frobenius norms."""
    wide = torch.as_tensor(reference).double()
    assert candidate.shape == wide.shape
    return float((candidate.double() - wide).norm() / wide.norm())


def first_wrong(candidate: Mapping[str, torch.Tensor], reference: Mapping[str, Any], bound: float) -> str:
    """Return the first tensor, in the model's order, that is off by more than `bound`, or ""."""
    names = sorted((name for name in reference if not is_auxiliary(name)), key=model_order)
    return next((name for name in names if difference(candidate[name], reference[name]) > bound), "")


def greedy(tokens: int) -> Decode:
    return Decode(max_new_tokens=tokens)


def numbers(length: int, below: int = 300) -> Prompt:
    return Prompt(token_ids=tuple((7 * i * i + 3 * i + 5) % below for i in range(length)))


def wait_for_end(served: Served) -> None:
    """Wait until no process of a session is left."""
    wait_for(lambda: served.processes() == {}, "every process of the session is gone")


class TestGlass:
    """A real Llama in one process: tokens, logits and layers as Transformers has them."""

    def test_what_really_ran_is_stated(self, serve: Serve) -> None:
        facts = serve("glass-0.8m").facts
        assert facts["model_class"] == "sglang.srt.models.llama.LlamaForCausalLM"
        assert facts["attention_backend"] == "TorchNativeAttnBackend"
        assert (facts["mode"], facts["dtype"], facts["patches"]) == ("runner", "float32", [])
        assert set(facts["versions"]) >= {"sglang", "torch", "transformers"}
        assert facts["environment"]["SGLANG_USE_CPU_ENGINE"] == "1"

    def test_one_process_is_enough(self, serve: Serve) -> None:
        commands = serve("glass-0.8m").processes().values()
        found = [command for command in commands if "resource_tracker" not in command]
        assert len(found) == 2, "the worker and its guardian"

    def test_text_becomes_the_same_tokens(self, serve: Serve, start: Any) -> None:
        prompt = Prompt(text="Once upon a time there was a little girl.")
        reference = start(HfEngine, "glass-0.8m").capture(Request(prompt, ("embeddings",)))
        assert list(serve("glass-0.8m").ask(prompt, ("embeddings",)).prompt_token_ids) == reference.prompt_token_ids

    def test_twenty_prompts_give_the_same_tokens(self, serve: Serve, start: Any) -> None:
        engine, served = start(HfEngine, "glass-0.8m"), serve("glass-0.8m")
        for length in LENGTHS:
            ours = served.ask(numbers(length), decode=greedy(16))
            reference = engine.capture(Request(numbers(length), decode=greedy(16)))
            assert list(ours.output_token_ids or ()) == reference.output_token_ids

    def test_every_tensor_is_there_and_right(self, serve: Serve, start: Any) -> None:
        for length in (1, 2, 60):
            reference = start(HfEngine, "glass-0.8m").capture(Request(numbers(length), ALL)).tensors
            tensors = serve("glass-0.8m").tensors(numbers(length))
            assert set(tensors) == set(reference)
            assert first_wrong(tensors, reference, 1e-5) == ""

    def test_a_prompt_one_token_off_is_seen(self, serve: Serve, start: Any) -> None:
        reference = start(HfEngine, "glass-0.8m").capture(Request(numbers(20), ALL)).tensors
        shifted = Prompt(token_ids=(*(numbers(20).token_ids or ())[1:], 5))
        assert first_wrong(serve("glass-0.8m").tensors(shifted), reference, 1e-5) == "embeddings"

    def test_only_what_was_asked_for_comes_back(self, serve: Serve) -> None:
        names = set(serve("glass-0.8m").tensors(numbers(4), ("layers.1.output", "logits")))
        assert names == {"layers.1.output", "logits"}

    def test_a_benchmarks_questions_are_answered_as_by_transformers(self, serve: Serve, start: Any) -> None:
        engine, served = start(HfEngine, "glass-0.8m"), serve("glass-0.8m")
        questions = scored_questions()
        for ours, reference in zip(served.answer(questions), answer_questions(engine, questions, None), strict=True):
            assert ours["logprob"] == pytest.approx(reference["logprob"], abs=1e-3)
            assert ours["greedy"] == reference["greedy"]
        prompt = list(numbers(24).token_ids or ())
        whole, stop = find_stop(engine, prompt, greedy(48))
        question = {"prompt": prompt, "max_new_tokens": 48, "stop": [stop]}
        (early,) = served.answer([question])
        assert answer_questions(engine, [question], None) == [early]
        assert len(early["token_ids"]) < len(whole) and whole[: len(early["token_ids"])] == early["token_ids"]

    @pytest.mark.parametrize(
        ("prompt", "tensors", "decode", "kind", "said"),
        [
            (numbers(200), ("logits",), None, ModelUnsupported, "room for 128"),
            (numbers(100), (), greedy(64), ModelUnsupported, "room for 128"),
            (Prompt(token_ids=(1, 10**6)), ("logits",), None, ModelUnsupported, "outside the vocabulary"),
            (numbers(4), ("layers.0.router.logits",), None, CaptureIncomplete, "no tensor of this model matches"),
            (numbers(4), ("layers.99.output",), None, CaptureIncomplete, "no tensor of this model matches"),
            (numbers(4), ("passes.0.logits",), None, ModelUnsupported, "come from a decode"),
            (numbers(4), (), Decode(4, "low_confidence", BLOCK), ModelUnsupported, "decodes by greedy"),
        ],
    )
    def test_a_refused_request_costs_no_other(
        self,
        serve: Serve,
        prompt: Prompt,
        tensors: tuple[str, ...],
        decode: Decode | None,
        kind: type[EngineError],
        said: str,
    ) -> None:
        served = serve("glass-0.8m")
        with pytest.raises(kind, match=said):
            served.ask(prompt, tensors, decode)
        assert set(served.tensors(numbers(3), ("logits",))) == {"logits"}


def test_the_full_engine_gives_the_same(serve: Serve, start: Any) -> None:
    served = serve("glass-0.8m", specrunner_mode="engine", chunked_prefill_size=32)
    assert (served.facts["mode"], served.facts["patches"]) == ("engine", [])
    assert len(served.processes()) >= 3
    reference = start(HfEngine, "glass-0.8m").capture(Request(numbers(100), ALL, greedy(16)))
    answer = served.ask(numbers(100), ALL, greedy(16))
    assert list(answer.output_token_ids or ()) == reference.output_token_ids
    assert answer.tensors_path is not None
    tensors = load_file(answer.tensors_path)
    assert set(tensors) == set(reference.tensors)
    assert first_wrong(tensors, reference.tensors, 1e-5) == ""


def test_refusals_of_the_full_engine_cost_no_other_request(serve: Serve) -> None:
    served = serve("glass-0.8m", specrunner_mode="engine", chunked_prefill_size=32)
    for prompt, tensors, kind in (
        (numbers(200), ("logits",), ModelUnsupported),
        (numbers(4), ("layers.0.router.logits",), CaptureIncomplete),
    ):
        with pytest.raises(kind):
            served.ask(prompt, tensors)
    with pytest.raises(ModelUnsupported, match="100 prompt tokens and 27 new ones are more than sglang's room for 128"):
        served.ask(numbers(100), decode=Decode(27, ignore_eos=True))
    assert len(served.ask(numbers(100), decode=Decode(26, ignore_eos=True)).output_token_ids or ()) == 26
    assert set(served.tensors(numbers(3), ("logits",))) == {"logits"}


def test_tokens_that_a_limit_of_sglangs_own_cuts_off_are_an_error(serve: Serve) -> None:
    limit = {"SGLANG_MAX_NEW_TOKENS_LIMIT": "4"}
    served = serve("glass-0.8m", specrunner_mode="engine", specrunner_environment=limit)
    assert len(served.ask(numbers(8), decode=Decode(4, ignore_eos=True)).output_token_ids or ()) == 4
    with pytest.raises(CaptureIncomplete, match="sglang ended at 4 tokens of 8"):
        served.ask(numbers(8), decode=Decode(8, ignore_eos=True))


def test_an_engine_without_work_takes_no_processor(serve: Serve) -> None:
    served = serve("glass-0.8m", specrunner_mode="engine", chunked_prefill_size=32)
    served.ask(numbers(4), ("logits",))

    def used() -> float:
        """Processor seconds of all processes of the session."""
        fields = [
            (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split() for pid in served.processes()
        ]
        return sum(int(one[11]) + int(one[12]) for one in fields) / os.sysconf("SC_CLK_TCK")

    before, began = used(), time.monotonic()
    wait_for(lambda: time.monotonic() - began > 3, "three seconds have passed")
    assert used() - before < 0.5 * (time.monotonic() - began)


def test_a_hang_ends_with_all_processes(serve: Serve) -> None:
    served = serve("glass-0.8m", specrunner_mode="engine", chunked_prefill_size=32)
    scheduler = next(pid for pid, command in served.processes().items() if "scheduler" in command)
    assert scheduler in find_marked(served.mark), "its title leaves the mark alone"
    os.kill(scheduler, signal.SIGSTOP)
    with pytest.raises(EngineTimeout):
        served.ask(numbers(4), ("logits",), timeout=5)
    wait_for_end(served)


def test_rows_that_the_prefix_cache_swallows_are_an_error(tmp_path: Path) -> None:
    served = Served(
        SglangEngine, Model(recipe="glass-0.8m"), tmp_path, specrunner_mode="engine", disable_radix_cache=False
    )
    try:
        assert served.facts["prefix_caching"] is True
        assert served.tensors(numbers(40), ("final_norm",))["final_norm"].shape[0] == 40
        with pytest.raises(CaptureIncomplete, match="began at token 39, where 0 was expected"):
            served.ask(numbers(40), ("final_norm",))
        scheduler = next(pid for pid, command in served.processes().items() if "scheduler" in command)
        os.kill(scheduler, signal.SIGKILL)
        with pytest.raises(WorkerDied, match="was killed by SIGKILL") as caught:
            served.ask(numbers(4), ("logits",))
        assert "\n" not in caught.value.message
        assert not served.worker.alive
        wait_for_end(served)
    finally:
        served.worker.kill()


def test_a_dropped_residual_in_a_name_map_is_seen(start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(specrunner.__file__).parent / "engines/names/sglang/llama.yaml").read_text(encoding="utf-8")
    right = '{module: "model.layers.{i}.input_layernorm", index: 1, shift: 1, last: {module: model.norm, index: 1}}'
    assert right in text
    broken = tmp_path / "names" / "sglang" / "llama.yaml"
    broken.parent.mkdir(parents=True)
    broken.write_text(text.replace(right, '{module: "model.layers.{i}"}'), encoding="utf-8")
    monkeypatch.setenv("SPECRUNNER_NAME_MAPS", str(tmp_path / "names"))
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    served = Served(SglangEngine, Model(recipe="glass-0.8m"), workspace)
    try:
        tensors = served.tensors(numbers(20))
    finally:
        served.worker.close()
    reference = start(HfEngine, "glass-0.8m").capture(Request(numbers(20), ALL)).tensors
    assert first_wrong(tensors, reference, 1e-5) == "layers.0.output"


def held_out() -> list[tuple[int, ...]]:
    path = Path(ensure_model(Model(recipe="tiny-llada2"))) / "held_out.json"
    held = json.loads(path.read_text(encoding="utf-8"))["prompts"]
    return [tuple(entry["token_ids"]) for entry in held[:: max(1, len(held) // 22)]][:22]


def forced_states() -> list[Prompt]:
    """Sequences of 1 to 100 tokens, with and without masks, on and off the edges of blocks."""
    random = np.random.default_rng(0)
    states = []
    for length in (1, 15, 16, 17, 32, 50, 72, 100):
        ids = random.integers(0, 256, length)
        states.append(Prompt(token_ids=tuple(map(int, ids))))
        ids[random.random(length) < 0.5] = MASK
        states.append(Prompt(token_ids=tuple(map(int, ids))))
    return states


@pytest.fixture(scope="module")
def unscaled(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """tiny-llada2 with a routed scaling factor of 1, which SGLang's CPU code does not get wrong."""
    folder = tmp_path_factory.mktemp("models") / "llada2-unscaled"
    shutil.copytree(ensure_model(Model(recipe="tiny-llada2")), folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"routed_scaling_factor": 1.0}), encoding="utf-8")
    return Model(path=str(folder), trust_remote_code=True)


@pytest.fixture(scope="module")
def oracle(unscaled: Model, tmp_path_factory: pytest.TempPathFactory) -> OracleEngine:
    session = Session("oracle", "", unscaled, "float64", "cpu")
    engine = OracleEngine(session, ensure_model(unscaled), tmp_path_factory.mktemp("oracle"))
    engine.load()
    return engine


class TestLlada2:
    """LLaDA2 through SGLang's scheduler, against the float64 oracle."""

    def test_patches_are_stated(self, serve: Serve, unscaled: Model) -> None:
        facts = serve(unscaled).facts
        assert facts["model_class"] == "sglang.srt.models.llada2.LLaDA2MoeModelLM"
        assert (facts["mode"], facts["block_length"], facts["mask_token_id"]) == ("engine", BLOCK, MASK)
        assert f"mask token {MASK}" in facts["patches"][0]
        assert len(facts["patches"]) == 3

    def test_forced_states_agree_in_every_tensor(self, serve: Serve, unscaled: Model, oracle: OracleEngine) -> None:
        served = serve(unscaled)
        for state in forced_states():
            reference = oracle.capture(Request(state, ALL)).tensors
            tensors = served.tensors(state)
            assert set(tensors) == set(reference)
            assert first_wrong(tensors, reference, 1e-5) == ""

    def test_twenty_decodes_agree_at_every_pass(self, serve: Serve, unscaled: Model, oracle: OracleEngine) -> None:
        served, decode = serve(unscaled), Decode(24, "low_confidence", BLOCK, 0.95)
        passes = 0
        for ids in held_out():
            reference = oracle.capture(Request(Prompt(token_ids=ids), ("passes.*.logits",), decode))
            ours = served.ask(Prompt(token_ids=ids), ("passes.*.logits",), decode)
            assert list(ours.output_token_ids or ()) == reference.output_token_ids
            assert ours.facts["trajectory"] == reference.facts["trajectory"]
            assert ours.facts["finish_reason"] == reference.facts["finish_reason"]
            assert ours.tensors_path is not None
            tensors = load_file(ours.tensors_path)
            assert set(tensors) == set(reference.tensors)
            assert first_wrong(tensors, reference.tensors, 1e-5) == ""
            passes += ours.facts["passes"]
        assert passes > 40

    def test_the_threshold_is_the_requests(self, serve: Serve, unscaled: Model, oracle: OracleEngine) -> None:
        prompt, counts = Prompt(token_ids=held_out()[0]), []
        for threshold in (0.0, 0.5, 0.999999, 0.5):
            decode = Decode(24, "low_confidence", BLOCK, threshold)
            ours = serve(unscaled).ask(prompt, decode=decode)
            assert ours.facts["trajectory"] == oracle.capture(Request(prompt, decode=decode)).facts["trajectory"]
            counts.append(ours.facts["passes"])
        assert counts[0] <= counts[1] == counts[3] <= counts[2]
        assert counts[0] < counts[2]

    def test_forwards_that_fill_the_cache_are_no_passes(self, serve: Serve, unscaled: Model) -> None:
        ids = tuple(range(65, 65 + BLOCK))
        ours = serve(unscaled).ask(Prompt(token_ids=ids), decode=Decode(BLOCK, "low_confidence", BLOCK, 0.0, True))
        assert (ours.facts["passes"], ours.facts["refresh_forwards"]) == (1, 1)

    def test_a_benchmarks_questions_are_answered_as_by_transformers(
        self, serve: Serve, unscaled: Model, oracle: OracleEngine, tmp_path: Path
    ) -> None:
        served, questions = serve(unscaled), masked_questions(MASK, BLOCK)
        for ours, reference in zip(served.answer(questions), answer_questions(oracle, questions, None), strict=True):
            assert ours["logprob"] == pytest.approx(reference["logprob"], abs=1e-3)
        engine = HfEngine(Session("hf", "", unscaled, "float32", "cpu"), ensure_model(unscaled), tmp_path)
        engine.load()
        decode = Decode(48, "low_confidence", BLOCK, 0.95, ignore_eos=True)
        prompt = LONG_ANSWER
        whole, stop = find_stop(engine, prompt, decode)
        engine.close()
        question = {"prompt": prompt, "max_new_tokens": 48, "stop": [stop]}
        (early,) = served.answer([question], decode)
        assert early["token_ids"] == whole[: len(early["token_ids"])] != whole
        assert (len(prompt) + len(early["token_ids"])) % BLOCK == 0

    @pytest.mark.parametrize(("cache", "most"), [(82, 31)])
    def test_a_decode_goes_on_to_the_last_block_that_fits(
        self, serve: Serve, unscaled: Model, cache: int, most: int
    ) -> None:
        served, prompt = serve(unscaled, max_total_tokens=cache), numbers(32, 250)
        decode = Decode(most, "low_confidence", BLOCK, 0.0, ignore_eos=True)
        assert len(served.ask(prompt, decode=decode, timeout=60).output_token_ids or ()) == most
        with pytest.raises(ModelUnsupported, match=f"room for {cache}"):
            served.ask(prompt, decode=Decode(most + 1, "low_confidence", BLOCK, 0.0, ignore_eos=True))

    def test_another_block_length_is_refused(self, serve: Serve, unscaled: Model) -> None:
        with pytest.raises(ModelUnsupported, match="sglang runs blocks of 16"):
            serve(unscaled).ask(numbers(4, 250), decode=Decode(8, "low_confidence", 32, 0.95))

    def test_greedy_decoding_is_refused(self, serve: Serve, unscaled: Model) -> None:
        with pytest.raises(ModelUnsupported, match="decodes by low_confidence, not greedy"):
            serve(unscaled).ask(numbers(4, 250), decode=greedy(4))

    def test_the_scaling_factor_is_ignored_on_a_cpu(self, serve: Serve, start: Any) -> None:
        reference = start(OracleEngine, "tiny-llada2", "float64").capture(Request(numbers(32, 250), ALL)).tensors
        served = serve("tiny-llada2")
        assert served.facts["router"] == {
            "score": "sigmoid",
            "bias": True,
            "experts_per_token": 4,
            "n_group": 8,
            "topk_group": 2,
            "renormalize": True,
            "routed_scaling_factor": 2.5,
        }
        tensors = served.tensors(numbers(32, 250))
        bias = "layers.3.router.expert_bias"
        assert np.array_equal(tensors[bias].double().numpy(), reference[bias])
        assert first_wrong(tensors, reference, 1e-5) == "layers.1.mlp.output"
        assert difference(tensors["layers.1.mlp.output"], reference["layers.1.mlp.output"]) > 0.1


@pytest.mark.parametrize("recipe", ["tiny-qwen3-moe", "tiny-mixtral"])
def test_routing_agrees(serve: Serve, start: Any, recipe: str) -> None:
    reference = start(HfEngine, recipe).capture(Request(numbers(40, 250), ALL, greedy(12)))
    served = serve(recipe)
    tensors = served.tensors(numbers(40, 250))
    assert set(tensors) == set(reference.tensors)
    assert any(".router.expert_ids" in name for name in tensors)
    assert first_wrong(tensors, reference.tensors, 1e-5) == ""
    assert list(served.ask(numbers(40, 250), decode=greedy(12)).output_token_ids or ()) == reference.output_token_ids


@pytest.fixture
def glass_copy(tmp_path: Path) -> Path:
    folder = tmp_path / "glass"
    shutil.copytree(ensure_model(Model(recipe="glass-0.8m")), folder)
    return folder


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


class TestLoadsThatFail:
    """Each ends as one line of the right kind, and leaves no process behind."""

    def fails(self, workspace: Path, model: Model, kind: type[EngineError], said: str, **options: Any) -> None:
        workspace.mkdir()
        with pytest.raises(kind, match=said) as caught:
            Served(SglangEngine, model, workspace, **options).worker.kill()
        assert "\n" not in caught.value.message
        command = f"test-{os.getpid()}-{workspace.name}".encode()
        left = [entry for entry in Path("/proc").glob("[0-9]*/environ") if holds(entry, command)]
        assert left == []

    def test_a_bad_path(self, tmp_path: Path) -> None:
        self.fails(tmp_path / "bad-path", Model(path=str(tmp_path / "absent")), ModelUnavailable, "no directory")

    def test_an_architecture_that_sglang_lacks(self, tmp_path: Path, glass_copy: Path) -> None:
        change_config(glass_copy, architectures=["NoSuchForCausalLM"])
        said = "no model class for the architecture NoSuchForCausalLM"
        self.fails(tmp_path / "unknown", Model(path=str(glass_copy)), ModelUnsupported, said)

    def test_weights_cut_short(self, tmp_path: Path, glass_copy: Path) -> None:
        weights = glass_copy / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        self.fails(tmp_path / "short", Model(path=str(glass_copy)), ModelUnavailable, "SafetensorError|could not load")

    @pytest.mark.parametrize("mode", ["runner", "engine"])
    def test_more_memory_than_there_is(self, tmp_path: Path, glass_copy: Path, mode: str) -> None:
        change_config(glass_copy, intermediate_size=4 * 10**11)
        model = Model(path=str(glass_copy))
        options = {"specrunner_mode": mode, "load_format": "dummy"}
        self.fails(tmp_path / f"memory-{mode}", model, EngineOutOfMemory, "out of memory", **options)

    def test_an_option_that_sglang_does_not_know(self, tmp_path: Path) -> None:
        model = Model(recipe="glass-0.8m")
        self.fails(tmp_path / "option", model, ModelUnsupported, "no_such_option", no_such_option=1)

    def test_transformers_behind_sglang(self, tmp_path: Path) -> None:
        model = Model(recipe="glass-0.8m")
        self.fails(tmp_path / "fallback", model, ModelUnsupported, "fell back", model_impl="transformers")


def holds(file: Path, needle: bytes) -> bool:
    """Tell whether a file that may be gone contains `needle`."""
    try:
        return needle in file.read_bytes()
    except OSError:
        return False
