"""Workflow commands for GitHub Actions."""

from __future__ import annotations

import io

import pytest

from specrunner.reporters import create_reporters
from specrunner.reporters.github import annotate_case, escape_data, escape_property
from specrunner.reporters.record import CaseRecord
from specrunner.results import Verdict
from specrunner.spec.model import Location
from tests.reporters.builders import make_all_verdicts, make_case, make_events, make_result, play


@pytest.mark.parametrize(
    ("text", "data", "value"),
    [
        ("100 %", "100 %25", "100 %25"),
        ("a\r\nb", "a%0D%0Ab", "a%0D%0Ab"),
        ("a:b,c", "a:b,c", "a%3Ab%2Cc"),
        ("%0A", "%250A", "%250A"),
    ],
)
def test_escapes(text: str, data: str, value: str) -> None:
    assert escape_data(text) == data
    assert escape_property(text) == value


def test_a_failure_is_annotated_at_its_line() -> None:
    case = make_case("100%", location=Location("specs/a,b.yaml", 7, 5))
    command = annotate_case(CaseRecord.from_result(make_result(case, Verdict.FAILED)))
    assert command.startswith(
        "::error file=specs/a%2Cb.yaml,line=7,col=5,title=100%25[engine=hf%2Cdtype=bfloat16]"
        "::logits: 3 of 64 elements differ by more than the tolerance%0Aat specs/a,b.yaml:7%0A"
    )
    assert "\n" not in command


def test_only_bad_cases_are_annotated_and_the_counts_come_last() -> None:
    out = io.StringIO()
    play(make_events(make_all_verdicts()), *create_reporters(output_format="github", stdout=out, stderr=io.StringIO()))
    lines = out.getvalue().splitlines()
    annotated = [line for line in lines if line.startswith("::")]
    assert [line.partition("title=")[2].partition("[")[0] for line in annotated] == ["fails", "breaks", "mended"]
    assert lines[-1].startswith("1 failed, 1 error")
    assert "FAILURES" not in lines
