"""What is broken turns red on a real engine: whole runs on vLLM and SGLang, in their installed environments.

Where an adapter alone can show it, it is shown elsewhere: Transformers' own model code behind the engine, rows that the
prefix cache swallows and loads that fail in `test_vllm.py` and `test_sglang.py`, misbehaving engines in `test_run.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import specrunner
from specrunner.engines.registry import find_engine
from specrunner.environments.interpreters import find_environment
from specrunner.errors import EngineMissing, ExitCode
from specrunner.models.recipes import ensure_model
from specrunner.plan.build import Planner, make_plan
from specrunner.plan.model import Plan, PlannedSession
from specrunner.reporters.json import JsonReporter
from specrunner.requests import Evidence, Session
from specrunner.runner import Run, RunOptions
from specrunner.spec.loader import load_specs
from specrunner.spec.model import Model
from tests.waiting import wait_for

PACKAGE = Path(specrunner.__file__).parent
EVERY_TENSOR = 'tolerance: {embeddings: exact, "**": {sqnr: 80}}'


def is_missing(engine: str) -> bool:
    """Whether there is no environment for the engine on a CPU."""
    try:
        find_environment(engine, find_engine(engine).capabilities(), "cpu")
    except EngineMissing:
        return True
    return False


needs_vllm = [pytest.mark.vllm, pytest.mark.timeout(1800)]


@pytest.fixture(autouse=True)
def environment(request: pytest.FixtureRequest) -> None:
    """Skip a test whose engine is not installed."""
    for engine in ("vllm", "sglang"):
        if request.node.get_closest_marker(engine) and is_missing(engine):
            pytest.skip(f"there is no environment for {engine}: specrunner engines install {engine}")


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[str]:
    """A text that all processes of this test carry in their environment; none may outlive it."""
    yield str(tmp_path)
    assert find_processes(str(tmp_path)) == {}, "a process was left behind"


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder with a short name: the path of a socket may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="red-", dir="/tmp") as name:
        yield Path(name)


def find_processes(marker: str) -> dict[int, str]:
    """Return the command lines of the processes that carry this test's marker."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"SPECRUNNER_TEST={marker}".encode() in entry.read_bytes().split(b"\0"):
                command = (entry.parent / "cmdline").read_bytes()
                found[int(entry.parent.name)] = command.replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
    return found


