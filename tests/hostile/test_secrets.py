"""Secrets of the environment, of URLs and of options: in no report, golden or line that a run prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specrunner.secrets import REDACTED, Redactor, is_secret
from tests.reporters.test_html import read_data

ROOT = Path(__file__).resolve().parents[2]
SECRETS = {
    "HF_TOKEN": "correct-horse-battery/staple+1",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEX",
    "MY_DB_PASSWORD": 'pa"ss\\word',
    "PIP_INDEX_URL": "https://alice:open-sesame@packages.example/simple",
    "DEPLOY_KEY": "-----BEGIN-----\nMIIEowIBAAKCAQEA7\n-----END-----",
}
TOLD = (
    *("correct-horse", "wJalrXUtnFEMI", 'pa"ss', "open-sesame", "alice", "MIIEowIBAAKCAQEA7"),
    *("hf_abcdefghijklmnopqrstuvwxyz", "nobody-reads-this"),
)
SPEC = """\
version: 1
model: {path: .}
engines: [leaky]
options: {leaky: {token: nobody-reads-this, url: 'https://bob:open-sesame@example.org/x'}}
cases:
"""
CASE = """\
  - {name: %s, prompt: %s, golden: true, tolerance: {logits: exact}}
"""


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        *((name, True) for name in ("HF_TOKEN", "OPENAI_API_KEY", "X_SECRET", "db_password", "CI_JOB_TOKEN")),
        *((name, True) for name in ("AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "MYTOKEN", "TOKEN2", "BASIC_AUTH")),
        *((name, False) for name in ("TOKENIZERS_PARALLELISM", "PATH", "HF_TOKEN_PATH", "KEYBOARD", "SSH_AUTH_SOCK")),
    ],
)  # fmt: skip
def test_which_variables_hold_secrets(name: str, secret: bool) -> None:
    assert is_secret(name) is secret


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:pass@host/x", "https://[redacted]@host/x"),
        ("git+https://t0ken@host/x and http://a:b@c", "git+https://[redacted]@host/x and http://[redacted]@c"),
        ("hf_abcdefghijklmnopqrstuvwxyz", REDACTED),
        ("Authorization: Bearer abcdefghijklmnop.qrst", "Authorization: Bearer [redacted]"),
        ("glpat-abcdefghijklmnopqrst!", "[redacted]!"),
        ("mail me@example.org about https://host/x@y", "mail me@example.org about https://host/x@y"),
        ("hf_transfer sk-learn", "hf_transfer sk-learn"),
    ],
)
def test_shapes_of_secrets(text: str, shown: str) -> None:
    assert Redactor({}).redact(text) == shown


@given(
    st.text(),
    st.text(min_size=6).filter(lambda text: len(text.strip()) >= 6 and len(text.splitlines()) == 1),
    st.text(),
)
def test_a_value_is_taken_out_wherever_it_stands(before: str, value: str, after: str) -> None:
    redacted = Redactor({"X_TOKEN": value}).redact(before + value + after)
    assert value.strip() not in redacted.replace(REDACTED, "\n")


def test_values_under_telling_keys_are_taken_out() -> None:
    redactor = Redactor({"A_KEY": "sesame-street"})
    value = {
        "hf_token": "x", "api_key": "y", "nested": [{"password": "z", "mask_token": "<mask>", "token": 5}],
        "sesame-street": ("https://a@b", 1.5, None),
    }  # fmt: skip
    assert redactor.redact_values(value) == {
        "hf_token": REDACTED, "api_key": REDACTED,
        "nested": [{"password": REDACTED, "mask_token": "<mask>", "token": 5}],
        REDACTED: ("https://[redacted]@b", 1.5, None),
    }  # fmt: skip


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["a", "token", "sesame-street"]),
            st.sampled_from(["sesame-street", "hello", 1, ("hello", "sesame-street"), {"api_key": "x"}, {"key": "x"}]),
        ),
        max_size=8,
    )
)
def test_what_was_seen_before_is_taken_out_again(values: list[dict[str, object]]) -> None:
    redactor = Redactor({"A_KEY": "sesame-street"})
    for value in values * 2:
        assert redactor.redact_values(value) == Redactor({"A_KEY": "sesame-street"}).redact_values(value)


def test_short_values_are_no_secrets() -> None:
    assert Redactor({"USE_TOKEN": "1", "KEY": "false"}).redact("1 false") == "1 false"


@pytest.mark.slow
def test_no_report_of_a_run_tells_a_secret(tmp_path: Path) -> None:
    """The engine prints and states its whole environment, fails with a token in its message, and dies."""
    plugin = tmp_path / "plugin"
    info = plugin / "leaky-1.0.dist-info"
    info.mkdir(parents=True)
    (plugin / "leaky.py").write_text((Path(__file__).parent / "leaky.py").read_text())
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: leaky\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[specrunner.engines]\nleaky = leaky:LeakyEngine\n")
    work = tmp_path / "work"
    (work / "specs").mkdir(parents=True)
    cases = "".join(CASE % (name, name) for name in ("speak", "fail", "die"))
    (work / "specs" / "a.yaml").write_text(SPEC + cases)
    (work / "config.json").write_text("{}")
    kept = {name: value for name, value in os.environ.items() if name != "CI"}
    variables = {**kept, **SECRETS, "PYTHONPATH": f"{plugin}{os.pathsep}{ROOT}", "HOME": str(tmp_path / "home")}
    variables |= {"SPECRUNNER_CACHE": str(tmp_path / "cache"), "GITHUB_STEP_SUMMARY": str(work / "summary.md")}
    command = [sys.executable, "-m", "specrunner", "run", "specs", "--update-goldens", "--junit-xml", "r.xml"]
    command += ["--json", "r.json", "--html", "r.html"]
    command += ["--output-format", "github", "--color", "never"]
    done = subprocess.run(command, cwd=work, env=variables, capture_output=True, text=True)
    assert done.returncode == 10, done.stderr
    printed = done.stdout + done.stderr
    files = {file: file.read_bytes().decode("utf-8", "replace") for file in work.rglob("*") if file.is_file()}
    files[work / "r.html"] += json.dumps(read_data((work / "r.html").read_bytes()))  # they are packed there
    written = {str(file.relative_to(work)): text for file, text in files.items() if file.name != "a.yaml"}
    assert {"r.xml", "r.json", "r.html", "summary.md", ".specrunner/last-run.json"} <= set(written)
    assert any(name.startswith("golden/") for name in written)
    for name, text in {**written, "printed": printed}.items():
        quoted = {"nobody-reads-this"} if name == "r.html" else set()  # it quotes the lines of the spec itself
        assert {secret for secret in TOLD if secret in text} <= quoted, name
    for name in ("r.xml", "r.json", "r.html", "printed"):
        assert REDACTED in {**written, "printed": printed}[name]
    assert f"401 for {REDACTED}" in printed
