"""The JSON report holds every number, fits its schema, and can be read back."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import specrunner
from specrunner.errors import ConfigurationError
from specrunner.reporters import create_reporters
from specrunner.reporters import record as recording
from specrunner.reporters.json import JsonReporter, read_run
from specrunner.reporters.record import CaseRecord, RunRecord
from specrunner.results import CaseResult, CheckResult, Failure, Verdict
from specrunner.spec.model import Decode, Prompt
from tests.reporters.builders import make_all_verdicts, make_case, make_events, make_result, play

SCHEMA = json.loads((Path(__file__).parents[2] / "schema" / "report.schema.json").read_text())


def write(path: Path, events: list[Any]) -> dict[str, Any]:
    reporter = JsonReporter(path)
    play(events, reporter)
    assert reporter.problem is None
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(SCHEMA).validate(data)
    return data


def test_the_schema_is_a_schema_and_closed() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for name in ("session", "case", "side", "check", "failure"):
        assert SCHEMA["$defs"][name]["additionalProperties"] is False
        assert set(SCHEMA["$defs"][name]["required"]) == set(SCHEMA["$defs"][name]["properties"])


def test_every_subject_that_is_no_name_of_a_tensor_or_task_is_told() -> None:
    written = re.compile(
        r'''(?:\b(?:CheckResult|_fail)\(\s*|\bsubject(?:: str)? ?= ?|^SUBJECT = )"(\w+)"''', re.MULTILINE
    )
    files = Path(specrunner.__file__).parent.rglob("*.py")
    subjects = {name for file in files for name in written.findall(file.read_text(encoding="utf-8"))}
    assert subjects > {"attention", "case", "golden", "tokenization", "trajectory"}
    for text in (SCHEMA["$defs"]["check"]["properties"]["subject"]["description"], CheckResult.__doc__ or ""):
        told = re.sub(r"\s+", " ", text)
        assert [name for name in sorted(subjects - {"benchmark"}) if f"`{name}`" not in told] == []
        assert "a tensor's name or pattern" in told and "a benchmark or one of its tasks" in told


def test_all_verdicts_are_counted_and_described(tmp_path: Path) -> None:
    data = write(tmp_path / "r.json", make_events(make_all_verdicts(), exit_code=1))
    assert data["counts"] == {"total": 6, **dict.fromkeys(map(str, Verdict), 1), "inconclusive": 0}
    assert data["run"] == {
        "command": ["specrunner", "run", "specs/"],
        "started_at": "2023-11-14T22:13:20+00:00",
        "seconds": 3.25,
        "interrupted": False,
        "complete": True,
        "exit_code": 1,
    }
    failed = next(case for case in data["cases"] if case["verdict"] == "failed")
    assert failed["message"] == "logits: 3 of 64 elements differ by more than the tolerance"
    assert failed["checks"][1]["measurements"] == {"max_abs": 0.5}
    assert failed["command"] == "specrunner run 'specs/smoke/glass.yaml::fails[engine=hf,dtype=bfloat16]'"
    (session,) = data["sessions"]
    assert session["label"] == "hf glass-0.8m bfloat16 cpu"
    assert (session["requests"], session["answered"], session["failed"], session["starts"]) == (1, 1, 0, 1)
    assert session["load_seconds"] == 1.5


def test_every_kind_of_prompt_fits_the_schema(tmp_path: Path) -> None:
    prompts = [
        Prompt(text="a"),
        Prompt(messages=({"role": "user", "content": "a"},), length=4),
        Prompt(token_ids=(1, 2)),
    ]
    results = [
        make_result(make_case(f"p{index}", prompt=prompt, reference=None, decode=Decode(4)))
        for index, prompt in enumerate(prompts)
    ]
    data = write(tmp_path / "r.json", make_events(results))
    assert [sorted(case["prompt"]) for case in data["cases"]] == [
        ["add_special_tokens", "text"],
        ["length", "messages"],
        ["token_ids"],
    ]


def test_a_report_read_back_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    data = write(path, make_events(make_all_verdicts()))
    assert read_run(path).to_json() == data


def test_earlier_attempts_are_kept(tmp_path: Path) -> None:
    attempts = tuple(Failure("timeout", f"no answer in {seconds} s", "try again", "log") for seconds in (5, 6))
    path = tmp_path / "r.json"
    data = write(path, make_events([dataclasses.replace(make_result(), attempts=attempts)]))
    assert [attempt["message"] for attempt in data["cases"][0]["attempts"]] == ["no answer in 5 s", "no answer in 6 s"]
    assert read_run(path).cases[0].attempts == attempts


def test_a_run_that_broke_off_names_the_cases_it_did_not_come_to(tmp_path: Path) -> None:
    events = make_events([make_result(make_case("first"))], unfinished=[make_case("second")], finish=False)
    data = write(tmp_path / "r.json", events)
    assert data["run"]["complete"] is False
    assert data["run"]["exit_code"] is None
    assert [(case["name"], case["verdict"]) for case in data["cases"]] == [("first", "passed"), ("second", "error")]
    assert data["cases"][1]["failure"]["kind"] == "not-run"


def test_cases_stand_in_the_order_of_the_plan(tmp_path: Path) -> None:
    results = [make_result(make_case(name)) for name in ("c", "a", "b")]
    events = make_events(results)
    shuffled = [events[0], *reversed(events[1:-1]), events[-1]]
    data = write(tmp_path / "r.json", shuffled)
    assert [case["name"] for case in data["cases"]] == ["c", "a", "b"]


def test_json_to_stdout_sends_results_to_stderr() -> None:
    stdout, stderr = io.StringIO(), io.StringIO()
    reporters = create_reporters(json="-", stdout=stdout, stderr=stderr)
    play(make_events(make_all_verdicts()), *reporters)
    assert json.loads(stdout.getvalue())["counts"]["total"] == 6
    assert "1 failed" in stderr.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a JSON report"),
        ("[]", "not a JSON report"),
        ('{"version": 2}', "it has version 2, not 1"),
        ('{"version": 1}', "not a JSON report"),
        ("\udcff", "not a JSON report"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigurationError, match=message):
        read_run(path)


def test_a_missing_report_is_told_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no report") as caught:
        read_run(tmp_path / "none.json")
    assert caught.value.help is not None
    assert "specrunner run" in caught.value.help


def test_the_empty_run(tmp_path: Path) -> None:
    data = write(tmp_path / "r.json", make_events([]))
    assert data["cases"] == []
    assert RunRecord.from_json(data).counts[Verdict.PASSED] == 0


def test_two_runs_at_once_do_not_get_each_other_s_records(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = make_result(make_case("one")), make_result(make_case("other"))

    class Contended(list[tuple[CaseResult, CaseRecord]]):
        """What the reporters share, to which another run's thread writes whenever we have."""

        def __setitem__(self, key: Any, value: Any) -> None:
            super().__setitem__(slice(None), [(other, CaseRecord.from_result(other))])

    monkeypatch.setattr(recording, "_LATEST", Contended())
    assert recording.record_result(one).name == "one"