def list_group(group: int) -> dict[int, str]:
    """Return the command lines of a process group: SGLang's schedulers overwrite their environment with a title."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] != "Z":
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
    return found


def write_spec(path: Path, head: str, cases: str) -> Path:
    """Write a spec in float32 on the CPU."""
    text = "version: 1\ndevice: cpu\ndtype: float32\n" + textwrap.dedent(head) + "cases:\n" + cases
    path.write_text(text, encoding="utf-8")
    return path


def ids(length: int) -> list[int]:
    return [(7 * i * i + 3 * i + 5) % 300 for i in range(length)]


def start_run(folder: Path, marker: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """Start a run in `folder`."""
    return subprocess.Popen(
        [sys.executable, "-m", "specrunner", "run", "--json", "r.json", *arguments],
        cwd=folder,
        env={**os.environ, "SPECRUNNER_TEST": marker, **variables},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish_run(process: subprocess.Popen[str], folder: Path) -> tuple[dict[str, dict[str, Any]], str]:
    """Wait for a run; return its cases by name, and what it printed."""
    stdout, stderr = process.communicate(timeout=1500)
    assert (folder / "r.json").is_file(), stdout + stderr
    report = json.loads((folder / "r.json").read_text(encoding="utf-8"))
    return {case["name"]: case for case in report["cases"]}, stdout + stderr


def first_red(case: dict[str, Any]) -> str | None:
    """Return the subject of the first check that failed."""
    return next((check["subject"] for check in case["checks"] if not check["passed"]), None)


def change(path: Path, *replacements: tuple[str, str]) -> None:
    """Replace lines of a file, each of which must be there once."""
    text = path.read_text(encoding="utf-8")
    for old, new in replacements:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


class TestBrokenAdapter:
    """One load of an adapter that is broken in four ways, each of which touches one case alone."""

    SILENT_SHIFT, TOLD_SHIFT = 21, 22
    """A prompt of so many tokens is rolled by one: unnoticed by the adapter, and noticed."""

    @pytest.fixture(scope="class")
    @classmethod
    def cases(cls, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
        folder = tmp_path_factory.mktemp("broken")
        copy = folder / "copy" / "specrunner"
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
        if not (copy / "schema").is_dir():
            shutil.copytree(PACKAGE.parent / "schema", copy / "schema")
        change(
            copy / "engines/names/vllm/llama.yaml",
            ("sum: [0, 1]", "index: 0"),
            (
                'value": {module: "model.layers.{i}.self_attn.qkv_proj", index: 0, part: value, gather: columns}',
                'value": {module: lm_head}',
            ),
        )
        change(
            copy / "engines/vllm/adapter.py",
            (
                "rows, tensors = self.reader.run_prompt(ids, patterns, companions=companions)",
                f"fed = ids[1:] + ids[:1] if len(ids) == {cls.SILENT_SHIFT} else ids\n"
                "        rows, tensors = self.reader.run_prompt(fed, patterns, companions=companions)",
            ),
            (
                "self._check_length(len(ids), request.decode)",
                f"ids = ids[1:] + ids[:1] if len(ids) == {cls.TOLD_SHIFT} else ids\n"
                "            self._check_length(len(ids), request.decode)",
            ),
        )
        sound = 'tolerance: {embeddings: exact, "layers.*.mlp.output": {sqnr: 80}, logits: {sqnr: 80}}'
        every = sound.replace(
            "}, logits", '}, "layers.*.attention.output": {sqnr: 80}, "layers.*.output": {sqnr: 80}, logits'
        )
        cases = {
            "sound": (20, sound),
            "no-residual": (20, every),
            "shifted": (cls.SILENT_SHIFT, sound),
            "shifted-and-told": (cls.TOLD_SHIFT, sound),
            "hook-on-what-is-never-called": (20, 'tolerance: {"layers.*.attention.value": {sqnr: 80}}'),
        }
        lines = [
            f"  - {{name: {name}, prompt: {{token_ids: {ids(length)}}}, {tolerance}}}\n"
            for name, (length, tolerance) in cases.items()
        ]
        head = "model: {recipe: glass-0.8m}\nengines: [vllm]\nreference: {engine: hf, dtype: float32}\n"
        spec = write_spec(folder / "spec.yaml", head, "".join(lines))
        process = start_run(folder, str(folder), str(spec), PYTHONPATH=str(copy.parent))
        found, said = finish_run(process, folder)
        assert process.returncode == ExitCode.FAILED, said
        assert find_processes(str(folder)) == {}
        return found

    pytestmark = needs_vllm

    def test_what_the_breaks_do_not_touch_passes(self, cases: dict[str, dict[str, Any]]) -> None:
        assert cases["sound"]["verdict"] == "passed"
        assert len(cases["sound"]["checks"]) == 1 + 1 + 4 + 1

    @pytest.mark.parametrize(
        ("name", "first"),
        [("no-residual", "layers.0.output"), ("shifted", "embeddings"), ("shifted-and-told", "tokenization")],
    )
    def test_the_first_tensor_that_is_wrong_is_named(
        self, cases: dict[str, dict[str, Any]], name: str, first: str
    ) -> None:
        assert cases[name]["verdict"] == "failed"
        assert first_red(cases[name]) == first

    def test_without_the_residual_everything_else_is_right(self, cases: dict[str, dict[str, Any]]) -> None:
        red = [check["subject"] for check in cases["no-residual"]["checks"] if not check["passed"]]
        assert red == [f"layers.{layer}.output" for layer in range(4)]

    def test_after_other_tokens_nothing_is_compared(self, cases: dict[str, dict[str, Any]]) -> None:
        assert [check["subject"] for check in cases["shifted-and-told"]["checks"]] == ["tokenization"]

    def test_a_hook_that_does_not_fire_is_no_evidence(self, cases: dict[str, dict[str, Any]]) -> None:
        case = cases["hook-on-what-is-never-called"]
        assert case["verdict"] == "error"
        assert "did not fire" in case["failure"]["message"]
        assert case["failure"]["role"] == "candidate"


def replace_candidate(plan: Plan, planner: Planner, model: Model) -> Plan:
    """Return the plan of one case with another model in the candidate's session."""
    (planned,) = plan.cases
    old = planned.evidence["candidate"]
    sessions = []
    for entry in plan.sessions:
        session = entry.session
        if session.key == old.session:
            environment = planner.environments[session.key]
            session = Session(
                session.engine, session.environment, model, session.dtype, session.device, session.options
            )
            planner.environments[session.key] = environment
            new = Evidence(session.key, old.request)
        sessions.append(PlannedSession(session, entry.requests))
    return Plan((replace(planned, evidence={**planned.evidence, "candidate": new}),), tuple(sessions))


