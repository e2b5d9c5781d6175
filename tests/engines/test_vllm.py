"""vLLM for real, in its own environment, over the protocol that a run uses.

They run under the interpreter that a run would take (`specrunner engines install vllm`) and are skipped without one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from specrunner.engines.hf import HfEngine
from specrunner.engines.oracle import OracleEngine
from specrunner.engines.questions import answer_questions
from specrunner.engines.vllm import VllmEngine
from specrunner.errors import (
    CaptureIncomplete,
    EngineError,
    EngineOutOfMemory,
    ModelUnavailable,
    ModelUnsupported,
    WorkerDied,
)
from specrunner.models.recipes import ensure_model
from specrunner.requests import Request
from specrunner.sessions.process import find_marked
from specrunner.spec.model import Decode, Model, Prompt
from specrunner.spec.tensor_names import is_auxiliary
from tests.engines.asked import LONG_ANSWER, find_stop, masked_questions, scored_questions
from tests.engines.served import ALL, Serve, Served, find_python, keep_sessions

PYTHON = find_python(VllmEngine)
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not PYTHON, reason="vllm is not installed: specrunner engines install vllm"),
]

LENGTHS = (1, 2, 3, 5, 7, 8, 13, 15, 16, 17, 21, 24, 31, 32, 33, 40, 47, 48, 63, 64, 65, 96)
MASK = 257
BLOCK = 16


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Sessions of vLLM, loaded once where they can be."""
    with keep_sessions(VllmEngine, tmp_path_factory) as keep:
        yield keep


def difference(candidate: torch.Tensor, reference: torch.Tensor | np.ndarray) -> float:
    """Relative distance of two tensors, by Frobenius norms."""
    wide = torch.as_tensor(reference).double()
    assert candidate.shape == wide.shape
    return float((candidate.double() - wide).norm() / wide.norm())


def greedy(tokens: int) -> Decode:
    return Decode(max_new_tokens=tokens)


def numbers(length: int, below: int = 300) -> Prompt:
    return Prompt(token_ids=tuple((7 * i * i + 3 * i + 5) % below for i in range(length)))


def first_wrong(candidate: Mapping[str, torch.Tensor], reference: Mapping[str, torch.Tensor], bound: float) -> str:
    """Return the first tensor, in the reference's order, that is off by more than `bound`, or ""."""
    names = [name for name in reference if not is_auxiliary(name)]
    return next((name for name in names if difference(candidate[name], reference[name]) > bound), "")


class TestGlass:
    """A real Llama: tokens, logits and layers as Transformers has them."""

    def test_what_really_ran_is_stated(self, serve: Serve) -> None:
        facts = serve("glass-0.8m").facts
        assert facts["model_class"] == "vllm.model_executor.models.llama.LlamaForCausalLM"
        assert facts["attention_backend"] == "CPU_ATTN"
        assert facts["dtype"] == "float32"
        assert facts["patches"] == []
        assert set(facts["versions"]) >= {"vllm", "torch", "transformers"}
        assert facts["engine_arguments"]["enforce_eager"] is True

    def test_text_becomes_the_same_tokens(self, serve: Serve, start: Any) -> None:
        prompt = Prompt(text="Once upon a time there was a little girl.")
        reference = start(HfEngine, "glass-0.8m").capture(Request(prompt, ("embeddings",)))
        assert list(serve("glass-0.8m").ask(prompt, ("embeddings",)).prompt_token_ids) == reference.prompt_token_ids

    def test_twenty_prompts_give_the_same_tokens(self, serve: Serve, start: Any) -> None:
        engine, served = start(HfEngine, "glass-0.8m"), serve("glass-0.8m")
        for length in LENGTHS:
            ours = served.ask(numbers(length), decode=greedy(16))
            assert ours.output_token_ids is not None
            reference = engine.capture(Request(numbers(length), decode=greedy(16)))
            assert list(ours.output_token_ids) == reference.output_token_ids

    def test_every_tensor_is_there_and_right(self, serve: Serve, start: Any) -> None:
        reference = start(HfEngine, "glass-0.8m").capture(Request(numbers(60), ALL)).tensors
        tensors = serve("glass-0.8m").tensors(numbers(60))
        assert set(tensors) == set(reference)
        assert first_wrong(tensors, reference, 1e-5) == ""
        assert difference(tensors["logits"], reference["logits"]) < 1e-5

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
            (numbers(200), ("logits",), None, ModelUnsupported, "max_model_len, 128"),
            (numbers(100), (), greedy(64), ModelUnsupported, "max_model_len, 128"),
            (Prompt(token_ids=(1, 10**6)), ("logits",), None, ModelUnsupported, "outside the vocabulary"),
            (numbers(4), ("layers.0.router.logits",), None, CaptureIncomplete, "no tensor of this model matches"),
            (numbers(4), ("layers.99.output",), None, CaptureIncomplete, "no tensor of this model matches"),
            (numbers(4), ("passes.0.logits",), None, ModelUnsupported, "come from a decode"),
            (numbers(4), (), Decode(4, "low_confidence", BLOCK), ModelUnsupported, "block_causal"),
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


