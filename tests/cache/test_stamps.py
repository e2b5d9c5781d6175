"""Stamps and keys: nothing that an answer comes from can change without another key, and nothing else matters."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import specrunner
from specrunner.cache import machine, stamps
from specrunner.cache.digests import Digests
from specrunner.cache.stamps import PART_NAMES, Stamp, Stamper, stamp_session
from specrunner.engines.base import Capabilities, Engine
from specrunner.engines.stamp import select_variables
from specrunner.environments.interpreters import Environment, find_editable_sources
from specrunner.plan.model import Plan, PlannedSession
from specrunner.requests import Evidence, Request, Session
from specrunner.spec.model import Evaluation, Model, Prompt


class Laboratory:
    """An engine's environment, a checkpoint and a session, all of which can be changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.site = folder / "venv" / "lib" / "python3.11" / "site-packages"
        self.source = folder / "source"
        self.model = folder / "model"
        for name in ("torch", "transformers"):
            self.write(self.site / name / "__init__.py", "version = 1")
        self.write(self.site / "torch" / "lib" / "kernel.so", "machine code")
        self.write(self.site / "triton" / "__init__.py", "version = 1")
        self.write(self.site / "plugin-1.dist-info" / "RECORD", "plugin/moe.so,sha256=abc,7\n")
        self.write(self.site / "torch-2.13.0.dist-info" / "METADATA", "")
        self.write(self.site / "engine-1.dist-info" / "direct_url.json", json.dumps(self.editable(self.source)))
        self.write(self.source / "engine" / "attention.py", "softmax")
        self.write(folder / "venv" / "pyvenv.cfg", f"home = {folder}\nversion = 3.11.7\n")
        self.write(folder / "venv" / "bin" / "python", "")
        self.write(self.model / "config.json", "{}")
        self.write(self.model / "model.safetensors", "weights")
        self.session = Session("hf", "hf-d1", Model(path=str(self.model)), "float32", "cpu", {"attention": "sdpa"})
        self.environment = Environment("hf", folder / "venv" / "bin" / "python", digest="d1", source="configured")
        self.threads = 2

    @staticmethod
    def editable(source: Path) -> dict[str, Any]:
        return {"url": f"file://{source}", "dir_info": {"editable": True}}

    @staticmethod
    def write(file: Path, text: str) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def stamp(self) -> Stamp:
        return stamp_session(self.session, self.environment, self.threads, Digests(None))


@pytest.fixture
def laboratory(tmp_path: Path) -> Laboratory:
    return Laboratory(tmp_path)


