"""The HTML report's data and its file, without a browser."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from specrunner.reporters import create_reporters
from specrunner.reporters.html.page import SCRIPTS, STYLES, describe_headline, render_page
from specrunner.reporters.html.payload import clean, describe_case, trace_errors
from specrunner.reporters.record import CaseRecord, RunRecord
from specrunner.results import CaseResult, Verdict
from specrunner.spec.model import Location
from tests.reporters.builders import make_all_verdicts, make_case, make_check, make_events, make_result, play
from tests.reporters.hostile import HOSTILE, make_layers, make_rich_results

TEMPLATES = Path(render_page.__code__.co_filename).parent / "templates"


def collect(results: list[CaseResult]) -> RunRecord:
    from specrunner.reporters.collector import RunCollector

    collector = RunCollector()
    for event in make_events(results):
        collector.handle(event)
    return collector.record()


def read_data(page: bytes) -> dict[str, Any]:
    blobs = re.findall(r'id="data-([\w-]+)">([\w+/=]+)</script>', page.decode())
    return {name: json.loads(gzip.decompress(base64.b64decode(blob))) for name, blob in blobs}


def test_a_run_writes_the_file_that_was_asked_for(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "report.html"
    out = io.StringIO()
    play(make_events(make_all_verdicts()), *create_reporters(html=target, stdout=out, stderr=io.StringIO()))
    assert target.read_bytes().startswith(b"<!DOCTYPE html>")
    assert f"HTML report: {target}" in out.getvalue()


def test_the_data_are_those_of_the_run() -> None:
    run = collect(make_rich_results())
    data = read_data(render_page(run))
    whole = json.loads(json.dumps(run.to_json()))
    assert data["run"]["counts"] == whole["counts"]
    assert [row[3] for row in data["cases"]] == [case["verdict"] for case in whole["cases"]]
    for shown, case in zip(data["details-0"], whole["cases"], strict=True):
        if "evil" not in case["id"]:
            assert [check["measurements"] for check in shown["checks"]] == clean(
                [check["measurements"] for check in case["checks"]]
            )


def test_nothing_of_a_run_is_markup() -> None:
    page = render_page(collect(make_rich_results())).decode()
    assert "onerror" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert page.count("</script>") == len(re.findall("<script", page))


def test_the_command_line_is_escaped() -> None:
    run = collect(make_all_verdicts())
    import dataclasses

    page = render_page(dataclasses.replace(run, command=("specrunner", "run", HOSTILE))).decode()
    assert "<img" not in page
    assert "&lt;img" in page


def test_the_page_loads_nothing_from_elsewhere() -> None:
    text = "".join((TEMPLATES / name).read_text() for name in (*SCRIPTS, *STYLES, "report.html"))
    assert set(re.findall(r"https?://[^\"'\s]+", text)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert "default-src 'none'" in text


def test_scripts_never_read_text_as_markup() -> None:
    text = "".join((TEMPLATES / name).read_text() for name in SCRIPTS)
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)


@pytest.mark.parametrize("verdict", list(Verdict))
def test_every_verdict_has_its_colours(verdict: Verdict) -> None:
    style = "".join((TEMPLATES / name).read_text() for name in STYLES)
    assert f".v-{verdict}" in style
    assert f".fill-{verdict}" in style


@pytest.mark.parametrize(
    ("results", "headline"),
    [
        ([], "There was no case to run"),
        ([Verdict.PASSED, Verdict.SKIPPED], "All 1 case that ran hold"),
        ([Verdict.SKIPPED], "Nothing was verified"),
        ([Verdict.PASSED, Verdict.FAILED], "1 case gives wrong numbers"),
        ([Verdict.ERROR, Verdict.ERROR, Verdict.FAILED], "1 case gives wrong numbers · 2 cases have no evidence"),
    ],
)
def test_the_headline(results: list[Verdict], headline: str) -> None:
    cases = [make_result(make_case(f"case-{index}"), verdict) for index, verdict in enumerate(results)]
    assert describe_headline(collect(cases)) == headline


def test_the_spec_is_quoted_around_its_case_and_the_rule_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = ["version: 1", "cases:", "  - name: one", "    prompt: a", "    tolerance:", "      logits: exact"]
    lines += ["  - name: two", "    prompt: b"]
    Path("quoted.yaml").write_text("\n".join(lines))
    case = make_case("one", suite="quoted", line=3, location=Location("quoted.yaml", 3, 5))
    check = make_check(passed=False)
    import dataclasses

    check = dataclasses.replace(check, location="quoted.yaml:6")
    shown = describe_case(CaseRecord.from_result(make_result(case, Verdict.FAILED, checks=(check,))))
    assert shown["source"] == {"path": "quoted.yaml", "start": 1, "lines": lines[:7], "marks": [3, 6]}


def test_errors_come_from_the_checks_without_a_diagnosis() -> None:
    rows = trace_errors(CaseRecord.from_result(make_result(verdict=Verdict.FAILED, checks=make_layers())))
    assert [row["tensor"] for row in rows if row["failed"]] == ["layers.2.output", "layers.3.output", "logits"]
    assert rows[1]["floor"] == pytest.approx(2e-4)


def test_errors_and_counts_are_those_of_one_comparison() -> None:
    """What a golden says never stands in the chart of what a reference says."""
    layers = make_layers()
    first = next(index for index, check in enumerate(layers) if check.fails)
    kept = [
        dataclasses.replace(check, against="golden", measurements={"relative_l2": 9.0, "golden": "a/b@cpu"})
        for check in layers
    ]
    both = CaseRecord.from_result(make_result(verdict=Verdict.FAILED, checks=(*layers, *kept)))
    shown = describe_case(both)
    errors = [check.measurements["relative_l2"] for check in layers]
    assert [row["error"] for row in shown["growth"]] == pytest.approx(errors)
    assert shown["later"].endswith(
        f"{sum(check.fails for check in kept)} of {len(kept)} checks against the golden failed too"
    )
    assert (shown["side"], shown["golden"]) == ("reference", "a/b@cpu")

    passing = [dataclasses.replace(check, passed=True) for check in layers]
    shown = describe_case(CaseRecord.from_result(make_result(verdict=Verdict.FAILED, checks=(*passing, *kept))))
    assert {row["error"] for row in shown["growth"]} == {9.0}
    assert (shown["side"], shown["first_failed"]) == ("golden", len(layers) + first)
    assert "against the golden" not in shown["later"]


def test_large_runs_keep_what_was_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specrunner.reporters.html.payload.MOST_WHOLE", 2)
    measured = {"relative_l2": 0.1, "outside_fraction": 0.0, "elements": 99}
    cases = [make_result(make_case(f"case-{index}"), checks=(make_check(**measured),)) for index in range(3)]
    data = read_data(render_page(collect(cases)))
    assert data["run"]["slim"]
    assert data["details-0"][0]["checks"][0]["measurements"] == {}
    assert data["details-0"][0]["checks"][0]["margins"] == [["outside_fraction", 0.0, 0.0, "≤", None]]


def test_failing_tensors_have_the_error_of_each_token() -> None:
    torch = pytest.importorskip("torch")
    from specrunner.checks.measure import measure
    from specrunner.checks.sources import MemorySource

    reference = torch.ones(600, 2, 8, dtype=torch.float64)
    candidate = reference.clone()
    candidate[7, 1] += 0.5
    measured = measure(MemorySource("x", candidate.float()), MemorySource("x", reference.float()))
    errors = measured.describe_tokens()["token_errors"]
    assert (errors["tokens"], errors["tokens_per_number"], len(errors["largest"])) == (600, 3, 200)
    assert errors["largest"][2] == pytest.approx(0.5)  # tokens 6, 7 and 8
    assert sum(1 for value in errors["largest"] if value) == 1