class TestSwappedWeights:
    pytestmark = needs_vllm

    def test_two_layers_weights_exchanged_show_at_the_first_of_them(self, tmp_path: Path) -> None:
        broken = tmp_path / "glass"
        shutil.copytree(ensure_model(Model(recipe="glass-0.8m")), broken)
        weights = load_file(broken / "model.safetensors")
        one, other = (f"model.layers.{layer}.mlp.down_proj.weight" for layer in (1, 3))
        weights[one], weights[other] = weights[other], weights[one]
        save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
        head = "model: {recipe: glass-0.8m}\nengines: [vllm]\nreference: {engine: hf, dtype: float32}\n"
        case = f"  - {{name: swapped, prompt: {{token_ids: {ids(20)}}}, {EVERY_TENSOR}, tensors: ['**']}}\n"
        loaded = load_specs([str(write_spec(tmp_path / "spec.yaml", head, case))])
        assert not loaded.diagnostics
        planner = Planner()
        plan = replace_candidate(make_plan(loaded.cases, planner), planner, Model(path=str(broken)))
        reporter = JsonReporter(tmp_path / "r.json")
        status = Run(plan, planner.environments, [reporter], RunOptions()).execute()
        reporter.close()
        assert status is ExitCode.FAILED
        (found,) = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["cases"]
        assert found["verdict"] == "failed"
        assert first_red(found) == "layers.1.mlp.output"
        clean = [check["subject"] for check in found["checks"] if check["passed"]]
        assert {"embeddings", "layers.0.output", "layers.1.attention.output"} <= set(clean)


