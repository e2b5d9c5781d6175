"""The job summary, read by a Markdown parser that we did not write."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from lxml import html
from markdown_it import MarkdownIt

from specrunner.cli.run import find_job_summary
from specrunner.config import Settings
from specrunner.reporters import create_reporters
from specrunner.reporters.escape import escape_line
from specrunner.reporters.markdown import code_span, escape_markdown, render_summary
from specrunner.results import Verdict
from tests.reporters.builders import make_all_verdicts, make_case, make_events, make_result, play
from tests.reporters.hostile import HOSTILE, make_rich_results
from tests.reporters.test_html import collect

MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def read(text: str) -> html.HtmlElement:
    return html.document_fromstring(MARKDOWN.render(text))


def test_a_summary_is_a_table_and_foldable_evidence() -> None:
    page = read(render_summary(collect(make_all_verdicts())))
    assert page.findtext(".//h2").startswith("specrunner: 1 failed, 1 error, 1 xpassed")
    rows = [[cell.text_content() for cell in row] for row in page.findall(".//tr")]
    assert [row[0] for row in rows] == ["verdict", "FAIL", "ERROR", "XPASS", "verdict", "SKIP", "XFAIL"]
    assert {len(row) for row in rows} == {4}
    assert rows[1][2] == "specs/smoke/glass.yaml:12"
    summaries = [summary.text_content() for summary in page.findall(".//summary")]
    assert summaries[0] == "FAIL fails[engine=hf,dtype=bfloat16]"
    assert "is the first that went wrong" in page.find(".//details").findtext("pre/code")


def test_hostile_text_stays_text() -> None:
    page = read(render_summary(collect(make_rich_results())))
    assert page.findall(".//img") + page.findall(".//b") + page.findall(".//script") == []
    shown = escape_line(HOSTILE)
    summaries = [summary.text_content() for summary in page.findall(".//summary")]
    assert f"ERROR evil {shown}[engine=hf,dtype=bfloat16]" in summaries
    assert shown in page.findall(".//tr")[5].text_content()
    assert len(page.findall(".//details")) == 6  # no fence was left too early


@pytest.mark.parametrize(
    "text", ["a|b", "*a* _b_ ~~c~~", "[a](b)", "`x", "<i>", "&amp;", "1. a", "# a", "\\\\*", "- a"]
)
def test_escapes_are_read_back(text: str) -> None:
    assert read(f"x {escape_markdown(text)}").findtext(".//p") == f"x {text}"
    assert read(f"x {code_span(text)}").findtext(".//p/code") == text


def test_a_summary_has_a_bound() -> None:
    cases = [make_result(make_case(f"case-{index}"), Verdict.FAILED) for index in range(4000)]
    text = render_summary(collect(cases))
    assert len(text.encode()) < 1_000_000
    assert "more cases does not fit here" in text


def test_a_run_adds_to_the_file(tmp_path: Path) -> None:
    target = tmp_path / "summary.md"
    target.write_text("before\n")
    out = io.StringIO()
    reporters = create_reporters(summary=target, output_format="github", stdout=out, stderr=io.StringIO())
    play(make_events(make_all_verdicts()), *reporters)
    assert target.read_text().startswith("before\n## specrunner:")


def test_a_file_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    out = io.StringIO()
    reporters = create_reporters(summary=tmp_path, output_format="github", stdout=out, stderr=io.StringIO())
    play(make_events(make_all_verdicts()), *reporters)
    assert "warning: cannot write the job summary" in out.getvalue()


def test_only_the_format_for_github_writes_one() -> None:
    environ = {**os.environ, "GITHUB_STEP_SUMMARY": "summary.md"}
    assert find_job_summary(Settings(output_format="github"), environ) == Path("summary.md")
    assert find_job_summary(Settings(), environ) is None
    assert find_job_summary(Settings(output_format="github"), {}) is None