class TestLlada2:
    """LLaDA2 on its causal parent, block by block, against the float64 oracle."""

    RECIPE = "tiny-llada2"

    @staticmethod
    def prompts() -> list[tuple[int, ...]]:
        path = Path(ensure_model(Model(recipe="tiny-llada2"))) / "held_out.json"
        held = json.loads(path.read_text(encoding="utf-8"))["prompts"]
        return [tuple(entry["token_ids"]) for entry in held[:: max(1, len(held) // 22)]][:22]

    def forced_states(self) -> list[Prompt]:
        """Sequences of 1 to 100 tokens, with and without masks, on and off the edges of blocks."""
        random = np.random.default_rng(0)
        states = []
        for length in (1, 15, 16, 17, 32, 50, 72, 100):
            ids = random.integers(0, 256, length)
            states.append(Prompt(token_ids=tuple(map(int, ids))))
            ids[random.random(length) < 0.5] = MASK
            states.append(Prompt(token_ids=tuple(map(int, ids))))
        return states

    def test_patches_are_stated(self, serve: Serve) -> None:
        facts = serve(self.RECIPE).facts
        assert facts["model_class"].endswith("bailing_moe.BailingMoeV2ForCausalLM")
        assert (facts["attention"], facts["block_length"]) == ("block_causal", BLOCK)
        assert len(facts["patches"]) == 2
        assert "BailingMoeV2ForCausalLM" in facts["patches"][0]
        assert "causal=False" in facts["patches"][1]
        assert facts["router"] == {
            "score": "sigmoid",
            "bias": True,
            "experts_per_token": 4,
            "n_group": 8,
            "topk_group": 2,
            "renormalize": True,
            "routed_scaling_factor": 2.5,
        }

    def test_forced_states_agree_in_every_tensor(self, serve: Serve, start: Any) -> None:
        oracle, served = start(OracleEngine, self.RECIPE, "float64"), serve(self.RECIPE)
        for state in self.forced_states():
            reference = oracle.capture(Request(state, ALL)).tensors
            tensors = served.tensors(state)
            assert set(tensors) == set(reference)
            assert first_wrong(tensors, reference, 1e-5) == ""

    def test_twenty_decodes_agree_at_every_pass(self, serve: Serve, start: Any) -> None:
        oracle, served = start(OracleEngine, self.RECIPE, "float64"), serve(self.RECIPE)
        decode = Decode(24, "low_confidence", BLOCK, 0.95)
        passes = 0
        for ids in self.prompts():
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
        assert passes > 30

    def test_a_decode_over_several_blocks_agrees(self, serve: Serve, start: Any) -> None:
        decode = Decode(50, "low_confidence", BLOCK, 0.95, ignore_eos=True)
        prompt = Prompt(token_ids=max(self.prompts(), key=len))
        reference = start(OracleEngine, self.RECIPE, "float64").capture(Request(prompt, decode=decode))
        ours = serve(self.RECIPE).ask(prompt, decode=decode)
        assert len(ours.output_token_ids or ()) == 50
        assert list(ours.output_token_ids or ()) == reference.output_token_ids
        assert ours.facts["trajectory"] == reference.facts["trajectory"]
        assert len({step["block_start"] for step in ours.facts["trajectory"]}) >= 4

    def test_a_benchmarks_questions_are_answered_as_by_transformers(self, serve: Serve, start: Any) -> None:
        engine, served = start(HfEngine, self.RECIPE), serve(self.RECIPE)
        questions = masked_questions(MASK, BLOCK)
        for ours, reference in zip(served.answer(questions), answer_questions(engine, questions, None), strict=True):
            assert ours["logprob"] == pytest.approx(reference["logprob"], abs=1e-3)
        decode = Decode(48, "low_confidence", BLOCK, 0.95, ignore_eos=True)
        prompt = LONG_ANSWER
        whole, stop = find_stop(engine, prompt, decode)
        question = {"prompt": prompt, "max_new_tokens": 48, "stop": [stop]}
        (early,) = served.answer([question], decode)
        assert early["token_ids"] == whole[: len(early["token_ids"])] != whole
        assert (len(prompt) + len(early["token_ids"])) % BLOCK == 0

    def test_another_block_length_is_refused(self, serve: Serve) -> None:
        with pytest.raises(ModelUnsupported, match="blocks of 16"):
            serve(self.RECIPE).ask(numbers(4, 250), decode=Decode(8, "low_confidence", 32, 0.95))

    def test_greedy_decoding_is_refused(self, serve: Serve) -> None:
        with pytest.raises(ModelUnsupported, match="specrunner_attention: causal"):
            serve(self.RECIPE).ask(numbers(4, 250), decode=greedy(4))

    def test_causal_on_request(self, serve: Serve, start: Any) -> None:
        oracle = start(OracleEngine, self.RECIPE, "float64", attention="causal")
        served = serve(self.RECIPE, specrunner_attention="causal")
        assert served.facts["attention"] == "causal"
        assert len(served.facts["patches"]) == 1
        for state in self.forced_states():
            reference = oracle.capture(Request(state, ALL)).tensors
            assert first_wrong(served.tensors(state), reference, 1e-5) == ""


@pytest.mark.parametrize("recipe", ["tiny-qwen3-moe", "tiny-mixtral"])
def test_routing_agrees(serve: Serve, start: Any, recipe: str) -> None:
    reference = start(HfEngine, recipe).capture(Request(numbers(40, 250), ALL, greedy(12)))
    served = serve(recipe)
    tensors = served.tensors(numbers(40, 250))
    assert set(tensors) == set(reference.tensors)
    assert any(".router.expert_ids" in name for name in tensors)
    assert first_wrong(tensors, reference.tensors, 1e-5) == ""
    assert list(served.ask(numbers(40, 250), decode=greedy(12)).output_token_ids or ()) == reference.output_token_ids


def test_the_router_bias_of_ernie_is_ignored_on_a_cpu(serve: Serve, start: Any) -> None:
    reference = start(HfEngine, "tiny-ernie4_5-moe").capture(Request(numbers(40, 250), ALL)).tensors
    tensors = serve("tiny-ernie4_5-moe").tensors(numbers(40, 250))
    assert first_wrong(tensors, reference, 1e-5) == "layers.1.router.expert_ids"
    assert difference(tensors["layers.1.router.logits"], reference["layers.1.router.logits"]) < 1e-5


def test_the_windows_of_gpt_oss_are_those_of_even_layers(serve: Serve, start: Any) -> None:
    served = serve("tiny-gpt-oss")
    folder = Path(ensure_model(Model(recipe="tiny-gpt-oss")))
    types = json.loads((folder / "config.json").read_text(encoding="utf-8"))["layer_types"]
    stated = {index for index, kind in enumerate(types) if kind == "sliding_attention"}
    found = {int(name.split(".")[2]) for name in served.facts["attention_windows"]}
    assert found == {index for index in range(len(types)) if index % 2 == 0}
    assert stated != found
    reference = start(HfEngine, "tiny-gpt-oss").capture(Request(numbers(64, 250), ALL)).tensors
    wrong = min(found ^ stated)
    assert first_wrong(served.tensors(numbers(64, 250)), reference, 1e-5) == f"layers.{wrong}.attention.output"


def test_rows_that_the_prefix_cache_swallows_are_an_error(serve: Serve) -> None:
    served = serve("glass-0.8m", enable_prefix_caching=True, block_size=32)
    assert served.tensors(numbers(100), ("logits",))["logits"].shape[0] == 100
    with pytest.raises(CaptureIncomplete, match=r"4 rows for a prompt of 100 tokens: prefix caching"):
        served.ask(numbers(100), ("logits",))


def test_a_chunked_prefill_is_joined(serve: Serve, start: Any) -> None:
    served = serve("glass-0.8m", enable_chunked_prefill=True, max_num_batched_tokens=32)
    reference = start(HfEngine, "glass-0.8m").capture(Request(numbers(100), ALL)).tensors
    answer = served.ask(numbers(100), ALL)
    assert answer.facts["forwards"] == [32, 32, 32, 4]
    assert answer.tensors_path is not None
    assert first_wrong(load_file(answer.tensors_path), reference, 1e-5) == ""


PLUGIN = """
from vllm.model_executor.models.bailing_moe import BailingMoeV2ForCausalLM
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.worker.cpu_worker import CPUWorker

class MockLLaDA2(BailingMoeV2ForCausalLM): pass
class PluginLLaDA2(BailingMoeV2ForCausalLM): pass
class PluginScheduler(Scheduler): pass
class PluginWorker(CPUWorker): pass
"""
ENTRY = """
import os
def register():
    from vllm import ModelRegistry
    ModelRegistry.register_model("LLaDA2MoeModelLM", "toy_dllm_parts:" + os.environ["SPECRUNNER_TOY_CLASS"])
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """A package with vLLM's plugin entry point, and the options that select it as the dLLM plugin's are published.

    Which class it registers is told by a variable that no import of an engine reads, so that all share one import.
    """
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "toy_dllm_parts.py").write_text(PLUGIN, encoding="utf-8")
    (folder / "toy_dllm.py").write_text(ENTRY, encoding="utf-8")
    info = folder / "toy_dllm-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-dllm\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[vllm.general_plugins]\ndllm = toy_dllm:register\n", encoding="utf-8")

    def options(model: str) -> dict[str, Any]:
        variables = {"VLLM_PLUGINS": "dllm", "PYTHONPATH": str(folder), "SPECRUNNER_TOY_CLASS": model}
        return {
            "scheduler_cls": "toy_dllm_parts.PluginScheduler",
            "worker_cls": "toy_dllm_parts.PluginWorker",
            "specrunner_environment": variables,
        }

    return options


def test_a_plugins_scheduler_worker_and_model_are_used(serve: Serve, plugin: Callable[[str], dict[str, Any]]) -> None:
    served = serve("tiny-llada2", **plugin("PluginLLaDA2"))
    facts = served.facts
    assert facts["model_class"] == "toy_dllm_parts.PluginLLaDA2"
    assert facts["worker"] == "toy_dllm_parts.PluginWorker"
    assert facts["scheduler"] == "toy_dllm_parts.PluginScheduler"
    assert (facts["attention"], facts["patches"]) == ("engine", [])
    assert facts["plugin_decode"] == {"threshold": 0.9, "block_length": BLOCK}
    with pytest.raises(ModelUnsupported, match="the plugin's scheduler with 0.9"):
        served.ask(numbers(4, 250), decode=Decode(4, "low_confidence", BLOCK, 0.95))
    assert served.ask(numbers(4, 250), decode=Decode(4, "low_confidence", BLOCK, 0.9)).output_token_ids
    assert len(served.ask(numbers(4, 250), decode=greedy(4)).output_token_ids or ()) > 0
    assert set(served.tensors(numbers(4, 250), ("layers.1.router.*",)))


def test_a_plugins_mock_is_refused(serve: Serve, plugin: Callable[[str], dict[str, Any]]) -> None:
    with pytest.raises(ModelUnsupported, match="MockLLaDA2 is a mock"):
        serve("tiny-llada2", **plugin("MockLLaDA2"))


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
            Served(VllmEngine, model, workspace, **options)
        assert "\n" not in caught.value.message
        assert find_marked(f"test-{os.getpid()}-{workspace.name}") == []

    def test_a_bad_path(self, tmp_path: Path) -> None:
        self.fails(tmp_path / "bad-path", Model(path=str(tmp_path / "absent")), ModelUnavailable, "no directory")

    def test_transformers_behind_vllm(self, tmp_path: Path) -> None:
        model = Model(recipe="glass-0.8m")
        self.fails(tmp_path / "fallback", model, ModelUnsupported, "fell back", model_impl="transformers")

    def test_an_architecture_that_nobody_knows(self, tmp_path: Path, glass_copy: Path) -> None:
        change_config(glass_copy, architectures=["NobodyForCausalLM"])
        self.fails(tmp_path / "architecture", Model(path=str(glass_copy)), ModelUnsupported, "NobodyForCausalLM|fell")

    def test_truncated_weights(self, tmp_path: Path, glass_copy: Path) -> None:
        weights = glass_copy / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:100_000])
        self.fails(tmp_path / "truncated", Model(path=str(glass_copy)), ModelUnavailable, "deserializing header")

    def test_a_cache_that_is_too_small(self, tmp_path: Path) -> None:
        model = Model(recipe="glass-0.8m")
        self.fails(tmp_path / "small", model, EngineOutOfMemory, "key-value cache", kv_cache_memory_bytes=1 << 12)

    def test_an_option_that_vllm_lacks(self, tmp_path: Path) -> None:
        self.fails(tmp_path / "option", Model(recipe="glass-0.8m"), ModelUnsupported, "colour", colour="red")

    def test_code_that_is_not_trusted(self, tmp_path: Path) -> None:
        self.fails(tmp_path / "untrusted", Model(recipe="tiny-llada2"), ModelUnsupported, "code of its own")


@pytest.mark.slow
def test_tensor_parallel_shards_are_gathered(serve: Serve, start: Any) -> None:
    reference = start(HfEngine, "tiny-qwen3-moe").capture(Request(numbers(24, 250), ALL, greedy(8)))
    served = serve("tiny-qwen3-moe", tensor_parallel_size=2)
    assert served.facts["tensor_parallel_size"] == 2
    tensors = served.tensors(numbers(24, 250))
    assert set(tensors) == set(reference.tensors)
    assert first_wrong(tensors, reference.tensors, 1e-4) == ""
    assert list(served.ask(numbers(24, 250), decode=greedy(8)).output_token_ids or ()) == reference.output_token_ids


@pytest.mark.slow
def test_a_killed_worker_of_vllm_is_a_death(tmp_path: Path) -> None:
    served = Served(VllmEngine, Model(recipe="glass-0.8m"), tmp_path, tensor_parallel_size=2)
    try:
        names = {pid: (Path("/proc") / str(pid) / "cmdline").read_bytes() for pid in find_marked(served.mark)}
        workers = [pid for pid, line in names.items() if b"spawn_main" in line or b"VLLM::Worker" in line]
        assert len(workers) == 2, names
        os.kill(workers[-1], signal.SIGKILL)
        with pytest.raises(WorkerDied):
            served.ask(numbers(8), ("logits",))
        assert not served.worker.alive
        assert find_marked(served.mark) == []
    finally:
        served.worker.close()


@pytest.mark.slow
def test_hooks_in_a_compiled_model_are_missed(serve: Serve, start: Any) -> None:
    served = serve("glass-0.8m", enforce_eager=False)
    assert served.facts["compiled"] is True
    with pytest.raises(CaptureIncomplete, match="compiled code runs no hooks"):
        served.ask(numbers(12), ("layers.*.output",))
    reference = start(HfEngine, "glass-0.8m").capture(Request(numbers(12), ("final_norm", "logits"))).tensors
    assert first_wrong(served.tensors(numbers(12), ("final_norm", "logits")), reference, 1e-4) == ""
