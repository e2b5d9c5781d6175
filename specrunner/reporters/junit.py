"""The JUnit report: flat `testsuites > testsuite > testcase`, valid under the Jenkins xunit plugin's schema.

Elements come from `junit-xml`; what that schema has no word for (`disabled`) is taken away, and what `junit-xml` has no
word for (`flakyError`, `rerunError`) is added. Names hold no measured values, so a dashboard can follow a case.
The root states no counts: the schema has no `skipped` there, and readers of the others take the skipped for passed.
"""

from __future__ import annotations

import platform
import shlex
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from specrunner.reporters.details import describe_case
from specrunner.reporters.escape import escape_line, escape_text
from specrunner.reporters.evidence import describe_facts
from specrunner.reporters.files import FileReporter
from specrunner.reporters.problems import Problem
from specrunner.reporters.record import CaseRecord, RunRecord, utc_text
from specrunner.results import Failure, Verdict
from specrunner.secrets import own_redactor

_FAILURES = (Verdict.FAILED, Verdict.XPASSED)


class JunitReporter(FileReporter):
    """Writes the run as JUnit XML."""

    what = "JUnit report"

    def render(self) -> bytes:
        """Return the report, UTF-8 with an XML declaration."""
        return render_junit(self.collector.record())


def render_junit(run: RunRecord) -> bytes:
    """Return the JUnit report of `run`: one suite a spec file, one testcase a case, in the order of the plan."""
    suites: dict[str, list[CaseRecord]] = {}
    for case in run.cases:
        suites.setdefault(case.suite, []).append(case)
    root = ElementTree.Element("testsuites", {"name": "specrunner"})
    run_facts = _describe_run(run)
    for name, cases in suites.items():
        root.append(_build_suite(name, cases, run.started_at, run_facts))
    root.set("time", _show_time(run.seconds or 0.0))
    return _serialize(root)


def render_problems(problems: Iterable[Problem], command: Sequence[str]) -> bytes:
    """Return the JUnit report of a run that did not begin: one suite a spec file, one `<error>` testcase a problem.

    What is no spec's fault, such as an empty selection, is an error, too: a dashboard shows a suite without a testcase
    as green, or not at all.
    """
    import junit_xml

    suites: dict[str, list[Any]] = {}
    for problem in problems:
        place = escape_line(problem.path) or "specrunner"
        built = junit_xml.TestCase(escape_line(problem.name), classname=place)
        built.add_error_info(escape_line(problem.message), escape_text(problem.text), escape_line(problem.code))
        suites.setdefault(place, []).append(built)
    root = ElementTree.Element("testsuites", {"name": "specrunner"})
    started_at = utc_text(time.time())
    facts = {"command": own_redactor().redact(shlex.join(command))}
    for name, built in suites.items():
        element = _build_element(name, built, started_at, facts)
        for timed in (element, *element.iterfind("testcase")):
            timed.set("time", _show_time(0.0))
        root.append(element)
    root.set("time", _show_time(0.0))
    return _serialize(root)


def _serialize(root: ElementTree.Element) -> bytes:
    ElementTree.indent(root)
    document: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def _build_element(name: str, built: Iterable[Any], started_at: str, facts: Mapping[str, str]) -> ElementTree.Element:
    """Return a suite as `junit-xml` writes it, without what the schema has no word for."""
    import junit_xml

    suite = junit_xml.TestSuite(
        escape_line(name),
        list(built),
        hostname=escape_line(platform.node()) or "localhost",
        timestamp=started_at,
        properties={escape_line(name): escape_line(text) for name, text in facts.items()},
    )
    element: ElementTree.Element = suite.build_xml_doc(encoding="utf-8")
    element.attrib.pop("disabled", None)
    return element


def _build_suite(
    name: str, cases: Iterable[CaseRecord], started_at: str, run_facts: Mapping[str, str]
) -> ElementTree.Element:
    cases = list(cases)
    element = _build_element(name, map(_build_case, cases), started_at, {**run_facts, **_describe_engines(cases)})
    element.set("time", _show_time(sum(case.seconds for case in cases)))
    for case, child in zip(cases, element.iterfind("testcase"), strict=True):
        child.set("time", _show_time(case.seconds))
        for attempt in case.attempts:
            child.append(_build_attempt(case, attempt))
    return element


def _build_case(case: CaseRecord) -> Any:
    import junit_xml

    built = junit_xml.TestCase(escape_line(case.id), classname=escape_line(_dotted(case.suite)))
    message = escape_line(case.message) or str(case.verdict)
    body = "\n".join([message, *(f" {line}".rstrip() for line in describe_case(case, repeats=False))])
    if case.verdict in _FAILURES:
        rule = case.first_failed.rule if case.first_failed and case.verdict is Verdict.FAILED else str(case.verdict)
        built.add_failure_info(message, body, escape_line(rule))
    elif case.verdict is Verdict.ERROR:
        built.add_error_info(message, body, escape_line(case.failure.kind if case.failure else "error"))
    elif case.verdict is Verdict.SKIPPED:
        help_text = case.failure.help if case.failure else None
        built.add_skipped_info(message, escape_text(help_text) if help_text else None)
    elif case.verdict is Verdict.INCONCLUSIVE:
        built.add_skipped_info(f"inconclusive: {message}")
    elif case.verdict is Verdict.XFAILED:
        built.add_skipped_info(f"expected to fail: {escape_line(case.xfail)}", message)
    return built


def _build_attempt(case: CaseRecord, failure: Failure) -> ElementTree.Element:
    """Return `flakyError` when the case passed in the end, else `rerunError`."""
    tag = "rerunError" if case.verdict in (*_FAILURES, Verdict.ERROR) else "flakyError"
    message = f"{failure.role}: {failure.message}" if failure.role else failure.message
    element = ElementTree.Element(tag, {"message": escape_line(message), "type": escape_line(failure.kind)})
    trace = ElementTree.SubElement(element, "stackTrace")
    trace.text = escape_text(f"{message}\nat {case.where}")
    if failure.log_tail:
        ElementTree.SubElement(element, "system-err").text = escape_text(failure.log_tail)
    return element


def _describe_run(run: RunRecord) -> dict[str, str]:
    """Return the facts that belong to every suite: the command and the machine."""
    facts = {"command": shlex.join(run.command)}
    facts |= {name: str(value) for name, value in run.environment.items() if isinstance(value, str | int | float)}
    return facts


def _describe_engines(cases: Iterable[CaseRecord]) -> dict[str, str]:
    """Return what the suite's engines really ran, by engine, dtype and model."""
    told: dict[str, str] = {}
    for case in cases:
        for side in (case.candidate, case.reference):
            facts = " · ".join(describe_facts(side.facts)) if side is not None else ""
            if side is not None and facts:
                told[f"engine {side.label} {case.model['label']}"] = facts
    return told


def _dotted(suite: str) -> str:
    """Return `specs/llada2/tiny` as `specs.llada2.tiny`, which dashboards show as a tree."""
    return ".".join(part for part in suite.split("/") if part not in ("", ".", "..")) or "specs"


def _show_time(seconds: float) -> str:
    """Return seconds with three decimals, which is all that the schema admits."""
    return f"{max(seconds, 0.0):.3f}"
