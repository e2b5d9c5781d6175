import io
import os
import subprocess
import sys
from contextlib import nullcontext

import pytest

from specrunner import cli
from specrunner.catalogue.extras import install_command
from specrunner.cli import run as cli_run
from specrunner.config import Settings, find_project_table, is_ci, load_settings
from specrunner.errors import ConfigurationError, UsageError
from specrunner.golden.store import refuse_under_ci
from specrunner.reporters.progress import LiveProgress, make_progress
from specrunner.reporters.style import Palette

PROJECT = """
[tool.specrunner]
jobs = 3
color = "never"
[tool.specrunner.profiles.ci]
jobs = 4
strict = true
junit_xml = "report.xml"
"""


@pytest.fixture
def project(tmp_path):
    def write(text: str):
        (tmp_path / "pyproject.toml").write_text(text)
        return tmp_path

    return write


def test_built_in(tmp_path):
    settings = load_settings({}, {}, tmp_path)
    assert settings == Settings(jobs=min(2, os.cpu_count() or 1))
    assert (settings.timeout, settings.strict, settings.max_fail, settings.no_cases) == (600.0, False, None, "fail")


@pytest.mark.parametrize(
    ("cli", "environ", "jobs", "origin"),
    [
        ({"jobs": 6, "profile": "ci"}, {"SPECRUNNER_JOBS": "5"}, 6, "the command line"),
        ({"jobs": None, "profile": "ci"}, {"SPECRUNNER_JOBS": "5"}, 5, "SPECRUNNER_JOBS"),
        ({"profile": "ci"}, {}, 4, "profiles.ci"),
        ({}, {"SPECRUNNER_PROFILE": "ci"}, 4, "profiles.ci"),
        ({}, {}, 3, "[tool.specrunner] in"),
        ({}, {"SPECRUNNER_JOBS": ""}, 3, "[tool.specrunner] in"),
    ],
)
def test_what_is_stated_first_wins(project, cli, environ, jobs, origin):
    settings = load_settings(cli, environ, project(PROJECT))
    assert settings.jobs == jobs
    assert origin in settings.origins["jobs"]
    assert settings.color == "never"


def test_a_profile_overlays_the_table(project):
    settings = load_settings({"profile": "ci"}, {}, project(PROJECT))
    assert (settings.strict, settings.junit_xml, settings.color) == (True, "report.xml", "never")


@pytest.mark.parametrize(
    ("cli", "environ", "above"),
    [({"timeout": 5.0}, {}, True), ({}, {"SPECRUNNER_TIMEOUT": "5"}, True), ({}, {}, False)],
)
def test_command_line_and_environment_stand_above_cases(project, cli, environ, above):
    settings = load_settings(cli, environ, project("[tool.specrunner]\ntimeout = 7\n"))
    assert settings.overrides_cases("timeout") is above
    assert settings.timeout == (5.0 if above else 7.0)
    assert not settings.overrides_cases("jobs")


def test_other_keys_of_the_command_line_are_left_alone(tmp_path):
    assert load_settings({"paths": ["specs"], "command": "run"}, {}, tmp_path).timeout == 600.0


