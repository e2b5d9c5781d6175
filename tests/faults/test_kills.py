"""Workers, their children and whole runs, killed with SIGKILL at random moments: no verdict is lost or wrong."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tests.faults.keeping import check_cache, digest_tree, wait_until_alone
from tests.faults.storms import Storm
from tests.workplace import Workplace, count_junit

OPTIONS = "{helper: true}"
KILLS = int(os.environ.get("SPECRUNNER_KILLS", "1000"))
"""How many the long test makes."""


def write_suite(place: Workplace, cases: int, tag: str, name: str = "spec.yaml") -> dict[str, str]:
    """Write a suite on three sessions, and return the verdicts of its cases; every fifth has wrong numbers."""
    prompts = {f"c{index}": f"wrong {tag}" if index % 5 == 4 else f"slow 0.1 {tag}-{index}" for index in range(cases)}
    place.write_spec(prompts, options=OPTIONS, name=name)
    return {case: "failed" if prompt.startswith("wrong") else "passed" for case, prompt in prompts.items()}


def keep_golden(place: Workplace) -> None:
    """Make a golden in the workplace, and accept it."""
    place.write_spec({"kept": "slow 0 golden"}, options="{golden: 1}", name="golden.yaml")
    spec = place.folder / "golden.yaml"
    spec.write_text(
        spec.read_text().replace("tolerance: {logits: exact}", "tolerance: {logits: exact}\n  golden: true")
    )
    assert place.run("golden.yaml", "--update-goldens").code in (0, 10)
    accepted = place.command("golden", "accept", "*", "golden.yaml", "--reason", "first")
    assert accepted.returncode == 0, accepted.stderr


@pytest.mark.slow
def test_random_kills_cost_no_verdict(workplace: Workplace) -> None:
    expected = write_suite(workplace, 15, "a")
    process = workplace.start("spec.yaml", "--retries", "100", "-j", "2")
    storm = Storm(workplace.environment["SPECRUNNER_TEST"], process.pid, seed=1, pause=0.1, most=8)
    storm.start()
    outcome = workplace.finish(process)
    assert storm.stop() >= 3, "there was hardly a kill"
    assert outcome.code == 1, outcome.stderr
    assert outcome.verdicts() == expected
    assert "SIGKILL" in json.dumps(outcome.report["cases"]) or "own process is gone" in json.dumps(outcome.report)
    assert check_cache(Path(workplace.environment["SPECRUNNER_CACHE"])) > 0


@pytest.mark.endurance
@pytest.mark.timeout(7200)
def test_a_thousand_random_kills(workplace: Workplace) -> None:
    keep_golden(workplace)
    marker, cache = workplace.environment["SPECRUNNER_TEST"], Path(workplace.environment["SPECRUNNER_CACHE"])
    goldens = digest_tree(workplace.folder / "golden")
    assert goldens
    total, runs, entries, begun = {"worker": 0, "child": 0, "run": 0}, 0, 0, time.monotonic()
    tag = 0
    while sum(total.values()) < KILLS:
        tag += 1
        expected = write_suite(workplace, 20, str(tag)) | {"kept": "passed"}
        while True:
            runs += 1
            process = workplace.start("spec.yaml", "golden.yaml", "--retries", "1000", "-j", "3")
            left = KILLS - sum(total.values())
            storm = Storm(marker, process.pid, seed=runs, most=left, run_share=0.02)
            storm.start()
            _, stderr = process.communicate(timeout=1200)
            storm.stop()
            for kind, number in storm.kills.items():
                total[kind] += number
            wait_until_alone(workplace)
            if not storm.kills["run"]:
                break
        assert process.returncode == 1, stderr
        report = json.loads((workplace.folder / "r.json").read_text())
        assert {case["name"]: case["verdict"] for case in report["cases"]} == expected
        count_junit(workplace.folder / "r.xml")
        entries = check_cache(cache)
        assert digest_tree(workplace.folder / "golden") == goldens
        print(
            f"{time.monotonic() - begun:.0f} s: {total} kills, {runs} runs, {tag} suites, {entries} entries", flush=True
        )
    outcome = workplace.run("spec.yaml", "golden.yaml")
    assert outcome.verdicts() == expected, "an undisturbed run says something else"
    assert outcome.stderr.count("damaged") == 0
