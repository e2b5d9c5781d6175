"""What a person sees on standard output."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TextIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specrunner.events import Event, RequestFinished
from specrunner.reporters import create_reporters
from specrunner.reporters.details import describe_case
from specrunner.reporters.record import CaseRecord
from specrunner.results import CheckResult, Failure, Verdict
from specrunner.spec.model import Prompt
from tests.reporters.builders import make_all_verdicts, make_case, make_events, make_result, play

COLOR = re.compile(r"\x1b\[[0-9;]*m")


def show(events: list[Event], output_format: str = "full", color: str = "never", out: TextIO | None = None) -> str:
    stream = io.StringIO() if out is None else out
    reporters = create_reporters(output_format=output_format, color=color, stdout=stream, stderr=io.StringIO())
    play(events, *reporters)
    return stream.getvalue() if isinstance(stream, io.StringIO) else ""


def layer_check(index: int, error: float, passed: bool) -> CheckResult:
    measured = {
        "relative_l2": error,
        "max_relative_l2": 2 * error,
        "max_relative_l2_token": 5,
        "outside_fraction": 0.25,
    }
    measured |= {"max_abs": error, "max_abs_token": 5} if not passed else {}
    limits = {"rtol": 1e-5, "atol": 1e-6, "outliers": 0.0}
    message = "" if passed else "16 of 64 elements exceed 1e-06 + 1e-05 * |r|"
    return CheckResult(f"layers.{index}.output", "allclose", passed, message, measured, limits, "specs/a.yaml:20")


def test_a_run_with_every_verdict() -> None:
    text = show(make_events(make_all_verdicts(), exit_code=1))
    head, _, failures = text.partition("\nFAILURES\n")
    assert head == (
        "FAIL  specs/smoke/glass.yaml::fails[engine=hf,dtype=bfloat16]"
        "  logits: 3 of 64 elements differ by more than the tolerance\n"
        "ERROR specs/smoke/glass.yaml::breaks[engine=hf,dtype=bfloat16]"
        "  candidate: the worker was ended by signal 9\n"
        "FAIL  specs/smoke/glass.yaml  1 failed, 1 error, 1 passed  0.75 s\n"
        "XPASS specs/llada2/tiny.yaml::mended[engine=hf,dtype=bfloat16]"
        "  the case passed, but the spec expects it to fail: remove its xfail\n"
        "FAIL  specs/llada2/tiny.yaml  1 xpassed, 1 xfailed, 1 skipped  0.75 s\n"
        "\n"
        "SESSIONS\n"
        "  hf glass-0.8m bfloat16 cpu  ready in 1.50 s · 1 of 1 request\n"
        "    LlamaForCausalLM · torch 2.13.0, transformers 5.23.0 · cpu · sdpa\n"
        "\n"
        "SKIPPED\n"
        "  1 case: vllm is not installed\n"
        "    help  run `specrunner engines install vllm`\n"
        "\n"
        "EXPECTED FAILURES\n"
        "  1 case: the kernel rounds twice\n"
    )
    assert failures.endswith("\n1 failed, 1 error, 1 xpassed, 1 passed, 1 xfailed, 1 skipped in 3.25 s\n")
    assert re.findall(r"^(?:FAIL|ERROR|XPASS) .*::(\w+)", failures, re.M) == ["fails", "breaks", "mended"]


def test_a_failure_names_the_first_tensor_that_went_wrong_and_how_it_grew() -> None:
    checks = [layer_check(index, 1e-7 * 10**index, index < 2) for index in range(4)]
    case = make_case("deep", location=make_case().location)
    record = CaseRecord.from_result(make_result(case, Verdict.FAILED, checks=tuple(checks), candidate={}, reference={}))
    assert describe_case(record) == [
        "at specs/smoke/glass.yaml:12",
        "model      glass-0.8m",
        'prompt     "The capital of France is"',
        "candidate  hf/bfloat16",
        "reference  hf/float32",
        "",
        "layers.2.output is the first that went wrong  (allclose, specs/a.yaml:20)",
        "  16 of 64 elements exceed 1e-06 + 1e-05 * |r|",
        "  limits    rtol 1e-05, atol 1e-06, outliers 0",
        "  judged    outside_fraction 0.25, must be ≤ 0",
        "  worst     max_abs 1e-05 at token 5 · relative_l2 1e-05 · max_relative_l2 2e-05 at token 5",
        "1 of 1 later check failed too",
        "",
        "tensor           relative_l2  worst token",
        "layers.0.output  1e-07        2e-07 at 5",
        "layers.1.output  1e-06        2e-06 at 5",
        "layers.2.output  1e-05        2e-05 at 5   wrong",
        "layers.3.output  0.0001       0.0002 at 5  wrong",
        "",
        "again  specrunner run 'specs/smoke/glass.yaml::deep[engine=hf,dtype=bfloat16]'",
    ]


def test_token_ids_are_shown_around_the_first_mismatch() -> None:
    measured = {
        "first_mismatch": 6,
        "window_start": 4,
        "candidate_window": [11, 12, 5],
        "reference_window": [11, 12, 99, 7, 8],
    }
    check = CheckResult("tokens", "exact", False, "first mismatch at position 6", measured)
    record = CaseRecord.from_result(make_result(verdict=Verdict.FAILED, checks=(check,)))
    lines = describe_case(record)
    place = lines.index("  token ids from position 4")
    assert lines[place + 1 : place + 3] == [
        "  reference  11  12  [99]    7  8",
        "  candidate  11  12  [ 5]  end",
    ]


def test_an_error_shows_kind_remedy_and_the_end_of_the_log() -> None:
    log = "\n".join(f"line {index}" for index in range(30)) + "\n\x1b[31mboom\x1b[0m\n"
    failure = Failure("out-of-memory", "no room for 3 GiB", "use a smaller batch", log, "reference")
    record = CaseRecord.from_result(make_result(verdict=Verdict.ERROR, failure=failure))
    lines = describe_case(record)
    assert "out-of-memory  reference: no room for 3 GiB" in lines
    assert "help  use a smaller batch" in lines
    place = lines.index("the engine's last 20 lines")
    assert lines[place + 1] == "  │ line 11"
    assert lines[place + 20] == r"  │ \x1b[31mboom\x1b[0m"


def test_errors_with_one_cause_are_told_once() -> None:
    results = [make_result(make_case(f"c{index}"), Verdict.ERROR) for index in range(9)]
    _, _, failures = show(make_events(results, exit_code=10)).partition("\nFAILURES\n")
    assert failures.count("the worker was ended by signal 9") == 1
    assert "the same in 8 other cases:" in failures
    assert "and 3 more" in failures


def test_skips_are_grouped_by_reason_the_commonest_first() -> None:
    rare = Failure("capability", "no GPU", None)
    results = [make_result(make_case("r"), Verdict.SKIPPED, failure=rare)]
    results += [make_result(make_case(f"c{index}"), Verdict.SKIPPED) for index in range(3)]
    text = show(make_events(results, exit_code=5))
    assert (
        "SKIPPED\n  3 cases: vllm is not installed\n    help  run `specrunner engines install vllm`\n  1 case: no GPU\n"
    ) in text
    assert "SKIP  specs/smoke/glass.yaml  4 skipped  1.00 s\n" in text
    assert text.endswith("\n4 skipped in 3.25 s: nothing was verified\n")


def test_what_looked_into_a_failure_counts_among_the_requests() -> None:
    events = make_events([make_result()])
    (at,) = [index for index, event in enumerate(events) if isinstance(event, RequestFinished)]
    text = show([*events[:at], events[at], events[at], *events[at + 1 :]])
    assert "ready in 1.50 s · 2 of 2 requests" in text


def test_the_command_can_be_pasted() -> None:
    case = make_case("it's $HOME", parameters=(("engine", "hf"),))
    command = CaseRecord.from_result(make_result(case)).command
    assert shlex.split(command) == ["specrunner", "run", case.node_id]


def test_concise_prints_one_line_for_every_case_that_is_not_green() -> None:
    lines = show(make_events(make_all_verdicts(), exit_code=1), "concise").splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["FAIL", "ERROR", "SKIP", "XFAIL", "XPASS"]
    assert lines[2].endswith("lacks[engine=hf,dtype=bfloat16]  vllm is not installed")
    assert lines[-1].endswith("in 3.25 s")


def test_an_interrupted_run_says_how_far_it_came() -> None:
    not_run = Failure("not-run", "not run: interrupted")
    results = [
        make_result(make_case("a")),
        make_result(make_case("b"), Verdict.ERROR, failure=not_run, checks=()),
        make_result(make_case("c", suite="specs/other"), Verdict.ERROR, failure=not_run, checks=()),
    ]
    text = show(make_events(results, interrupted=True, exit_code=2))
    assert text.endswith("\ninterrupted: 1 of 3 cases have a verdict, 2 were not run\n1 passed, 2 not run in 3.25 s\n")
    assert "FAILURES" not in text
    assert "specs/other" not in text


def test_a_run_that_broke_off_says_so() -> None:
    text = show(make_events([make_result()], unfinished=[make_case("b")], finish=False))
    assert text.endswith("the run broke off: 1 of 2 cases have a verdict, 1 was not run\n1 passed, 1 not run\n")


def test_a_stop_after_the_first_failures_says_so() -> None:
    not_run = Failure("not-run", "not run: stopped after the failures that --max-fail allows")
    results = [make_result(verdict=Verdict.FAILED), make_result(make_case("b"), Verdict.ERROR, failure=not_run)]
    assert "stopped early: 1 of 2 cases have a verdict, 1 was not run" in show(make_events(results, exit_code=1))


def test_colour_changes_nothing_but_colour() -> None:
    events = make_events(make_all_verdicts(), exit_code=1)
    for output_format in ("full", "concise"):
        painted = show(events, output_format, "always")
        assert "\x1b[31;1mFAIL" in painted
        assert COLOR.sub("", painted) == show(events, output_format)


@given(st.text(st.characters(exclude_categories=())))
def test_foreign_text_never_reaches_the_terminal_as_control(text: str) -> None:
    failure = Failure(text, text, text, text, "candidate")
    check = CheckResult(text, "exact", False, text, {text: text, "window_start": 0}, {text: text}, text)
    case = make_case(text, suite=text, prompt=Prompt(text=text), tags=(text,))
    events = make_events(
        [
            make_result(case, Verdict.ERROR, failure=failure, candidate={"model_class": text}),
            make_result(dataclasses.replace(case, name=text + "2"), Verdict.FAILED, checks=(check,)),
            make_result(dataclasses.replace(case, name=text + "3"), Verdict.SKIPPED, failure=failure),
        ]
    )
    for output_format in ("full", "concise", "github"):
        shown = show(events, output_format)
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", shown)


def test_a_stream_without_unicode_gets_escapes() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    show(make_events([make_result(make_case("größe"), Verdict.FAILED)]), out=out)
    text = raw.getvalue().decode("ascii")
    assert r"gr\xf6\xdfe" in text
    assert " - torch 2.13.0" in text


def test_a_reader_that_leaves_does_not_stop_the_run(tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from specrunner.reporters import create_reporters\n"
        "from tests.reporters.builders import make_all_verdicts, make_events, play\n"
        f"reporters = create_reporters(json=Path({str(report)!r}), stdout=sys.stdout, stderr=sys.stderr)\n"
        "play(make_events(make_all_verdicts()), *reporters)\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    try:
        root = Path(__file__).parents[2]
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True, cwd=root, check=False
        )
    finally:
        os.close(writer)
    assert done.returncode == 0
    assert "BrokenPipe" not in done.stderr
    assert report.exists()


def test_a_flood_of_failures_is_cut_but_counted() -> None:
    results = [make_result(make_case(f"c{index}"), Verdict.FAILED) for index in range(60)]
    _, _, failures = show(make_events(results, exit_code=1)).partition("\nFAILURES\n")
    assert failures.count("is the first that went wrong") == 50
    assert "\nand 10 more: see `specrunner show`\n" in failures
    assert failures.endswith("60 failed in 3.25 s\n")


@pytest.mark.parametrize("output_format", ["full", "concise", "github"])
def test_the_empty_run(output_format: str) -> None:
    assert show(make_events([]), output_format).endswith("no cases in 3.25 s\n")
