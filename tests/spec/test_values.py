"""From fields to values: every default that the schema states, and every field that was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from specrunner.spec.loader import read_spec
from specrunner.spec.model import (
    Attention,
    Baseline,
    Benchmark,
    Case,
    Decode,
    DenoisingState,
    EngineChoice,
    Evaluation,
    GoldenChoice,
    Model,
    Prompt,
    Rule,
)
from specrunner.spec.source import parse_text

HEAD = "version: 1\nmodel: {recipe: glass-0.8m}\nengines: [hf]\nreference: {engine: vllm}\n"
DENOISE = "{max_new_tokens: 4, algorithm: low_confidence, block_length: 4, threshold: 0.5}"


def read(fields: str, head: str = HEAD) -> tuple[list[Case], list[tuple[str, str]]]:
    """Return the cases, and code and message of what is wrong."""
    text = f"{head}cases:\n  - name: c\n" + "".join(f"    {line}\n" for line in fields.splitlines())
    cases, found = read_spec(parse_text(text, "dir/x.yaml"), "dir/x", ("hf", "oracle", "vllm"), ("glass-0.8m",))
    return cases, [(one.code, one.message) for one in found]


def one(fields: str, head: str = HEAD) -> Case:
    cases, found = read(fields, head)
    assert found == []
    return cases[0]


LOGITS = "prompt: hi\ntolerance: {logits: exact}\n"


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ("golden: true", "golden", GoldenChoice(0, 32, 640, ())),
        ("golden: false", "golden", None),
        ("golden: {}", "golden", GoldenChoice(0, 32, 640, ())),
        (
            "golden: {full_tokens: 8, top_k: 16, projections: 320, fallback: [cpu-a, cpu-b]}",
            "golden",
            GoldenChoice(8, 16, 320, ("cpu-a", "cpu-b")),
        ),
        (f"decode: {DENOISE}\ntokens: near_tie", "decode", Decode(4, "low_confidence", 4, 0.5)),
        (
            f"decode: {DENOISE[:-1]}, ignore_eos: true, accept: ge, steps: 2, exclude_mask_id: true,"
            " eos_early_stop: true}\ntokens: exact",
            "decode",
            Decode(4, "low_confidence", 4, 0.5, True, "ge", "schedule", 2, True, True),
        ),
        (
            f"decode: {DENOISE[:-1]}, fallback: best}}\ntokens: exact",
            "decode",
            Decode(4, "low_confidence", 4, 0.5, fallback="best"),
        ),
        (f"decode: {DENOISE}\nat: {{step: 2}}", "at", DenoisingState(0, 2)),
        (f"decode: {DENOISE}\nat: {{block: 1}}", "at", DenoisingState(1, 0)),
        (f"decode: {DENOISE}\nat: {{block: 1, step: 2}}", "at", DenoisingState(1, 2)),
        (f"decode: {DENOISE}\ntrajectory: exact", "trajectory", Rule("exact")),
        (
            "batch: {with: [you, {token_ids: [1], length: 1}]}",
            "batch",
            (Prompt(text="you"), Prompt(token_ids=(1,), length=1)),
        ),
        ("attention: {geometry: causal}", "attention", Attention("causal")),
        ("attention: {geometry: block_causal, block_length: 4.0}", "attention", Attention("block_causal", 4)),
        ("attention: {geometry: sliding_window, window: 3}", "attention", Attention("sliding_window", window=3)),
        (
            'attention: {geometry: matrix, matrix: ["10", "11"]}',
            "attention",
            Attention("matrix", matrix=("10", "11")),
        ),
        ("description: what it is", "description", "what it is"),
        ("timeout: 5", "timeout", 5.0),
        ("repeat: 5.0", "repeat", 5),
        ("tags: [a, b]", "tags", ("a", "b")),
        ("tensors: [logits]", "tensors", ("logits",)),
        ("environments: {hf: own, vllm: other}", "candidate", EngineChoice("hf", "float32", "auto", {}, "own")),
        ("environments: {hf: own, vllm: other}", "reference", EngineChoice("vllm", "float32", "auto", {}, "other")),
        ("device: cuda\ndtype: float16", "candidate", EngineChoice("hf", "float16", "cuda")),
        ("device: cuda\ndtype: float16", "reference", EngineChoice("vllm", "float32", "auto")),
        ("reference: {engine: vllm, device: cpu}", "reference", EngineChoice("vllm", "float32", "cpu")),
        ("model: {id: a/b}", "model", Model(id="a/b")),
        (
            f"model: {{id: a/b, revision: {'ab' * 20}, trust_remote_code: true, allow_pickle: true}}",
            "model",
            Model(id="a/b", revision="ab" * 20, trust_remote_code=True, allow_pickle=True),
        ),
    ],
)
def test_fields_become_values(fields: str, name: str, value: Any) -> None:
    assert getattr(one(LOGITS + fields), name) == value


def test_a_case_that_is_no_golden_has_no_peer_and_no_rest() -> None:
    case = one(LOGITS)
    assert (case.peer, case.golden, case.at, case.batch, case.attention, case.trajectory) == (
        None,
        None,
        None,
        (),
        None,
        None,
    )


FLOOR = "prompt: hi\ndtype: bfloat16\ndevice: cpu\noptions: {hf: {a: 1}, vllm: {b: 2}}\n"


@pytest.mark.parametrize(
    ("rule", "reference", "peer"),
    [
        ("noise_floor: 2", "{engine: vllm}", EngineChoice("vllm", "bfloat16", "auto", {"b": 2})),
        ("noise_floor: 2", "{engine: vllm, device: cuda}", EngineChoice("vllm", "bfloat16", "cuda", {"b": 2})),
        ("noise_floor: 2", "{engine: vllm, options: {c: 3}}", EngineChoice("vllm", "bfloat16", "auto", {"c": 3})),
        ("noise_floor: 2", "{engine: vllm, peer: {engine: oracle}}", EngineChoice("oracle", "bfloat16", "auto", {})),
        (
            "noise_floor: 2",
            "{engine: vllm, peer: {engine: hf, dtype: float16}}",
            EngineChoice("hf", "float16", "auto", {"a": 1}),
        ),
        (
            "noise_floor: 2",
            "{engine: vllm, options: {c: 3}, peer: {options: {d: 4}}}",
            EngineChoice("vllm", "bfloat16", "auto", {"d": 4}),
        ),
        ("sqnr: 2", "{engine: vllm}", None),
    ],
)
def test_who_shows_the_noise(rule: str, reference: str, peer: EngineChoice | None) -> None:
    assert one(f"{FLOOR}tolerance: {{logits: {{{rule}}}}}\nreference: {reference}").peer == peer


# --- benchmarks ---

PAIRED = "compare: {mode: paired}"


@pytest.mark.parametrize(
    ("benchmark", "value"),
    [
        (
            "{task: mmlu, threshold: 0.5}",
            Benchmark(Evaluation(("mmlu",)), "absolute", alpha=0.05, threshold=0.5),
        ),
        (
            "{task: mmlu, threshold: 0.5, samples: 10, seed: 3, num_fewshot: 0, chat_template: true,"
            " add_bos_token: false, max_length: 512, max_gen_toks: 16, metric: acc}",
            Benchmark(
                Evaluation(
                    ("mmlu",), "acc", 10, 3, 0, chat_template=True, add_bos_token=False, max_length=512, max_gen_toks=16
                ),
                "absolute",
                threshold=0.5,
            ),
        ),
        (
            "{task: mmlu, threshold: 0.5, likelihood: {samples: 8}}",
            Benchmark(Evaluation(("mmlu",), mask_samples=8), "absolute", threshold=0.5),
        ),
        (
            "{task: mmlu, threshold: 0.5, likelihood: {samples: 8, block_length: 16, mask_token_id: 9}}",
            Benchmark(Evaluation(("mmlu",), mask_samples=8, mask_block=16, mask_token_id=9), "absolute", threshold=0.5),
        ),
        (
            "{task: mmlu, baseline: {score: 0.5, samples: 9}, compare: {mode: recorded, alpha: 0.01, tolerance: 0.1}}",
            Benchmark(Evaluation(("mmlu",)), "recorded", alpha=0.01, tolerance=0.1, baseline=Baseline(0.5, 9)),
        ),
        (
            "{task: [mmlu, arc_easy], samples: [3, 1], compare: {mode: paired, max_abs_ll_diff: 0.5}}",
            Benchmark(Evaluation(("mmlu", "arc_easy"), samples=(3, 1)), "paired", max_abs_ll_diff=0.5),
        ),
        (
            "{task: arc_easy, threshold: 0.5, data: {hub: true}}",
            Benchmark(Evaluation(("arc_easy",), hub=True), "absolute", threshold=0.5),
        ),
    ],
)
def test_benchmarks_become_values(benchmark: str, value: Benchmark) -> None:
    case = one(f"benchmark: {benchmark}")
    assert case.benchmark == value
    assert (case.prompt, case.tensors, case.decode) == (Prompt(), (), None)
    assert (case.reference is not None) == (value.mode == "paired")


def test_files_of_a_benchmark_start_at_the_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fields = "data: {file: ../q.jsonl, shots_file: s.jsonl}, baseline: {file: /a.json}"
    case = one(f"benchmark: {{task: gsm8k, {fields}, {PAIRED}}}")
    assert case.benchmark is not None
    asked = case.benchmark.evaluation
    assert (asked.file, asked.shots_file) == ((tmp_path / "q.jsonl").as_posix(), (tmp_path / "dir/s.jsonl").as_posix())
    assert case.benchmark.baseline == Baseline(file="/a.json")
    assert case.reference is None, "the file takes its place"


def test_how_a_benchmark_decodes() -> None:
    decode = "decode: {algorithm: low_confidence, block_length: 4, threshold: 0.5}\n"
    case = one(decode + "benchmark: {task: gsm8k_cot, threshold: 0.5}")
    assert case.decode == Decode(1, "low_confidence", 4, 0.5)


@pytest.mark.parametrize(
    ("benchmark", "wrong"),
    [
        ("{task: [mmlu, arc_easy], threshold: 0.5}", ""),
        (
            "{task: [mmlu, arc_easy], threshold: 0.5, data: {file: q.jsonl}, num_fewshot: 0}",
            "one file holds the questions",
        ),
        ("{task: mmlu, threshold: 0.5, data: {file: q.jsonl}, num_fewshot: 0}", ""),
        ("{task: mmlu, threshold: 0.5, data: {file: q.jsonl}, num_fewshot: 5}", "the shots of `mmlu`"),
        ("{task: mmlu, threshold: 0.5, data: {file: q.jsonl, shots_file: s.jsonl}, num_fewshot: 5}", ""),
        ("{task: mmlu, threshold: 0.5, data: {hub: true, file: q.jsonl}}", "from the hub or from a file"),
        ("{task: mmlu, threshold: 0.5, data: {hub: false}}", ""),
        ("{task: [mmlu, gsm8k_cot], threshold: 0.5, likelihood: {samples: 8}}", ""),
        ("{task: [gsm8k_cot], threshold: 0.5, likelihood: {samples: 8}}", "generates its answers"),
        ("{task: [mmlu, gsm8k_cot], threshold: 0.5, metric: acc}", "`gsm8k_cot` has no metric `acc`"),
        ("{task: mmlu, baseline: {score: 0.5}, compare: {mode: recorded}}", "needs a score and its samples"),
        ("{task: mmlu, baseline: {samples: 5}, compare: {mode: recorded}}", "needs a score and its samples"),
        ("{task: mmlu, baseline: {score: 0.5, samples: 5}, compare: {mode: recorded}}", ""),
        ("{task: [mmlu], baseline: {score: 0.5, samples: 5}, compare: {mode: recorded}}", ""),
        (
            "{task: mmlu, baseline: {score: 0.5, samples: 5, file: a.json}, compare: {mode: recorded}}",
            "means nothing to `mode: recorded`",
        ),
        (
            "{task: mmlu, baseline: {score: 0.5, file: a.json}, compare: {mode: paired}}",
            "means nothing to `mode: paired`",
        ),
        ("{task: mmlu, baseline: {samples: 5}, compare: {mode: paired}}", "means nothing to `mode: paired`"),
        ("{task: [mmlu, arc_easy], compare: {mode: paired}}", ""),
        ("{task: mmlu, compare: {mode: absolute}}", "`mode: absolute` has no `threshold`"),
        ("{task: mmlu, threshold: 0.5, compare: {mode: absolute}}", ""),
        ("{task: mmlu, threshold: 0.5, compare: {max_abs_ll_diff: 1}}", "compares no single answers"),
        (
            "{task: [mmlu, gsm8k_cot], compare: {mode: paired, max_abs_ll_diff: 1}}",
            "`gsm8k_cot` has no log-likelihoods",
        ),
        ("{task: mmlu, compare: {mode: paired, max_abs_ll_diff: 1}}", ""),
    ],
)
def test_what_of_a_benchmark_makes_no_sense(benchmark: str, wrong: str) -> None:
    cases, found = read(f"benchmark: {benchmark}")
    assert len(found) == bool(wrong), found
    assert bool(cases) != bool(found)
    assert all(wrong in message for _, message in found)


@pytest.mark.parametrize(
    "other",
    [
        "prompt: hi",
        "tolerance: {logits: exact}",
        "tensors: [logits]",
        "tokens: exact",
        "golden: true",
        "batch: {with: [you]}",
        "at: {step: 1}",
        "trajectory: exact",
    ],
)
def test_a_benchmark_is_a_case_of_its_own(other: str) -> None:
    name = other.partition(":")[0]
    _, found = read(f"{other}\nbenchmark: {{task: mmlu, threshold: 0.5}}")
    assert found == [("conflicting-keys", f"`benchmark` and `{name}` in one case")]
    assert one("golden: false\nbenchmark: {task: mmlu, threshold: 0.5}").golden is None


# --- what a golden can bear out ---

LIVE = "prompt: {token_ids: [1, 2, 3]}\n"


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ("golden: {full_tokens: 3}\ntolerance: {logits: {ulp: 2}}", 0),
        ("golden: {full_tokens: 2}\ntolerance: {logits: {ulp: 2}}", 1),
        ("golden: {full_tokens: 4}\ntolerance: {logits: {ulp: 2}}", 0),
        ("golden: true\ntolerance: {logits: {allclose: {rtol: 0, atol: 1}}, embeddings: {ulp: 1}}", 2),
        ("golden: {top_k: 10}\ntolerance: {logits: {top_k: {k: 10, overlap: 0.9}}}", 0),
        ("golden: {top_k: 10}\ntolerance: {logits: {top_k: {k: 11, overlap: 0.9}}}", 1),
        ("golden: true\ntolerance: {logits: {top_k: {k: 32, overlap: 0.9}}}", 0),
        ("golden: true\ntolerance: {logits: {top_k: {k: 33, overlap: 0.9}}}", 1),
        ("golden: true\ntolerance: {logits: {sqnr: 135}}", 0),
        ("golden: true\ntolerance: {logits: {sqnr: 135.1}}", 1),
        ("golden: true\ntolerance: {layers.*.router.expert_ids: exact}", 0),
        ("golden: true\ndtype: bfloat16\ntolerance: {logits: {noise_floor: 2}}", 0),
        ("golden: true\nreference: null\ntolerance: {logits: {noise_floor: 2}}", 1),
        ("golden: true\nreference: null\ntolerance: {logits: {sqnr: 80}}", 0),
        ("golden: true\nreference: null\ndecode: {max_new_tokens: 2}\ntokens: near_tie", 1),
        ("golden: true\nreference: null\ndecode: {max_new_tokens: 2}\ntokens: exact", 0),
        ("golden: true\ndecode: {max_new_tokens: 2}\ntokens: near_tie", 0),
        ("golden: true\nprompt: hi\ntolerance: {logits: {ulp: 2}}", 1),
        ("golden: {full_tokens: 1}\nprompt: hi\ntolerance: {logits: {ulp: 2}}", 0),
        ("golden: {full_tokens: 2}\nprompt: {token_ids: [1, 2, 3], length: 2}\ntolerance: {logits: {ulp: 2}}", 0),
        (f'golden: {{full_tokens: 4}}\ndecode: {DENOISE}\ntolerance: {{"passes.*.logits": {{ulp: 2}}}}', 0),
        (f'golden: {{full_tokens: 3}}\ndecode: {DENOISE}\ntolerance: {{"passes.*.logits": {{ulp: 2}}}}', 1),
    ],
)
def test_rules_that_a_golden_cannot_bear_out(fields: str, wrong: int) -> None:
    prompt = "" if "prompt" in fields else LIVE
    _, found = read(prompt + fields)
    assert [code for code, _ in found] == ["golden-rule"] * wrong, found
