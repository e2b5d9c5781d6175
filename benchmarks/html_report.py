"""How large the HTML report of many cases is, and how long it takes to open in headless Chromium.

python benchmarks/html_report.py [--cases 5000] [--rounds 5]

The cases have the checks and measurements of a real comparison, with fresh digits in every one, so that they compress
no better than real ones. "Opens" is from the request to the first rows on the screen; the unit is a bare page, opened
in turn with the report.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from specrunner.checks.sources import MemorySource
from specrunner.checks.tensors import compare_tensors
from specrunner.reporters.html.page import render_page
from specrunner.reporters.record import CaseRecord, EngineRecord, RunRecord
from specrunner.results import CheckResult, Verdict
from specrunner.spec.model import Rule

TENSORS = ("embeddings", *(f"layers.{index}.output" for index in range(24)), "final_norm", "logits")
FACTS = {"model_class": "LlamaForCausalLM", "device": "cpu", "versions": {"torch": "2.13.0", "transformers": "5.23.0"}}


def make_checks(fails: bool) -> list[CheckResult]:
    """Return the checks of one case, measured on random tensors."""
    generator = torch.Generator().manual_seed(1)
    checks = []
    rules = [Rule("cosine", {"min": 0.9999999 if fails else 0.9}), Rule("noise_floor", {"k": 3})]
    for name in TENSORS:
        reference = torch.randn(32, 64, generator=generator)
        candidate, peer = (reference + 1e-3 * torch.randn(32, 64, generator=generator) for _ in range(2))
        sources = [MemorySource(name, values) for values in (candidate, reference, peer)]
        checks += compare_tensors(name, *sources[:2], rules, peer=sources[2], location="specs/many.yaml:9")
    return checks


def vary(value: Any, chance: random.Random) -> Any:
    """Return a JSON value with other digits in every float."""
    if isinstance(value, float):
        return value * (1 + 0.5 * chance.random())
    if isinstance(value, dict):
        return {name: vary(item, chance) for name, item in value.items()}
    return [vary(item, chance) for item in value] if isinstance(value, list) else value


def make_run(count: int) -> RunRecord:
    """Return a run in which one case in a hundred fails."""
    chance = random.Random(7)
    good, bad = make_checks(False), make_checks(True)
    side = EngineRecord("hf", "bfloat16", "cpu", {}, FACTS)
    cases = []
    for index in range(count):
        fails = index % 100 == 99
        checks = tuple(
            dataclasses.replace(check, measurements=vary(dict(check.measurements), chance))
            for check in (bad if fails else good)
        )
        name, suite = f"case-{index:05}", f"specs/part-{index % 40}"
        verdict = Verdict.FAILED if fails else Verdict.PASSED
        place = {"path": f"{suite}.yaml", "line": 9 + index, "column": 5}
        record = CaseRecord(
            f"{name}[engine=hf]", f"{suite}.yaml::{name}[engine=hf]", suite, name, (("engine", "hf"),), "", ("many",),
            place, {"label": "tiny"}, {"text": f"prompt {chance.random()}"}, None, "", verdict,
            "logits: cosine is below" if fails else "", chance.random(), side, side, checks,
        )  # fmt: skip
        cases.append(record)
    command = ("specrunner", "run", "specs/")
    return RunRecord(command, "2026-01-01T00:00:00+00:00", 60.0, False, True, 1, {}, (), tuple(cases))


def main() -> None:
    """Print one table."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    run = make_run(options.cases)
    started = time.perf_counter()
    page = render_page(run)
    written = time.perf_counter() - started
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        report, bare = Path(folder, "report.html"), Path(folder, "bare.html")
        report.write_bytes(page)
        bare.write_text("<!DOCTYPE html><html data-ready='true'><p>nothing</p>")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])

        def open_page(path: Path) -> float:
            tab = browser.new_page()
            began = time.perf_counter()
            tab.goto(path.as_uri())
            tab.wait_for_selector("html[data-ready]", state="attached")
            seconds = time.perf_counter() - began
            tab.close()
            return seconds

        pairs = [(open_page(report), open_page(bare)) for _ in range(options.rounds + 1)][1:]
        browser.close()
    ours, base = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
    ratio = statistics.median(one / other for one, other in pairs)
    print(f"{len(run.cases)} cases with {len(run.cases[0].checks)} checks each: {len(page) / 1e6:.1f} MB")
    print(f"written in {written:.1f} s, opens in {ours:.2f} s; a bare page {base:.2f} s, ratio {ratio:.1f}")


if __name__ == "__main__":
    main()
