"""`specrunner init`, shell completion, and help that begins with examples."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from specrunner.cli import COMMANDS, main, make_parser
from specrunner.cli.completion import EXAMPLES
from specrunner.spec.schema import find_schema


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestInit:
    def test_the_spec_is_valid_and_names_a_schema_that_exists(self, folder: Path) -> None:
        assert main(["init"]) == 0
        spec = folder / "specs" / "first.yaml"
        [schema] = re.findall(r"^# yaml-language-server: \$schema=(\S+)$", spec.read_text(), flags=re.MULTILINE)
        assert (spec.parent / schema).read_bytes() == find_schema().read_bytes()
        assert main(["validate"]) == 0

    def test_the_schema_of_name_maps_is_where_the_how_to_says(self, folder: Path) -> None:
        assert main(["init"]) == 0
        page = Path(__file__).parents[2] / "docs" / "how-to" / "add-a-name-map.md"
        [path] = re.findall(r"\$schema=(\S+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
        copy = Path(os.path.normpath(folder / "name_maps" / "hf" / path))
        assert copy.read_bytes() == find_schema("name-map.schema.json").read_bytes()

    def test_the_pipelines_of_the_documents_select_its_cases(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["init"]) == 0
        assert main(["list", "specs", "-t", "correctness"]) == 0
        assert "2 cases" in capsys.readouterr().out

    def test_a_schema_above_is_used(self, folder: Path) -> None:
        (folder / "schema").mkdir()
        shutil.copy(find_schema(), folder / "schema")
        assert main(["init", "specs/deep"]) == 0
        assert "$schema=../../schema/spec.schema.json\n" in (folder / "specs/deep/first.yaml").read_text()
        assert not (folder / "specs/deep/spec.schema.json").exists()

    def test_nothing_is_overwritten(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        spec = folder / "specs" / "first.yaml"
        spec.parent.mkdir()
        spec.write_text("mine")
        assert main(["init"]) == 4
        assert "specs/first.yaml is there already" in capsys.readouterr().err
        assert spec.read_text() == "mine"
        assert list(spec.parent.iterdir()) == [spec]

    def test_a_place_that_cannot_be_written(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (folder / "file").write_text("")
        assert main(["init", "file/below"]) == 4
        assert "cannot write" in capsys.readouterr().err

    @pytest.mark.engine
    @pytest.mark.slow
    def test_the_spec_passes_when_run(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        pytest.importorskip("transformers")
        assert main(["init"]) == 0
        assert main(["run", "specs/first.yaml", "--strict"]) == 0
        assert "2 passed" in capsys.readouterr().out


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_begins_with_examples(command: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"] if command else ["--help"]) == 0
    assert capsys.readouterr().out.startswith("examples:\n  specrunner ")


@pytest.mark.parametrize("command", ["cache", "engines", "golden"])
def test_the_help_of_a_command_below_says_what_it_does(command: str) -> None:
    parser = make_parser(command)
    [level] = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    [own] = [action for action in level.choices[command]._actions if isinstance(action, argparse._SubParsersAction)]
    assert len(own.choices) >= 3
    for choice in own._choices_actions:
        assert choice.help in " ".join(own.choices[choice.dest].format_help().split())
    for below in own.choices.values():
        assert all(action.help for action in below._actions)


COMPLETIONS = {
    "bash": """
        source {script}
        COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMP_LINE="{words}"
        _shtab_specrunner; printf '%s\\n' "${{COMPREPLY[@]}}"
    """,
    "fish": "source {script}; complete -C '{words}'",
}


class TestCompletion:
    @pytest.mark.parametrize("shell", ["bash", "fish"])
    def test_the_examples_work_in_a_home_without_the_folder(self, folder: Path, shell: str) -> None:
        program = folder / "specrunner"
        program.write_text("#!/bin/sh\necho script\n")
        program.chmod(0o755)
        page = Path(__file__).parents[2] / "docs" / "how-to" / "complete-as-you-type.md"
        for text in (EXAMPLES, page.read_text(encoding="utf-8")):
            home = folder / str(len(text))
            home.mkdir()
            lines = [line for line in text.splitlines() if "completions" in line and shell in line]
            variables = {"HOME": str(home), "PATH": f"{folder}:/usr/bin:/bin"}
            subprocess.run(["bash", "-ec", "\n".join(lines)], env=variables, check=True)
            assert [file.read_text() for file in home.rglob("specrunner*") if file.is_file()] == ["script\n"]

    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_the_script_is_one_that_the_shell_can_read(
        self, folder: Path, capsys: pytest.CaptureFixture[str], shell: str
    ) -> None:
        if shutil.which(shell) is None:
            pytest.skip(f"{shell} is not installed")
        assert main(["completion", shell]) == 0
        (folder / "script").write_text(capsys.readouterr().out)
        subprocess.run([shell, "-n", "script"], check=True)

    @pytest.mark.parametrize("shell", sorted(COMPLETIONS))
    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            ("specrunner engi", "engines"),
            ("specrunner run --junit", "--junit-xml"),
            ("specrunner engines ins", "install"),
        ],
    )
    def test_words_are_completed(
        self, folder: Path, capsys: pytest.CaptureFixture[str], shell: str, words: str, expected: str
    ) -> None:
        if shutil.which(shell) is None:
            pytest.skip(f"{shell} is not installed")
        main(["completion", shell])
        (folder / "script").write_text(capsys.readouterr().out)
        command = COMPLETIONS[shell].format(script="./script", words=words)
        done = subprocess.run([shell, "-c", command], capture_output=True, text=True)
        assert expected in {line.split("\t")[0] for line in done.stdout.splitlines()}, done.stderr