@pytest.mark.parametrize(
    ("text", "message", "help"),
    [
        ("[tool.specrunner]\njbos = 1", "unknown key 'jbos' in [tool.specrunner]", "did you mean `jobs`?"),
        ("[tool.specrunner]\nxyz = 1", "unknown key 'xyz'", "the keys are jobs"),
        ("[tool.specrunner]\njobs = 0", "jobs from [tool.specrunner]", None),
        ("[tool.specrunner]\njobs = true", "a whole number of at least 1", None),
        ("[tool.specrunner]\ntimeout = -1", "a number of seconds above 0", None),
        ("[tool.specrunner]\nstrict = 'perhaps'", "true or false", None),
        ("[tool.specrunner]\ncolor = 'blue'", "one of auto, always, never", None),
        ("[tool.specrunner]\njunit_xml = 3", "a file name", None),
        ("[tool]\nspecrunner = 3", "must be a table", None),
        ("[tool.specrunner]\nprofiles = 3", "must be a table", None),
        ("[tool.specrunner.engines.vllm]\npyhton = 'x'", "unknown key 'pyhton'", "did you mean `python`?"),
        ("[tool.specrunner.engines.vllm]\npython = 3", "must be the path of an interpreter", None),
        ("[tool.specrunner.engines.vllm.env]\nA = 3", "env.A", None),
        ("[tool.specrunner", "is not valid TOML", None),
    ],
)
def test_wrong_tables(project, text, message, help):
    with pytest.raises(ConfigurationError) as caught:
        load_settings({"profile": "ci"} if "profiles" in text else {}, {}, project(text))
    assert message in caught.value.message
    assert "pyproject.toml" in caught.value.message
    assert help is None or caught.value.help.startswith(help)


@pytest.mark.parametrize(("profile", "help"), [("cii", "did you mean `ci`?"), ("zzz", "the profiles are ci")])
def test_an_unknown_profile(project, profile, help):
    with pytest.raises(ConfigurationError, match="no profile") as caught:
        load_settings({"profile": profile}, {}, project(PROJECT))
    assert caught.value.help == help


def test_an_unknown_key_in_a_profile(project):
    with pytest.raises(ConfigurationError, match=r"'engines' in \[tool.specrunner.profiles.ci\]"):
        load_settings({"profile": "ci"}, {}, project("[tool.specrunner.profiles.ci]\nengines = {}"))


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"SPECRUNNER_JBOS": "1"}, "SPECRUNNER_JBOS is not a setting"),
        ({"SPECRUNNER_JOBS": "many"}, "jobs from SPECRUNNER_JOBS is 'many'"),
        ({"SPECRUNNER_STRICT": "maybe"}, "true or false"),
        ({"SPECRUNNER_TIMEOUT": "nan"}, "seconds"),
        ({"SPECRUNNER_TIMEOUT": "soon"}, "seconds"),
    ],
)
def test_wrong_variables(tmp_path, environ, message):
    with pytest.raises(ConfigurationError, match=message):
        load_settings({}, environ, tmp_path)


@pytest.mark.parametrize(
    "name", ["SPECRUNNER_CACHE", "SPECRUNNER_SESSION", "SPECRUNNER_CONTROL", "SPECRUNNER_CI_IMAGE"]
)
def test_variables_that_are_no_settings(tmp_path, name):
    assert load_settings({}, {name: "x"}, tmp_path).origins == {}


@pytest.mark.parametrize(("text", "value"), [("1", True), ("TRUE", True), ("off", False), ("no", False)])
def test_flags_in_the_environment(tmp_path, text, value):
    assert load_settings({}, {"SPECRUNNER_STRICT": text}, tmp_path).strict is value


class TestProjectFile:
    def test_the_nearest_with_the_table(self, project, tmp_path):
        project(PROJECT)
        inner = tmp_path / "a" / "b"
        inner.mkdir(parents=True)
        (inner / "pyproject.toml").write_text("[project]\nname = 'other'\n")
        file, table = find_project_table(inner)
        assert (file, table["jobs"]) == (tmp_path / "pyproject.toml", 3)

    def test_none(self, tmp_path):
        assert find_project_table(tmp_path) == (None, {})

    def test_engines(self, project, tmp_path):
        text = '[tool.specrunner.engines.vllm]\npython = "env/bin/python"\nenv = {VLLM_X = "1"}\n'
        engine = load_settings({}, {}, project(text)).engines["vllm"]
        assert (engine.python, engine.env) == (tmp_path / "env" / "bin" / "python", {"VLLM_X": "1"})


def test_it_is_light():
    code = "import sys, specrunner.config; print(*{'torch', 'numpy', 'yaml', 'jsonschema'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


