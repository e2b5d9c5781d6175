"""The command line's frame: what it imports, and how commands end."""

from __future__ import annotations

import subprocess
import sys

import pytest

from specrunner.cli import COMMANDS, main, make_parser

HEAVY = {"torch", "transformers", "numpy", "safetensors"}


def modules_after(arguments: list[str]) -> set[str]:
    """Top-level modules imported by a command, run in a process of its own."""
    script = f"""
import sys
from specrunner.cli import main
main({arguments!r})
print("MODULES", *sorted({{name.split(".")[0] for name in sys.modules}}))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.rsplit("MODULES", 1)[1].split())


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    assert modules_after(arguments) & (HEAVY | {"yaml", "jsonschema"}) == set()


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert "example" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--no-such-flag"], ["run", "--no-such-flag"], ["nonsense"], []])
def test_a_wrong_command_line_exits_4(arguments: list[str]) -> None:
    assert main(arguments) == 4


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["rnu"], "`run`"),
        (["run", "--jnit-xml", "r.xml"], "`--junit-xml`"),
        (["run", "--no-case=warn"], None),  # argparse completes what is unique
        (["golden", "acept", "x"], "`accept`"),
        (["golden", "accept", "x", "--reasn=y", "--reason", "y"], "`--reason`"),
        (["--vresion"], "`--version`"),
    ],
)
def test_a_misspelt_word_is_guessed(
    arguments: list[str], meant: str | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specrunner.cli.run.run", lambda options: 4)
    assert main(arguments) == 4
    told = capsys.readouterr().err
    assert ("did you mean" in told) == (meant is not None)
    assert meant is None or f"  help: did you mean {meant}?" in told


@pytest.mark.parametrize(
    ("arguments", "name", "meant"),
    [
        (["run", "--plan", "a.yaml", "-t", "x", "b.yaml", "--failed", "c.yaml"], "paths", "a.yaml b.yaml c.yaml"),
        (["golden", "accept", "zzz", "--reason", "x", "a.yaml"], "paths", "a.yaml"),
        (["golden", "accept", "--reason", "x", "zzz", "a.yaml"], "paths", "a.yaml"),
        (["engines", "doctor", "hf", "--json", "vllm"], "names", "hf vllm"),
        (["engines", "install", "hf", "--reinstall", "vllm"], "names", "hf vllm"),
    ],
)
def test_words_of_a_list_may_stand_on_both_sides_of_an_option(arguments: list[str], name: str, meant: str) -> None:
    options = make_parser(arguments[0]).parse_args(arguments)
    assert getattr(options, name) == meant.split()
    assert getattr(options, "pattern", "zzz") == "zzz"


@pytest.mark.parametrize(
    ("arguments", "unknown"),
    [
        (["run", "a.yaml", "--no-such-flag", "b.yaml"], "--no-such-flag"),
        (["show", "a", "--no-such-flag", "b"], "--no-such-flag b"),
        (["completion", "zsh", "bash"], "bash"),
    ],
)
def test_what_belongs_to_no_list_is_refused(
    arguments: list[str], unknown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 4
    assert f"error: unrecognized arguments: {unknown}\n" in capsys.readouterr().err


def test_the_end_of_a_command_searches_for_no_cycles() -> None:
    """Nothing is looked through once more before the process ends, which took a seventh of a long rerun."""
    script = """
import atexit, gc
from specrunner.cli import main
atexit.register(lambda: print(gc.get_freeze_count()))
main(["--version"])
print(gc.get_freeze_count())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    before, at_the_end = map(int, done.stdout.splitlines()[1:])
    assert at_the_end > before


def test_a_bug_of_ours_exits_3(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("specrunner.cli.make_parser", lambda command: 1 / 0)
    assert main(["run"]) == 3
    assert "bug of specrunner" in capsys.readouterr().err
