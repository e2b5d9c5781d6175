"""Hostile text in reports: read back by parsers that are not ours, and obeyed by nobody."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lxml import etree

from specrunner.reporters import create_reporters
from specrunner.reporters.escape import disarm, escape_line, escape_text
from specrunner.reporters.html.page import render_page
from specrunner.results import CaseResult, Failure, Verdict
from specrunner.secrets import own_redactor
from specrunner.spec.model import Location, Model, Prompt
from tests.reporters.builders import FACTS, make_case, make_check, make_events, make_result, play
from tests.reporters.test_html import collect, read_data

PAYLOADS = (
    "</script><script>window.stolen=1</script>", "<!--<script>", "-->", "<img src=x onerror=window.stolen=1>",
    "\"><svg onload=window.stolen=1>", "' onmouseover='window.stolen=1", "javascript:window.stolen=1//",
    "</style><style>*{display:none}</style>", "</title><h1>x</h1>", "</textarea><b>", "{{ 7*7 }}${7*7}", "&lt;b&gt;",
    "]]>", "]]]]><![CDATA[>", "<![CDATA[", "<!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]>&e;", "&e;", "&#0;",
    "\x00\x01\x08\x0b\x0c\x1f\x7f\x85\x9b", "\ud800", "\udfff\ud800", "\ufffe\uffff", "\U0001ffff", "\ufdd0",
    "\u2028\u2029",
    "\u202egnp.exe", "\u2066", "\x1b[31m", "\x1b]0;title\x07", "\x1b]8;;http://evil\x1b\\", "\x9b2J", "\r\x1b[2K",
    "::error::x", "\n::error::x", "\n  ::stop-commands::x", "\r\n::add-mask::x", "\n##[error]x", "x##[group]y",
    "%0A::error::x", "::set-output name=a::b", "| a | b |", "```\n# x\n```", "[x](javascript:alert(1))", "![x](http://x)",
    "<details>", "@everyone #1", "__proto__", "constructor", "\u0000", "a" * 5000,
)  # fmt: skip
TEXT = st.lists(st.sampled_from(PAYLOADS) | st.text(max_size=12), min_size=1, max_size=4).map("".join).filter(bool)
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


def make_hostile(text: str, number: int = 0) -> list[CaseResult]:
    """Return an error, a failure and a skip with the text wherever foreign text may stand."""
    fields: dict[str, Any] = {
        "prompt": Prompt(text=text),
        "tags": (text,),
        "description": text,
        "model": Model(path=f"/x/{text}"),
        "parameters": (("engine", text),),
        "location": Location(f"specs/{text}.yaml", 3, 1),
    }
    facts = {**FACTS, "model_class": text, "attention_backend": text, "patches": [text], text: {text: [text]}}
    check = make_check(text, passed=False, rule=text, message=text)
    log = f"{text}\n  {text}\nlast"
    return [
        make_result(
            make_case(f"e{number}{text}", **fields),
            Verdict.ERROR,
            checks=(),
            failure=Failure(text, text, text, log, "candidate"),
            candidate=facts,
        ),
        make_result(make_case(f"f{number}{text}", **fields), Verdict.FAILED, checks=(check,), candidate=facts),
        make_result(make_case(f"s{number}{text}", **fields), Verdict.SKIPPED, failure=Failure("x", text, text)),
    ]


def report(results: list[CaseResult], **options: Any) -> tuple[str, str]:
    out, err = io.StringIO(), io.StringIO()
    play(make_events(results), *create_reporters(stdout=out, stderr=err, color="never", **options))
    return out.getvalue(), err.getvalue()


@settings(max_examples=40)
@given(TEXT)
@example("".join(PAYLOADS))
def test_junit_gives_the_escaped_text_back(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("junit") / "r.xml"
    results = make_hostile(text)
    report(results, junit=path)
    parser = etree.XMLParser(resolve_entities=True, load_dtd=True, recover=False)
    root = etree.parse(path, parser).getroot()
    cases = {str(case.get("name")): case for case in root.iter("testcase")}
    error, failed, skipped = (cases[escape_line(result.case.id)] for result in results)
    assert error.find("error").get("message") == escape_line(f"candidate: {text}")
    assert failed.find("failure").get("message") == escape_line(f"{text}: {text}")
    assert skipped.find("skipped").get("message") == escape_line(text)
    shown = "".join(error.itertext())
    for line in filter(None, escape_text(text).split("\n")):
        assert line.strip() in shown


@settings(max_examples=40)
@given(TEXT)
@example("".join(PAYLOADS))
def test_html_carries_the_text_and_no_markup_of_it(text: str) -> None:
    page = render_page(collect(make_hostile(text)))
    data = read_data(page)
    assert [case["id"] for case in data["details-0"]] == [escape_text(case.case.id) for case in make_hostile(text)]
    blobs = re.sub(rb'(id="data-[\w-]+">)[\w+/=]+', rb"\1", page)
    bare = re.sub(rb'(id="data-[\w-]+">)[\w+/=]+', rb"\1", render_page(collect(make_hostile("x"))))
    assert re.sub(rb"\d", b"", blobs) == re.sub(rb"\d", b"", bare)  # the text is in the packed data alone


def read_commands(output: str) -> list[tuple[str, str]]:
    """Read workflow commands as GitHub's runner does: after leading blanks, or `##[` anywhere."""
    commands = []
    for line in re.split("\r\n|\r|\n", output):
        bare = line.lstrip()
        if bare.startswith("::") and bare.find("::", 2) > 0:
            head, _, data = bare[2:].partition("::")
            commands.append((head.split(" ")[0], data.replace("%0D", "\r").replace("%0A", "\n").replace("%25", "%")))
        elif "##[" in line:
            commands.append(("##", line))
    return commands


