"""`specrunner show`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from specrunner.cli import main
from specrunner.reporters.json import LAST_RUN, JsonReporter
from specrunner.results import CheckResult, Verdict
from tests.reporters.builders import make_all_verdicts, make_case, make_check, make_events, make_result, play


@pytest.fixture
def last_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in which a run has just ended."""
    monkeypatch.chdir(tmp_path)
    checks = (
        CheckResult("embeddings", "exact", True, "", {"differing": 0, "max_abs": 0.0}, {}, "specs/a.yaml:20"),
        CheckResult(
            "logits", "sqnr", False, "sqnr 38 dB is below 40", {"min_sqnr": 38.0}, {"min": 40}, "specs/a.yaml:21"
        ),
    )
    deep = make_result(make_case("deep", line=30), Verdict.FAILED, checks=checks)
    play(make_events([*make_all_verdicts(), deep], exit_code=1), JsonReporter(LAST_RUN))
    return tmp_path


@pytest.mark.usefixtures("last_run")
def test_without_a_case_it_lists_the_last_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "run of 2023-11-14T22:13:20+00:00, took 3.25 s: specrunner run specs/"
    words = [line.split()[:2] for line in lines if line.startswith("  ")]
    assert words[0] == ["PASS", "passes[engine=hf,dtype=bfloat16]"]
    assert [word for word, _ in words] == ["PASS", "FAIL", "ERROR", "SKIP", "XFAIL", "XPASS", "FAIL"]
    assert lines[-1].startswith("2 failed, 1 error, 1 xpassed, 1 passed, 1 xfailed, 1 skipped")


def test_the_command_of_the_run_can_be_pasted(last_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads((last_run / LAST_RUN).read_text())
    report["run"]["command"] = ["specrunner", "run", "my specs/", "-k", "a and not b"]
    (last_run / LAST_RUN).write_text(json.dumps(report))
    assert main(["show"]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith(": specrunner run 'my specs/' -k 'a and not b'")


@pytest.mark.usefixtures("last_run")
@pytest.mark.parametrize(
    "name",
    [
        "deep",
        "deep[engine=hf,dtype=bfloat16]",
        "specs/smoke/glass.yaml::deep[engine=hf,dtype=bfloat16]",
        "glass.yaml::d",
    ],
)
def test_a_case_is_found_by_id_name_or_part(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", name]) == 0
    assert capsys.readouterr().out.startswith("FAIL  specs/smoke/glass.yaml::deep[")


@pytest.mark.usefixtures("last_run")
def test_a_case_is_shown_with_margins_and_facts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "deep"]) == 0
    out = capsys.readouterr().out
    for expected in (
        "at specs/smoke/glass.yaml:30, took 0.25 s\n",
        "CANDIDATE hf/bfloat16\n",
        "REFERENCE hf/float32\n",
        "  model_class        LlamaForCausalLM\n",
        "FIRST DIVERGENCE\n  logits is the first that went wrong  (sqnr, specs/a.yaml:21)\n",
        "  ok   embeddings  exact  specs/a.yaml:20\n         judged    differing 0, must be ≤ 0\n",
        "  FAIL logits  sqnr  specs/a.yaml:21\n         sqnr 38 dB is below 40\n",
        "         judged    min_sqnr 38, must be ≥ 40: 2 below the limit\n",
        "1 of 2 checks failed\n",
        "again  specrunner run 'specs/smoke/glass.yaml::deep[engine=hf,dtype=bfloat16]'\n",
    ):
        assert expected in out


@pytest.mark.parametrize("message", ["::error::x", "##[error]x"])
def test_what_a_ci_would_obey_is_shown_and_stays_json(
    message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    check = CheckResult("logits", "sqnr", False, message, {"min_sqnr": 38.0}, {"min": 40}, "specs/a.yaml:21")
    play(make_events([make_result(verdict=Verdict.FAILED, checks=(check,))]), JsonReporter(LAST_RUN))
    assert main(["show", "capital"]) == 0
    told = capsys.readouterr().out
    assert [line for line in told.splitlines() if line.lstrip().startswith("::") or "##[" in line] == []
    assert main(["show", "capital", "--json"]) == 0
    told = capsys.readouterr().out
    assert json.loads(told)["checks"][0]["message"] == message and "##[" not in told


@pytest.mark.usefixtures("last_run")
@pytest.mark.parametrize("name", ["passes", "breaks", "lacks", "known", "mended"])
def test_every_verdict_can_be_shown(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", name, "--color", "always"]) == 0
    assert f"::{name}[" in capsys.readouterr().out


@pytest.mark.usefixtures("last_run")
def test_json_is_the_reports(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "--json"]) == 0
    everything = json.loads(capsys.readouterr().out)
    assert everything == json.loads(LAST_RUN.read_text())
    assert main(["show", "deep", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == everything["cases"][-1]


@pytest.mark.usefixtures("last_run")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("glass", "'glass' fits 4 cases:\n    specs/smoke/glass.yaml::passes["),
        ("depe", "the last run has no case 'depe'\n  help: did you mean `deep`?"),
        ("zzz", "the last run has no case 'zzz'\n  help: `specrunner show` lists its cases"),
    ],
)
def test_a_name_that_does_not_fit_one_case_is_an_error(
    name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", name]) == 4
    assert f"error: {message}" in capsys.readouterr().err


def test_without_a_run_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["show"]) == 4
    assert (
        "there is no report at .specrunner/last-run.json\n  help: run `specrunner run specs/`"
        in capsys.readouterr().err
    )


def test_another_report_can_be_named(last_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = last_run / "other.json"
    LAST_RUN.rename(other)
    assert main(["show", "--report", str(other), "deep"]) == 0
    assert "::deep[" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["show"], ["show", "passes"], ["show", "--json"]])
@pytest.mark.usefixtures("last_run")
def test_the_report_of_an_older_version_is_one_diagnostic(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    report = json.loads(LAST_RUN.read_text())
    for case in report["cases"]:
        del case["diagnosis"]
    LAST_RUN.write_text(json.dumps(report))
    assert main(arguments) == 4
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        f"error: {LAST_RUN} is not a JSON report that this version can read: it lacks 'diagnosis'",
        "  help: run the specs again",
    ]


def test_repeats_that_found_the_same_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    found = [1.0, 2.0, 1.0]
    checks = tuple(
        replace(make_check(passed=value < 2, max_abs=value), repeat=repeat) for repeat, value in enumerate(found, 1)
    )
    play(
        make_events([make_result(make_case(repeat=3), Verdict.FAILED, checks=checks)], exit_code=1),
        JsonReporter(LAST_RUN),
    )
    assert main(["show", "capital"]) == 0
    out = capsys.readouterr().out
    told = [line.partition("allclose  ")[2].partition("  ")[0] for line in out.splitlines() if "allclose  r" in line]
    assert told == ["repeats 1, 3", "repeat 2"]
    assert "1 of 3 checks failed" in out