def test_a_timeout_below_cases_reaches_those_that_state_none(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text("[tool.specrunner]\ntimeout = 7\n")
    (tmp_path / "a.yaml").write_text(
        "version: 1\nmodel: {recipe: glass-0.8m}\nengines: [hf]\ndtype: bfloat16\nreference: {engine: hf}\ncases:\n"
        "- {name: a, prompt: x, tolerance: {logits: exact}}\n"
        "- {name: b, prompt: x, tolerance: {logits: exact}, timeout: 600}\n"
    )
    monkeypatch.chdir(tmp_path)
    seen = {}

    def note(cases, *_arguments, **_keywords):
        seen.update({case.name: case.timeout for case in cases})
        return 0

    monkeypatch.setattr(cli_run, "run_cases", note)
    assert cli.main(["run", "a.yaml"]) == 0
    assert seen == {"a": 7.0, "b": 600.0}
    assert cli.main(["run", "a.yaml", "--timeout", "5"]) == 0
    assert seen == {"a": 5.0, "b": 5.0}


@pytest.mark.parametrize(
    ("settings", "environ", "arguments", "expected"),
    [
        ("", {}, [], {"a": 1, "b": 2, "c": 1}),
        ("repeat = 7", {}, [], {"a": 7, "b": 2, "c": 1}),
        ("repeat = 7", {"SPECRUNNER_REPEAT": "5"}, [], {"a": 5, "b": 5, "c": 1}),
        ("repeat = 7", {"SPECRUNNER_REPEAT": "5"}, ["--repeat", "1"], {"a": 1, "b": 1, "c": 1}),
    ],
)
def test_repeats_are_settled_like_timeouts_and_benchmarks_are_asked_once(
    tmp_path, monkeypatch, settings, environ, arguments, expected
):
    (tmp_path / "pyproject.toml").write_text(f"[tool.specrunner]\n{settings}\n")
    (tmp_path / "a.yaml").write_text(
        "version: 1\nmodel: {recipe: glass-0.8m}\nengines: [hf]\ndtype: bfloat16\nreference: {engine: hf}\ncases:\n"
        "- {name: a, prompt: x, tolerance: {logits: exact}}\n"
        "- {name: b, prompt: x, tolerance: {logits: exact}, repeat: 2}\n"
        "- {name: c, benchmark: {task: mmlu, threshold: 0.5, num_fewshot: 0}}\n"
    )
    monkeypatch.chdir(tmp_path)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    seen = {}

    def note(cases, *_arguments, **_keywords):
        seen.update({case.name: case.repeat for case in cases})
        return 0

    monkeypatch.setattr(cli_run, "run_cases", note)
    assert cli.main(["run", "a.yaml", *arguments]) == 0
    assert seen == expected


@pytest.mark.parametrize("value", ["0", "101", "often"])
def test_repeats_have_the_bounds_of_the_spec_language(tmp_path, value):
    with pytest.raises(ConfigurationError, match="a whole number from 1 to 100"):
        load_settings({"repeat": value}, {}, tmp_path)


def test_a_run_without_torch_says_so(monkeypatch):
    monkeypatch.setattr(cli_run, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="torch and safetensors") as caught:
        cli_run.require_numerics()
    assert caught.value.help == f"run: {install_command('hf')}"


CI_VALUES = {
    **dict.fromkeys(("true", "1", "woodpecker", "yes", "True "), True),
    **dict.fromkeys((None, "", " ", "0", "false", "False ", "no", "NO"), False),
}


@pytest.mark.parametrize("value, expected", CI_VALUES.items())
def test_the_variable_ci_means_the_same_everywhere(value, expected):
    environ = {} if value is None else {"CI": value}
    assert is_ci(environ) is expected
    with pytest.raises(UsageError, match="under CI") if expected else nullcontext():
        refuse_under_ci("it", environ)
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    assert (
        isinstance(make_progress(terminal, Palette(False), {**environ, "TERM": "xterm"}), LiveProgress) is not expected
    )