@settings(max_examples=40)
@given(TEXT)
@example("".join(PAYLOADS))
@example("http://x)@everyone")
@example("x\n::stop-commands::x")
def test_a_ci_obeys_no_text(text: str) -> None:
    for output in report(make_hostile(text), output_format="full"):
        assert read_commands(output) == []
    out, err = report(make_hostile(text), output_format="github")
    assert read_commands(err) == []
    commands = read_commands(out)
    assert [name for name, _ in commands] == ["error", "error"]
    messages = (f"candidate: {text}", f"{text}: {text}")
    for message, (_, data) in zip(messages, commands, strict=True):
        told = escape_line(own_redactor().redact(message))  # which may look like a password in an address
        assert data.startswith(told.replace("##[", r"#\x23["))


@settings(max_examples=40)
@given(TEXT)
@example("".join(PAYLOADS))
def test_a_terminal_obeys_no_text(text: str) -> None:
    for form in ("full", "concise", "github"):
        for output in report(make_hostile(text), output_format=form):
            assert re.findall(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", output) == []


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("  ::error::x", r"  \x3a:error::x"),
        ("\t::x", r"  \x3a:x".replace("  ", "\t")),
        ("::error file=a::x", "::error file=a::x"),
        ("a ::x", "a ::x"),
        ("specs/a.yaml::case", "specs/a.yaml::case"),
        ("x ##[error]y", r"x #\x23[error]y"),
        ("", ""),
    ],
)
def test_lines_are_disarmed(line: str, shown: str) -> None:
    assert disarm(line) == shown


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.slow
@pytest.mark.browser
def test_a_browser_runs_and_loads_nothing_of_the_text(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    results = [result for number, text in enumerate(PAYLOADS) for result in make_hostile(text, number)]
    path.write_bytes(render_page(collect(results)))
    page = browser.new_page()
    requests: list[str] = []
    dialogs: list[Any] = []
    problems: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready]", timeout=120_000)
    for link in page.eval_on_selector_all("a.row", "rows => rows.map(row => row.getAttribute('href'))")[:12]:
        page.goto(page.url.split("#")[0] + link)
        page.wait_for_selector("#case:not([hidden]) h1")
        assert page.locator("#case").get_by_text("last", exact=False).count() >= 0
        assert page.evaluate("window.stolen") is None
        schemes = page.eval_on_selector_all("a", "links => links.map(link => link.protocol)")
        assert set(schemes) <= {"file:", ""}
        assert page.locator("#case img, #case svg[onload], #case b, #case script, #case style").count() == 0
    assert (dialogs, problems) == ([], [])
    assert {url.split("#")[0] for url in requests} == {path.as_uri()}
    page.close()
