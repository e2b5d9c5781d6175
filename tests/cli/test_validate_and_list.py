"""`specrunner validate`, `specrunner list`, and the arguments that pick cases."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from specrunner.cli import main

HEAD = """\
version: 1
model: {recipe: glass-0.8m}
engines: [hf]
reference: {engine: hf, dtype: float32}
dtype: bfloat16
"""
CASE = "  - {name: %s, prompt: hi, tolerance: {logits: exact}, tags: [%s]}\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    (tmp_path / "specs").mkdir()
    write("specs/good.yaml", CASE % ("one", "fast") + CASE % ("two", "slow"))
    return tmp_path


def write(name: str, cases: str) -> None:
    Path(name).write_text(f"{HEAD}cases:\n{cases}", encoding="utf-8")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_valid_specs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "validate") == (0, "2 cases in 1 file are valid\n", "")
    assert run(capsys, "validate", "specs/good.yaml::one") == (0, "1 case in 1 file is valid\n", "")


def test_invalid_specs_of_all_files_are_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    write("specs/a.yaml", CASE.replace("hi", "hi, promt: x") % ("one", "x"))
    write("specs/z.yaml", CASE.replace("hi", "hi, device: cuda, dtype: float64") % ("one", "x"))
    status, out, err = run(capsys, "validate", "specs")
    assert status == 4
    assert err == ""
    assert "error[unknown-key]: unknown key `promt`\n --> specs/a.yaml:7:" in out
    assert "error[impossible-dtype]: engine `hf` does not compute in float64 on cuda\n --> specs/z.yaml:7:" in out
    assert out.endswith("\n\n2 problems in 2 files\n")


def test_colors_are_a_matter_of_choice(capsys: pytest.CaptureFixture[str]) -> None:
    write("specs/a.yaml", "  - {}\n")
    assert "\x1b" not in run(capsys, "validate")[1]
    assert "\x1b[1;31merror[missing-key]" in run(capsys, "validate", "--color", "always")[1]


def test_a_list_refuses_invalid_specs(capsys: pytest.CaptureFixture[str]) -> None:
    write("specs/a.yaml", "  - {}\n")
    status, out, err = run(capsys, "list")
    assert (status, out) == (4, "")
    assert "error[missing-key]" in err


def test_a_list_shows_what_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "list")
    assert status == 0
    assert (
        out == "specs/good.yaml::one[engine=hf]  [fast]\nspecs/good.yaml::two[engine=hf]  [slow]\n2 cases in 1 suite\n"
    )
    assert run(capsys, "list", "specs/good.yaml::one[engine=hf]")[1].startswith("specs/good.yaml::one[engine=hf]")


def test_a_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    document: dict[str, Any] = json.loads(run(capsys, "list", "--json", "-t", "fast")[1])
    (case,) = document["cases"]
    assert document["version"] == 1
    assert case["node_id"] == "specs/good.yaml::one[engine=hf]"
    assert case["parameters"] == {"engine": "hf"}
    assert case["location"] == {"path": "specs/good.yaml", "line": 7, "column": 5}
    candidate = {"engine": "hf", "dtype": "bfloat16", "device": "auto", "options": {}, "environment": None}
    assert case["candidate"] == candidate
    assert case["tolerance"][0]["rules"] == [{"name": "exact", "parameters": {}}]
    assert "marks" not in case
    candidate, reference = (case["evidence"][role] for role in ("candidate", "reference"))
    requests = {(session["key"], request["key"]) for session in document["sessions"] for request in session["requests"]}
    assert requests == {(entry["session"], entry["request"]) for entry in (candidate, reference)}
    assert case["skip"] is None


@pytest.mark.parametrize(
    ("arguments", "count"),
    [(["-k", "one"], 1), (["-k", "not one"], 1), (["-t", "fast", "-t", "slow"], 2), (["-p", "dtype=bfloat16"], 2)],
)
def test_selection(capsys: pytest.CaptureFixture[str], arguments: list[str], count: int) -> None:
    status, out, _ = run(capsys, "list", *arguments)
    assert status == 0
    assert len(out.splitlines()) == count + 1


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["-k", "zzz"], 5, "error: no case matches `-k zzz`"),
        (["-t", "zzz"], 5, "error: no case has the tag `zzz`"),
        (["-p", "engine=vllm"], 5, "error: no case has `engine=vllm`"),
        (["-p", "zzz=1"], 4, "error: -p zzz: no case has such a parameter"),
        (["-p", "zzz"], 4, "error: -p zzz: not of the form key=value"),
        (["-k", "("], 4, "error: -k: a word is missing"),
        (["nowhere"], 4, "error: no such file or directory: nowhere"),
        (["specs/good.yaml::zzz"], 4, "error: no case `zzz` in specs/good.yaml"),
    ],
)
def test_what_selects_nothing(
    capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, message: str
) -> None:
    found, out, err = run(capsys, "list", *arguments)
    assert (found, out) == (status, "")
    assert err.startswith(message)


def test_an_empty_selection_can_be_let_pass(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "list", "-k", "zzz", "--no-cases", "pass") == (0, "0 cases in 0 suites\n", "")
    status, _, err = run(capsys, "list", "-k", "zzz", "--no-cases", "warn")
    assert (status, err) == (0, "warning: no case matches `-k zzz`\n")


def test_a_directory_without_specs_verifies_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    assert run(capsys, "validate", "empty") == (5, "no spec files here\n", "")
    assert run(capsys, "list", "empty")[0] == 5


def test_without_a_path_and_without_specs_it_says_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    for command in ("validate", "list"):
        status, _, err = run(capsys, command)
        assert status == 4
        assert "no spec was named" in err


@pytest.mark.parametrize("arguments", [["validate"], ["list", "--json"], ["validate", "specs/bad.yaml"]])
def test_no_numerics_are_imported(arguments: list[str]) -> None:
    write(
        "specs/bad.yaml" if arguments[-1] == "specs/bad.yaml" else "specs/other.yaml",
        "  - {name: x, prompt: hi, tolerance: {logits: exact}}\n",
    )
    if arguments[-1] == "specs/bad.yaml":
        write("specs/bad.yaml", "  - {nam: x}\n")
    script = f"""
import sys
from specrunner.cli import main
status = main({arguments!r})
print("MODULES", *sorted({{name.split(".")[0] for name in sys.modules}}))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    modules = set(done.stdout.rsplit("MODULES", 1)[1].split())
    assert modules & {"torch", "transformers", "numpy", "safetensors"} == set()
    assert ("jsonschema" in modules) == (arguments[-1] == "specs/bad.yaml")


def test_a_terminal_without_unicode_gets_escapes() -> None:
    write("specs/wide.yaml", "  - {name: x, promt: \u65e5\u672c}\n")
    command = [sys.executable, "-m", "specrunner", "validate"]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, check=False)
    assert done.returncode == 4
    assert b"promt: \\u65e5\\u672c" in done.stdout
    assert done.stderr == b""