CHANGES: dict[str, tuple[str, Callable[[Laboratory], None]]] = {
    "a weight": ("model", lambda lab: lab.write(lab.model / "model.safetensors", "weightz")),
    "the configuration": ("model", lambda lab: lab.write(lab.model / "config.json", "{ }")),
    "a file more": ("model", lambda lab: lab.write(lab.model / "added_tokens.json", "{}")),
    "a package's code in place": ("engine", lambda lab: lab.write(lab.site / "torch" / "__init__.py", "version = 2")),
    "a kernel": ("engine", lambda lab: lab.write(lab.site / "torch" / "lib" / "kernel.so", "other code")),
    "a kernel package's code in place": (
        "engine",
        lambda lab: lab.write(lab.site / "triton" / "__init__.py", "version = 2"),
    ),
    "a package that is built again under its version": (
        "environment",
        lambda lab: lab.write(lab.site / "plugin-1.dist-info" / "RECORD", "plugin/moe.so,sha256=def,7\n"),
    ),
    "an editable source": ("engine", lambda lab: lab.write(lab.source / "engine" / "attention.py", "sigmoid")),
    "a package more": ("environment", lambda lab: lab.write(lab.site / "triton-3.0.dist-info" / "METADATA", "")),
    "Python": ("environment", lambda lab: lab.write(lab.folder / "venv" / "pyvenv.cfg", "version = 3.12.1\n")),
    "the lock": ("environment", lambda lab: setattr(lab, "session", replace(lab.session, environment="hf-d2"))),
    "threads": ("threads", lambda lab: setattr(lab, "threads", 1)),
    "a configured variable": (
        "variables",
        lambda lab: setattr(lab, "environment", replace(lab.environment, env={"VLLM_ATTENTION_BACKEND": "X"})),
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_each_change_gives_another_key_and_is_named(laboratory: Laboratory, what: str) -> None:
    part, change = CHANGES[what]
    before = laboratory.stamp()
    change(laboratory)
    after = laboratory.stamp()
    assert after.key != before.key
    assert after.find_changes(before.parts) == [PART_NAMES[part]]
    assert after.identity == before.identity, "it is still the same session for people"


def test_the_project_s_own_name_maps_count(laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = laboratory.folder / "maps"
    laboratory.write(folder / "hf" / "own.yaml", "one map")
    without = laboratory.stamp()
    monkeypatch.setenv("SPECRUNNER_NAME_MAPS", str(folder))
    before = laboratory.stamp()
    laboratory.write(folder / "vllm" / "own.yaml", "another engine's")
    assert laboratory.stamp() == before
    laboratory.write(folder / "hf" / "own.yaml", "another map")
    after = laboratory.stamp()
    assert before.find_changes(without.parts) == after.find_changes(before.parts) == [PART_NAMES["names"]]
    assert len({without.key, before.key, after.key}) == 3


@pytest.mark.parametrize(
    "session", [{"dtype": "bfloat16"}, {"device": "cuda"}, {"options": {"attention": "eager"}}, {"engine": "oracle"}]
)
def test_another_flag_is_another_session(laboratory: Laboratory, session: dict[str, Any]) -> None:
    before = laboratory.stamp()
    laboratory.session = replace(laboratory.session, **session)
    assert laboratory.stamp().identity != before.identity


def test_what_changes_no_answer_gives_no_other_key(laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch) -> None:
    before = laboratory.stamp()
    laboratory.write(laboratory.site / "torch" / "__pycache__" / "x.pyc", "")
    laboratory.write(laboratory.source / ".git" / "HEAD", "ref")
    laboratory.write(laboratory.folder / "venv" / "pyvenv.cfg", "home = /elsewhere\nversion = 3.11.7\n")
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("CI_JOB_ID", "17")
    assert laboratory.stamp() == before


@pytest.mark.parametrize("name", ["VLLM_USE_V1", "SGLANG_X", "OMP_PROC_BIND", "TORCH_LOGS", "CUBLAS_WORKSPACE_CONFIG"])
def test_the_callers_variables_count(laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    before = laboratory.stamp()
    monkeypatch.setenv(name, "something else")
    assert laboratory.stamp().find_changes(before.parts) == [PART_NAMES["variables"]]


def test_no_value_of_a_variable_is_written_down(monkeypatch: pytest.MonkeyPatch, laboratory: Laboratory) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "hunter2-hunter2")
    assert "hunter2" not in json.dumps(dict(laboratory.stamp().parts))
    assert select_variables({"HF_TOKEN": "x", "HF_HUB_OFFLINE": "1", "HF_DEBUG": "1"}) == {"HF_DEBUG": "1"}
    assert select_variables({"OMP_WAIT_POLICY": "active", "OMP_NUM_THREADS": "3"}) == {"OMP_NUM_THREADS": "3"}


def test_our_own_code_counts(laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = laboratory.stamp()
    laboratory.write(tmp_path / "copy" / "specrunner" / "__init__.py", "")
    monkeypatch.setattr(specrunner, "__file__", str(tmp_path / "copy" / "specrunner" / "__init__.py"))
    assert laboratory.stamp().find_changes(before.parts) == [PART_NAMES["specrunner"]]


def test_another_processor_counts(laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch) -> None:
    before = laboratory.stamp()
    monkeypatch.setattr(machine, "describe_processor", lambda: ("model name: another",))
    assert laboratory.stamp().find_changes(before.parts) == [PART_NAMES["machine"]]


def test_a_gpu_of_a_kind_that_cannot_be_told_leaves_no_key(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stamps, "describe_gpus", lambda: ())
    assert laboratory.stamp().unknown == ""
    laboratory.session = replace(laboratory.session, device="cuda")
    assert laboratory.stamp().unknown == "the kind of GPU cannot be told"
    monkeypatch.setattr(stamps, "describe_gpus", lambda: ("driver", "H200"))
    assert laboratory.stamp().unknown == ""


@pytest.mark.slow
def test_packages_on_the_callers_path_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Environment("hf", Path(sys.executable), source="own")
    session = Session("hf", "hf-d1", Model(recipe="tiny-llada2"), "float32", "cpu")
    digests = Digests(tmp_path / "memory")
    before = stamp_session(session, own, 1, digests)
    Laboratory.write(tmp_path / "path" / "transformers" / "__init__.py", "patched")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    digests.forget()
    assert stamp_session(session, own, 1, digests).find_changes(before.parts) == [PART_NAMES["engine"]]


@pytest.fixture
def patched(laboratory: Laboratory) -> Path:
    """A folder that the project's pyproject.toml puts on PYTHONPATH, with one of the engine's packages in it."""
    folder = laboratory.folder / "patched"
    laboratory.write(folder / "transformers" / "__init__.py", "version = 1")
    laboratory.environment = replace(laboratory.environment, env={"PYTHONPATH": f"relative{os.pathsep}{folder}"})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("source", ["configured", "installed", "own"])
def test_packages_on_the_path_that_the_project_states_come_first(
    laboratory: Laboratory, patched: Path, monkeypatch: pytest.MonkeyPatch, source: Any
) -> None:
    laboratory.environment = replace(laboratory.environment, source=source)
    monkeypatch.setenv("PYTHONPATH", str(laboratory.folder / "not this one"))
    before = laboratory.stamp()
    laboratory.write(laboratory.folder / "not this one" / "transformers" / "__init__.py", "version = 2")
    laboratory.write(laboratory.site / "transformers" / "__init__.py", "hidden behind the other")
    assert laboratory.stamp() == before
    laboratory.write(patched / "transformers" / "__init__.py", "version = 2")
    assert laboratory.stamp().find_changes(before.parts) == [PART_NAMES["engine"]]


@pytest.mark.parametrize("name", ["scheduler.py", "kernels.cpython-311-x86_64-linux-gnu.so", "plugin/core.py"])
def test_whatever_can_be_imported_from_a_stated_path_counts(laboratory: Laboratory, patched: Path, name: str) -> None:
    """An option may name the class of any module there, and a package of the engine may import it."""
    laboratory.write(patched / "plugin" / "__init__.py", "")
    laboratory.write(patched / name, "1")
    seen = [laboratory.stamp()]
    laboratory.write(patched / name, "2")
    seen.append(laboratory.stamp())
    (patched / name).rename((patched / name).with_name(f"other-{Path(name).name}"))
    seen.append(laboratory.stamp())
    assert len({stamp.key for stamp in seen}) == 3
    for stamp in seen[1:]:
        assert stamp.find_changes(seen[0].parts) == [PART_NAMES["engine"]]


def test_what_cannot_be_imported_from_a_stated_path_does_not_count(laboratory: Laboratory, patched: Path) -> None:
    before = laboratory.stamp()
    for name in ("report.xml", "tests/__init__.py", "logs/run.log", "specrunner/__init__.py", ".hidden/__init__.py"):
        laboratory.write(patched / name, "")
    assert laboratory.stamp() == before


def test_a_record_counts_without_what_differs_between_machines(laboratory: Laboratory) -> None:
    record = laboratory.site / "plugin-1.dist-info" / "RECORD"
    before = laboratory.stamp()
    lines = (
        "../../../bin/plugin,sha256=1,2",
        "plugin-1.dist-info/direct_url.json,sha256=1,2",
        "plugin-1.dist-info/INSTALLER,sha256=1,2",
        "plugin/__pycache__/moe.cpython-311.pyc,,",
        "__editable__.plugin-1.pth,sha256=1,2",
        "plugin-1.dist-info/RECORD,,",
        "plugin/moe.so,sha256=abc,7",
    )
    laboratory.write(record, "\n".join(lines))
    assert laboratory.stamp() == before
    for file in ("plugin/moe.py", "plugin-1.dist-info/entry_points.txt", "../../libmkl.so", "plugin/bin/tool"):
        laboratory.write(record, f"plugin/moe.so,sha256=abc,7\n{file},sha256=1,2\n")
        assert laboratory.stamp().find_changes(before.parts) == [PART_NAMES["environment"]], file


OPTIONS: dict[str, Callable[[str], Any]] = {
    "file": lambda path: {"dllm_algorithm_config": path},
    "nested": lambda path: {"speculative_config": {"method": "eagle", "models": [{"model": path}]}},
    "JSON": lambda path: {"speculative_config": json.dumps({"model": path})},
    "named": lambda path: {"lora_paths": [f"one={path}"]},
}


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("name", ["algorithm.yaml", "draft"])
def test_what_options_name_counts_by_its_content(laboratory: Laboratory, kind: str, name: str) -> None:
    place = laboratory.folder / "named" / name
    file = place / "model.safetensors" if name == "draft" else place
    laboratory.session = replace(laboratory.session, options=OPTIONS[kind](str(place)))
    missing = laboratory.stamp()
    laboratory.write(file, "block_size: 4")
    before = laboratory.stamp()
    laboratory.write(file, "block_size: 8")
    after = laboratory.stamp()
    assert (missing.unknown, before.unknown, after.unknown) == ("", "", "")
    assert before.find_changes(missing.parts) == after.find_changes(before.parts) == [PART_NAMES["options"]]
    assert len({missing.key, before.key, after.key}) == 3


def test_a_path_in_the_home_folder_is_one(laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(laboratory.folder))
    laboratory.session = replace(laboratory.session, options={"tokenizer": "~/tokenizer"})
    before = laboratory.stamp()
    laboratory.write(laboratory.folder / "tokenizer" / "tokenizer.json", "{}")
    assert laboratory.stamp().find_changes(before.parts) == [PART_NAMES["options"]]


def test_the_model_that_an_adapter_is_put_on_counts(laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch) -> None:
    config, base = laboratory.model / "adapter_config.json", laboratory.folder / "base"
    laboratory.write(base / "model.safetensors", "1")
    laboratory.write(config, json.dumps({"base_model_name_or_path": str(base)}))
    before = laboratory.stamp()
    laboratory.write(base / "model.safetensors", "2")
    assert laboratory.stamp().find_changes(before.parts) == [PART_NAMES["options"]]
    monkeypatch.setenv("HF_HUB_CACHE", str(laboratory.folder / "hub"))
    laboratory.write(config, '{"base_model_name_or_path": "someone/base"}')
    assert laboratory.stamp().unknown == "files that options or an adapter name are not on this machine yet"
    laboratory.write(config, "[]")
    assert laboratory.stamp().unknown == ""


@pytest.mark.parametrize("revision", ["refs/main", "snapshots/1/tokenizer.json", "snapshots/2/tokenizer.json"])
@pytest.mark.parametrize("text", ["someone/draft", "someone/draft/tokens.pt", "one=someone/draft@main"])
def test_another_model_of_the_hub_that_options_name_counts(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch, text: str, revision: str
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(laboratory.folder / "hub"))
    laboratory.session = replace(laboratory.session, options={"speculative_config": {"model": text}})
    assert laboratory.stamp().unknown == "files that options or an adapter name are not on this machine yet"
    laboratory.write(laboratory.folder / "hub" / "models--someone--draft" / revision, "1")
    before = laboratory.stamp()
    assert before.unknown == ""
    laboratory.write(laboratory.folder / "hub" / "models--someone--draft" / revision, "2")
    assert laboratory.stamp().find_changes(before.parts) == [PART_NAMES["options"]]


@pytest.mark.parametrize("text", ["./algorithm.yaml", "../algorithm.yaml", "configs/algorithm.yaml"])
def test_a_relative_path_leads_nobody_knows_where(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """A worker starts in a folder of its own."""
    laboratory.write(laboratory.folder / "here" / "configs" / "algorithm.yaml", "")
    laboratory.write(laboratory.folder / "here" / "algorithm.yaml", "")
    laboratory.write(laboratory.folder / "algorithm.yaml", "")
    monkeypatch.chdir(laboratory.folder / "here")
    laboratory.session = replace(laboratory.session, options={"dllm_algorithm_config": text})
    assert laboratory.stamp().unknown == "files that options or an adapter name are not on this machine yet"


PLAIN = [
    "sdpa",
    "/",
    "",
    "~",
    "a\0b/c",
    "tcp://127.0.0.1:80",
    "{",
    3,
    0.5,
    None,
    True,
    ["a.b.C"],
    {"a": {}},
    "x" * 9999,
]


@pytest.mark.parametrize("value", PLAIN)
def test_other_options_name_no_file(laboratory: Laboratory, value: Any) -> None:
    laboratory.session = replace(laboratory.session, options={"option": value})
    stamp = laboratory.stamp()
    assert stamp.unknown == ""
    laboratory.write(laboratory.folder / "sdpa", "")
    assert laboratory.stamp() == stamp


def test_editable_sources_are_found_as_pip_and_setuptools_note_them(tmp_path: Path) -> None:
    site = tmp_path / "site-packages"
    Laboratory.write(
        site / "a-1.dist-info" / "direct_url.json", json.dumps(Laboratory.editable(tmp_path / "with space"))
    )
    Laboratory.write(site / "b-1.dist-info" / "direct_url.json", json.dumps({"url": "file:///b", "dir_info": {}}))
    Laboratory.write(site / "c-1.dist-info" / "direct_url.json", "not json")
    Laboratory.write(site / "d.egg-link", f"{tmp_path / 'd'}\n.\n")
    assert find_editable_sources([site]) == [tmp_path / "with space", tmp_path / "d"]


def make_stamper(laboratory: Laboratory, *requests: Request) -> Stamper:
    planned = PlannedSession(laboratory.session, requests)
    key = laboratory.session.key
    return Stamper(Plan((), (planned,)), {key: laboratory.environment}, laboratory.threads, Digests(None))


def test_requests_have_keys_of_their_own(laboratory: Laboratory) -> None:
    plain = Request(Prompt(text="a"), ("logits",))
    requests = [
        plain,
        replace(plain, prompt=Prompt(text="b")),
        replace(plain, tensors=("embeddings",)),
        replace(plain, fault="some-bug"),
        replace(plain, repeat=1),
        replace(plain, probe=True),
    ]
    stamper = make_stamper(laboratory, *requests)
    keys = {stamper.key_of(Evidence(laboratory.session.key, request.key)) for request in requests}
    assert len(keys) == len(requests)
    assert None not in keys


def test_a_request_that_follows_has_the_followed_captures_key_in_its_own(
    laboratory: Laboratory, tmp_path: Path
) -> None:
    """The reference has a model of its own, so that nothing but its capture's key can change the follower's."""
    laboratory.write(tmp_path / "other" / "config.json", "{}")
    leading = replace(laboratory.session, model=Model(path=str(tmp_path / "other")))
    reference = Request(Prompt(text="a"), ("logits",))
    follower = replace(reference, follow=Evidence(leading.key, reference.key), lead="tokens")
    plan = Plan((), (PlannedSession(leading, (reference,)), PlannedSession(laboratory.session, (follower,))))
    environments = dict.fromkeys((leading.key, laboratory.session.key), laboratory.environment)

    def key() -> str | None:
        stamper = Stamper(plan, environments, laboratory.threads, Digests(None))
        return stamper.key_of(Evidence(laboratory.session.key, follower.key))

    before = key()
    assert before == key()
    laboratory.write(tmp_path / "other" / "config.json", "{ }")
    assert key() != before


def test_a_model_that_is_not_here_has_no_key_until_it_is(laboratory: Laboratory, tmp_path: Path) -> None:
    laboratory.session = replace(laboratory.session, model=Model(path=str(tmp_path / "later")))
    request = Request(Prompt(text="a"), ("logits",))
    evidence = Evidence(laboratory.session.key, request.key)
    stamper = make_stamper(laboratory, request)
    assert stamper.key_of(evidence) is None
    assert not stamper.refresh(laboratory.session.key)
    laboratory.write(tmp_path / "later" / "config.json", "{}")
    assert stamper.refresh(laboratory.session.key)
    assert stamper.key_of(evidence) == make_stamper(laboratory, request).key_of(evidence)


@pytest.mark.parametrize("package", ["lm_eval", "transformers", "tokenizers", "jinja2"])
def test_what_makes_a_benchmarks_prompts_counts_also_beside_another_engine(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str
) -> None:
    """The engine has an interpreter of its own; questions are rendered and tokenised under ours."""
    monkeypatch.setattr(stamps, "find_places", lambda name: [tmp_path / "ours" / name])
    monkeypatch.setattr(stamps, "find_spec", lambda name: object())
    laboratory.write(tmp_path / "data.jsonl", "one")
    request = Request(Prompt(), evaluation=Evaluation(("gsm8k",), file=str(tmp_path / "data.jsonl")))
    evidence = Evidence(laboratory.session.key, request.key)
    keys = []
    for version in ("1", "1", "2"):
        laboratory.write(tmp_path / "ours" / package / "__init__.py", version)
        keys.append(make_stamper(laboratory, request).key_of(evidence))
    assert keys[0] == keys[1] != keys[2]


MEANWHILE: dict[str, tuple[bool, Callable[[Laboratory], None]]] = {
    "the code of the engine": (False, lambda lab: lab.write(lab.source / "engine" / "attention.py", "sigmoid")),
    "a package": (False, lambda lab: lab.write(lab.site / "new-1.dist-info" / "METADATA", "")),
    "a file that an option names": (False, lambda lab: lab.write(lab.folder / "algorithm.yaml", "block_size: 8")),
    "the model that is an adapter's base": (
        True,
        lambda lab: lab.write(
            lab.folder / "later" / "adapter_config.json", json.dumps({"base_model_name_or_path": str(lab.model)})
        ),
    ),
    "a model of the hub that an option names": (
        True,
        lambda lab: lab.write(lab.folder / "hub" / "models--someone--draft" / "refs" / "main", "1"),
    ),
}


@pytest.mark.parametrize("what", MEANWHILE)
def test_while_a_model_is_fetched_nothing_else_may_change_but_what_was_missing(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    harmless, change = MEANWHILE[what]
    monkeypatch.setenv("HF_HUB_CACHE", str(laboratory.folder / "hub"))
    laboratory.write(laboratory.folder / "algorithm.yaml", "block_size: 4")
    options = {"config": str(laboratory.folder / "algorithm.yaml")}
    if "hub" in what:
        options["draft"] = "someone/draft"
    laboratory.session = replace(
        laboratory.session, model=Model(path=str(laboratory.folder / "later")), options=options
    )
    stamper = make_stamper(laboratory)
    assert stamper.stamp(laboratory.session.key).unknown
    laboratory.write(laboratory.folder / "later" / "config.json", "{}")
    change(laboratory)
    assert stamper.refresh(laboratory.session.key) is harmless
    assert (stamper.stamp(laboratory.session.key).unknown == "") is harmless


def test_a_model_that_is_here_may_not_change_while_another_is_fetched(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(laboratory.folder / "hub"))
    laboratory.session = replace(laboratory.session, options={"draft": "someone/draft"})
    stamper = make_stamper(laboratory)
    assert stamper.stamp(laboratory.session.key).unknown
    laboratory.write(laboratory.folder / "hub" / "models--someone--draft" / "refs" / "main", "1")
    laboratory.write(laboratory.model / "model.safetensors", "weightz")
    assert not stamper.refresh(laboratory.session.key)
    laboratory.write(laboratory.model / "model.safetensors", "weights")
    assert stamper.refresh(laboratory.session.key)


def test_a_change_during_the_run_is_noticed(laboratory: Laboratory) -> None:
    request = Request(Prompt(text="a"), ("logits",))
    stamper = make_stamper(laboratory, request)
    stamper.key_of(Evidence(laboratory.session.key, request.key))
    assert stamper.refresh(laboratory.session.key)
    laboratory.write(laboratory.source / "engine" / "attention.py", "sigmoid")
    assert not stamper.refresh(laboratory.session.key)


@pytest.mark.slow
def test_a_benchmarks_data_counts(laboratory: Laboratory, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    request = Request(Prompt(), evaluation=Evaluation(("gsm8k",), file=str(data)))
    evidence = Evidence(laboratory.session.key, request.key)
    keys = []
    for text in ("one", "two"):
        data.write_text(text)
        keys.append(make_stamper(laboratory, request).key_of(evidence))
    assert keys[0] != keys[1]


@pytest.mark.parametrize("package", ["aplugin", "zplugin"])
def test_the_code_of_a_plugin_counts(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str
) -> None:
    class PluginEngine(Engine):
        name = "plugged"

        @classmethod
        def capabilities(cls) -> Capabilities:
            return Capabilities(dtypes={"cpu": ("float32",)})

    PluginEngine.__module__ = f"{package}.adapter.core"
    laboratory.write(tmp_path / "plugins" / package / "__init__.py", "")
    laboratory.write(tmp_path / "plugins" / package / "adapter" / "core.py", "1")
    monkeypatch.syspath_prepend(str(tmp_path / "plugins"))
    monkeypatch.setattr(stamps, "find_engine", lambda name: PluginEngine)
    before = laboratory.stamp()
    laboratory.write(tmp_path / "plugins" / package / "adapter" / "core.py", "2")
    assert laboratory.stamp().find_changes(before.parts) == [PART_NAMES["engine"]]
