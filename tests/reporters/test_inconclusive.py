"""The verdict `inconclusive`: no failure, no pass, and a failure under `--strict`."""

from __future__ import annotations

import dataclasses
import io
import json
import xml.etree.ElementTree as ElementTree

from lxml import etree

from specrunner.judging import settle_inconclusive, settle_verdict
from specrunner.plan.model import PlannedCase
from specrunner.reporters.collector import RunCollector
from specrunner.reporters.files import FileReporter
from specrunner.reporters.junit import render_junit
from specrunner.reporters.progress import Progress
from specrunner.reporters.record import RunRecord
from specrunner.reporters.style import PLAIN
from specrunner.reporters.terminal import TerminalReporter
from specrunner.results import CaseResult, CheckResult, Verdict
from tests.reporters.builders import make_case, make_check, make_events, play
from tests.reporters.test_junit import RULES

OPEN = CheckResult("gsm8k", "benchmark", False, "too few samples", {"samples": 20}, inconclusive=True)
GREEN = make_check()


def make_open_result() -> CaseResult:
    return CaseResult(make_case("open"), Verdict.INCONCLUSIVE, checks=(GREEN, OPEN))


def test_an_inconclusive_check_neither_passes_nor_fails_the_case() -> None:
    planned = PlannedCase(make_case(), {})
    assert settle_verdict(planned, (GREEN, OPEN), None) is Verdict.INCONCLUSIVE
    assert settle_verdict(planned, (make_check(passed=False), OPEN), None) is Verdict.FAILED
    assert settle_verdict(planned, settle_inconclusive((GREEN, OPEN), strict=False), None) is Verdict.INCONCLUSIVE
    assert settle_verdict(planned, settle_inconclusive((GREEN, OPEN), strict=True), None) is Verdict.FAILED
    assert settle_verdict(planned, settle_inconclusive((GREEN,), strict=True), None) is Verdict.PASSED


def test_every_report_tells_it() -> None:
    collector = RunCollector()
    for event in make_events([make_open_result()], exit_code=5):
        collector.handle(event)
    run = collector.record()
    document = render_junit(run)
    RULES.assertValid(etree.fromstring(document))
    skipped = ElementTree.fromstring(document).find(".//skipped")
    assert skipped is not None and skipped.get("message") == "inconclusive: gsm8k: too few samples"
    data = json.loads(json.dumps(run.to_json()))
    assert data["counts"]["inconclusive"] == 1
    assert data["cases"][0]["checks"][1]["inconclusive"] is True
    assert RunRecord.from_json(data).cases[0].verdict is Verdict.INCONCLUSIVE
    out = io.StringIO()
    files: list[FileReporter] = []
    play(make_events([make_open_result()], exit_code=5), TerminalReporter(out, PLAIN, Progress(), files))
    assert "INCONCLUSIVE\n  1 case: gsm8k: too few samples\n" in out.getvalue()
    assert out.getvalue().endswith("1 inconclusive in 3.25 s: nothing was verified\n")


def test_a_message_needs_no_failed_check() -> None:
    assert make_open_result().message == "gsm8k: too few samples"
    assert dataclasses.replace(make_open_result(), checks=(GREEN,)).message == ""
