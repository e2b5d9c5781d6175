"""How many planted faults other projects' checks catch, on the same engine, prompts and faults as our own specs.

    python tools/study_detection.py                 both dtypes, Markdown on standard output
    python tools/study_detection.py --prompts 4     fewer prompts

The checks are re-created from what their projects document, on logits and tokens of the tiny LLaDA2:

    allclose     every element of the logits within 1e-2, relative and absolute
    top-1        the most probable token agrees at 95 % of the positions or more
    vLLM         at the first token that differs, each side's token is among the other's five most probable ones
    SGLang       ROUGE-L of the texts at least 0.99, and log-probabilities within 5e-2 (prefill)
    accuracy     right answers on the held-out tasks within 2 points; left out with fewer than 100 prompts

The reference of each is the healthy model in float32; a fault counts as caught when the check fails on one prompt or
more. The column "alarms" counts legitimate variants on which it fails.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import specrunner.models
from specrunner.engines.base import Capture
from specrunner.engines.hf import HfEngine
from specrunner.engines.planters import plant
from specrunner.faults.catalogue import check_patterns, find_faults, find_variants
from specrunner.faults.model import Fault
from specrunner.models.recipes import ensure_model
from specrunner.requests import Request, Session
from specrunner.spec.model import Decode, Model, Prompt

HELD_OUT = Path(specrunner.models.__file__).parent / "tiny_llada2" / "held_out.json"
TOP = 5
LEAST_FOR_ACCURACY = 100
ROUGE, LOGPROB, TOP_1, CLOSE, ACCURACY = 0.99, 5e-2, 0.95, 1e-2, 0.02


@dataclass(frozen=True)
class Sample:
    """What one engine did with one prompt."""

    logits: torch.Tensor
    """Of the prompt, [tokens, vocabulary]."""
    tokens: list[int]
    """The generated ones."""
    top: list[set[int]]
    """Of each generated token, the most probable ids when it was filled."""
    right: bool


def rouge_l(left: Sequence[int], right: Sequence[int]) -> float:
    """F1 of the longest common subsequence (Lin 2004)."""
    row = [0] * (len(right) + 1)
    for a in left:
        new = [0]
        for index, b in enumerate(right):
            new.append(row[index] + 1 if a == b else max(row[index + 1], new[-1]))
        row = new
    return 2 * row[-1] / (len(left) + len(right)) if left or right else 1.0


def fails_allclose(found: Sample, wanted: Sample) -> bool:
    """Element by element, on the prompt's logits."""
    return not torch.allclose(found.logits, wanted.logits, rtol=CLOSE, atol=CLOSE)


def fails_top_1(found: Sample, wanted: Sample) -> bool:
    """The share of positions with the same most probable token."""
    return float((found.logits.argmax(-1) == wanted.logits.argmax(-1)).float().mean()) < TOP_1


def fails_vllm(found: Sample, wanted: Sample) -> bool:
    """The first differing token must be among the other side's most probable ones."""
    for index, (ours, theirs) in enumerate(zip(found.tokens, wanted.tokens, strict=False)):
        if ours != theirs:
            return ours not in wanted.top[index] or theirs not in found.top[index]
    return False


def fails_sglang(found: Sample, wanted: Sample) -> bool:
    """ROUGE-L of the output, and the last position's log-probabilities."""
    best = wanted.logits.log_softmax(-1).topk(TOP, dim=-1)
    apart = (found.logits.log_softmax(-1).gather(-1, best.indices) - best.values).abs()
    return rouge_l(found.tokens, wanted.tokens) < ROUGE or bool(apart[-1].max() > LOGPROB)


CHECKS: dict[str, Callable[[Sample, Sample], bool]] = {
    "allclose 1e-2": fails_allclose,
    "top-1 ≥ 95 %": fails_top_1,
    "vLLM's style": fails_vllm,
    "SGLang's style": fails_sglang,
}


def load(dtype: str) -> HfEngine:
    """Load the tiny checkpoint."""
    model = Model(recipe="tiny-llada2", trust_remote_code=True)
    session = Session("hf", "", model, dtype, "cpu", {})
    engine = HfEngine(session, ensure_model(model), Path(tempfile.mkdtemp()))
    engine.load()
    return engine


def take(engine: HfEngine, prompt: dict[str, Any], fault: str | None) -> Sample:
    """Run one prompt, the fault planted."""
    decode = Decode(12, "low_confidence", 16, 0.95)
    request = Request(Prompt(text=prompt["prompt"]), ("logits", "passes.*.logits"), decode)
    with plant(engine, fault):
        done = engine.capture(request)
    answer = [token for token in done.output_token_ids or [] if token != 256]
    right = bytes(token for token in answer if token < 256).decode(errors="replace") == prompt["answer"]
    return Sample(done.tensors["logits"].float(), done.output_token_ids or [], top_of(done), right)


def top_of(done: Capture) -> list[set[int]]:
    """Return the most probable ids of each generated token, from the pass that filled it."""
    filled: dict[int, set[int]] = {}
    for number, step in enumerate(done.facts["trajectory"]):
        logits = done.tensors[f"passes.{number}.logits"]
        for place in step["accepted"]:
            filled[place] = set(logits[place - step["block_start"]].topk(TOP).indices.tolist())
    start = len(done.prompt_token_ids)
    return [filled.get(start + index, set()) for index in range(len(done.output_token_ids or []))]


def study(dtype: str, prompts: list[dict[str, Any]], changes: Sequence[Fault]) -> dict[str, dict[str, bool]]:
    """Return, by change and check, whether the check fails."""
    healthy = load("float32")
    reference = [take(healthy, prompt, None) for prompt in prompts]
    engine = load(dtype)
    found: dict[str, dict[str, bool]] = {}
    score = sum(sample.right for sample in reference) / len(prompts)
    for change in changes:
        samples = [take(engine, prompt, change.name) for prompt in prompts]
        pairs = list(zip(samples, reference, strict=True))
        failed = {name: any(fails(ours, theirs) for ours, theirs in pairs) for name, fails in CHECKS.items()}
        if len(prompts) >= LEAST_FOR_ACCURACY:
            failed["accuracy ± 2 %"] = abs(sum(s.right for s in samples) / len(prompts) - score) > ACCURACY
        found[change.name] = failed
        print(f"{dtype} {change.name} {failed}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=14)
    parser.add_argument("--dtype", action="append", default=[])
    parser.add_argument("--fault", action="append", default=[], help="names, patterns or areas; none is all")
    options = parser.parse_args()
    check_patterns(options.fault)
    torch.set_num_threads(1)
    prompts = json.loads(HELD_OUT.read_text(encoding="utf-8"))["prompts"][: options.prompts]
    for dtype in options.dtype or ["float32", "bfloat16"]:
        faults = [fault for fault in find_faults("hf", options.fault) if not fault.why_invisible(dtype)]
        variants = find_variants("hf", options.fault)
        found = study(dtype, prompts, [*faults, *variants])
        checks = list(next(iter(found.values())))
        print(f"| {dtype}: check | faults caught, of {len(faults)} | alarms, of {len(variants)} variants | missed |")
        print("| --- | --- | --- | --- |")
        for check in checks:
            missed = [fault.name for fault in faults if not found[fault.name][check]]
            alarms = sum(found[variant.name][check] for variant in variants)
            shown = ", ".join(missed[:6]) + (f" and {len(missed) - 6} more" if len(missed) > 6 else "")
            print(f"| {check} | {len(faults) - len(missed)} | {alarms} | {shown} |")
        print(flush=True)


if __name__ == "__main__":
    main()