class TestFailures:
    """What cannot be loaded, or dies, ends as one error, and the other sessions go on."""

    def write_sound(self, folder: Path) -> None:
        head = (
            "model: {recipe: glass-0.8m}\nengines: [hf]\noptions: {hf: {attn_implementation: eager}}\n"
            "reference: {engine: hf, dtype: float32, options: {attn_implementation: sdpa}}\n"
        )
        write_spec(
            folder / "sound.yaml", head, f"  - {{name: sound, prompt: {{token_ids: {ids(8)}}}, {EVERY_TENSOR}}}\n"
        )

    @pytest.mark.vllm
    @pytest.mark.timeout(1800)
    def test_models_that_vllm_cannot_load(self, tmp_path: Path, marker: str) -> None:
        nobody = tmp_path / "nobody"
        shutil.copytree(ensure_model(Model(recipe="glass-0.8m")), nobody)
        config = json.loads((nobody / "config.json").read_text(encoding="utf-8"))
        config |= {"architectures": ["NobodyForCausalLM"]}
        (nobody / "config.json").write_text(json.dumps(config), encoding="utf-8")
        for name, path in (("absent", tmp_path / "absent"), ("nobody", nobody)):
            head = f"model: {{path: {path}}}\nengines: [vllm]\nreference: {{engine: hf, dtype: float32}}\n"
            case = (
                f"  - {{name: {name}, prompt: {{token_ids: {ids(8)}}}, decode: {{max_new_tokens: 2}}, tokens: exact}}\n"
            )
            write_spec(tmp_path / f"{name}.yaml", head, case)
        self.write_sound(tmp_path)
        process = start_run(tmp_path, marker, "absent.yaml", "nobody.yaml", "sound.yaml", "-j", "1")
        cases, said = finish_run(process, tmp_path)
        assert process.returncode == ExitCode.ERRORS, said
        assert {name: case["verdict"] for name, case in cases.items()} == {
            "absent": "error",
            "nobody": "error",
            "sound": "passed",
        }
        for name, kind, words in (
            ("absent", "model-unavailable", "no directory"),
            ("nobody", "model-unsupported", "NobodyForCausalLM"),
        ):
            failure = cases[name]["failure"]
            assert (failure["role"], failure["kind"]) == ("candidate", kind)
            assert words in failure["message"] and "\n" not in failure["message"]

    @pytest.mark.sglang
    @pytest.mark.timeout(1800)
    def test_a_scheduler_that_is_killed_while_a_request_runs(
        self, tmp_path: Path, temporary: Path, marker: str
    ) -> None:
        head = (
            "model: {recipe: glass-0.8m}\nengines: [sglang]\nreference: {engine: hf, dtype: float32}\n"
            "options: {sglang: {specrunner_mode: engine}}\n"
        )
        case = (
            f"  - {{name: killed, prompt: {{token_ids: {ids(8)}}}, decode: {{max_new_tokens: 110}}, tokens: exact}}\n"
        )
        write_spec(tmp_path / "killed.yaml", head, case)
        self.write_sound(tmp_path)
        process = start_run(tmp_path, marker, "killed.yaml", "sound.yaml", "-j", "1", TMPDIR=str(temporary))
        order = "specrunner-*/sglang-*/sglang/order.json"
        wait_for(lambda: process.poll() is not None or list(temporary.glob(order)), "the engine has an order", 1500)
        assert process.poll() is None, process.communicate()
        workers = [pid for pid, command in find_processes(marker).items() if "specrunner.sessions.worker" in command]
        groups = {pid: list_group(pid) for pid in workers if os.getpgid(pid) == pid}  # the others are guardians
        found = {pid: [one for one, line in group.items() if "scheduler" in line] for pid, group in groups.items()}
        ((worker, schedulers),) = [entry for entry in found.items() if entry[1]]  # the reference may be there, too
        for pid in schedulers:
            os.kill(pid, signal.SIGKILL)
        cases, said = finish_run(process, tmp_path)
        assert process.returncode == ExitCode.PASSED, said
        assert {name: case["verdict"] for name, case in cases.items()} == {"killed": "passed", "sound": "passed"}
        assert schedulers
        assert list_group(worker) == {}, "a process of the engine was left behind"
        (failure,) = cases["killed"]["attempts"]
        assert (failure["role"], failure["kind"]) == ("candidate", "worker-died")
        assert "was killed by SIGKILL" in failure["message"] and "\n" not in failure["message"]


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_an_engine_that_is_missing_is_skipped_or_an_error(tmp_path: Path, marker: str, engine: str) -> None:
    head = f"model: {{recipe: glass-0.8m}}\nengines: [{engine}]\nreference: {{engine: hf, dtype: float32}}\n"
    write_spec(tmp_path / "spec.yaml", head, f"  - {{name: absent, prompt: {{token_ids: {ids(8)}}}, {EVERY_TENSOR}}}\n")
    empty = str(tmp_path / "empty")
    for arguments, verdict, status in (
        ((), "skipped", ExitCode.NOTHING_VERIFIED),
        (("--strict",), "error", ExitCode.ERRORS),
    ):
        process = start_run(tmp_path, marker, "spec.yaml", *arguments, SPECRUNNER_CACHE=empty)
        cases, said = finish_run(process, tmp_path)
        assert process.returncode == status, said
        assert cases["absent"]["verdict"] == verdict
        assert cases["absent"]["failure"]["kind"] == "engine-missing"
        assert f"specrunner engines install {engine}" in said
