"""Checkpoints that would run code: refused before any engine reads them, unless the spec allows it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file

from specrunner.engines import trust
from specrunner.engines.base import Capabilities
from specrunner.engines.named_checkpoints import find_checkpoints, find_refusals
from specrunner.engines.registry import find_engine
from specrunner.engines.trust import check_code, check_index, check_trust, find_pickle
from specrunner.errors import ModelUnavailable, ModelUnsupported
from specrunner.plan.build import Planner, make_plan
from specrunner.plan.capabilities import check_capabilities
from specrunner.requests import Session
from specrunner.sessions import worker
from specrunner.spec.loader import load_specs, read_spec
from specrunner.spec.model import Case, Model
from specrunner.spec.revisions import find_variable, is_commit, resolve_revision
from specrunner.spec.source import parse_text

NOTHING = Capabilities(dtypes={})
"""Those of an engine without options of its own that name checkpoints."""

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def make_session(folder: Path, engine: str = "hf", **fields: Any) -> Session:
    options = fields.pop("options", {})
    return Session(engine, "here", Model(path=str(folder), **fields), "float32", "cpu", options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    return tmp_path


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl", "consolidated.00.pth", "x.CKPT"])
@pytest.mark.parametrize("engine", ["hf", "vllm", "sglang", "oracle", "plugin"])
def test_weights_that_are_a_pickle_are_refused_on_every_engine(folder: Path, name: str, engine: str) -> None:
    (folder / name).write_bytes(b"x")
    with pytest.raises(ModelUnsupported, match="is a pickle") as caught:
        check_trust(make_session(folder, engine), str(folder), NOTHING)
    assert "model.allow_pickle: true" in str(caught.value.help)
    check_trust(make_session(folder, engine, allow_pickle=True), str(folder), NOTHING)


def test_pickles_beside_safetensors_are_read_by_nobody(folder: Path) -> None:
    for name in ("pytorch_model.bin", "optimizer.pt", "model.safetensors"):
        (folder / name).write_bytes(b"x")
    check_trust(make_session(folder), str(folder), NOTHING)


@pytest.mark.parametrize(
    "options",
    [
        {"load_format": "pt"},
        {"load_format": "PT"},
        {"load_format": "npcache"},
        {"load_format": "bitsandbytes"},
        {"use_safetensors": False},
        {"variant": "fp16"},
        {"ignore_patterns": ["*.safetensors"]},
        {"speculative_config": {"draft-load-config": {"load_format": "pt"}}},
        {"speculative_draft_load_format": "pt"},
    ],
)
def test_options_that_ask_for_a_pickle_are_refused(folder: Path, options: dict[str, Any]) -> None:
    for name in ("pytorch_model.bin", "model.safetensors"):
        (folder / name).write_bytes(b"x")
    with pytest.raises(ModelUnsupported, match="pytorch_model.bin is a pickle"):
        check_trust(make_session(folder, options=options), str(folder), NOTHING)
    for safe in ({"load_format": "safetensors"}, {"load_format": None}, {"use_safetensors": True}):
        check_trust(make_session(folder, options=safe), str(folder), NOTHING)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ([], None),
        (["model.safetensors"], None),
        (["model.gguf"], None),
        (["other.safetensors", "pytorch_model.bin"], "pytorch_model.bin"),  # Transformers takes the latter
        (["model.safetensors", "adapter_model.bin"], "adapter_model.bin"),
        (["model.safetensors", "adapter_model.bin", "adapter_model.safetensors"], None),
        (["model.safetensors.index.json", "pytorch_model.bin"], None),
        (["original/consolidated.00.pth"], None),  # of a hub's list: no engine looks into folders
    ],
)
def test_which_files_an_engine_would_unpickle(names: list[str], found: str | None) -> None:
    assert find_pickle(names, {}) == found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight_map": {"a": "pytorch_model.bin"}}, "no safetensors file"),
        ({"weight_map": {"a": "../../secret.safetensors"}}, "leads out of the checkpoint"),
        ({"weight_map": {"a": "/etc/x.safetensors"}}, "leads out of the checkpoint"),
        ({"weight_map": {"a": ".."}}, "leads out of the checkpoint"),
        ({"weight_map": ["a"]}, "has no weight_map"),
        ({}, "has no weight_map"),
        ([], "no JSON object"),
    ],
)
def test_an_index_leads_to_safetensors_beside_it_only(folder: Path, content: Any, message: str) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps(content))
    with pytest.raises(ModelUnsupported, match=message):
        check_index(index)
    with pytest.raises(ModelUnsupported, match=message):
        check_trust(make_session(folder), str(folder), NOTHING)


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 100_000, b'{"a": 1' * 50_000])
def test_a_broken_index_is_an_error(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(ModelUnsupported, match="cannot be read"):
        check_trust(make_session(folder), str(folder), NOTHING)


def test_code_of_another_repository_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text('{"auto_map": {"AutoConfig": "mallory/code--configuration.Config"}}')
    with pytest.raises(ModelUnsupported, match="takes code from the repository 'mallory/code'"):
        check_trust(make_session(folder, trust_remote_code=True), str(folder), NOTHING)
    check_trust(make_session(folder), str(folder), NOTHING)  # without the permission, none is run
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["mallory/code--t.T", null]}}')
    with pytest.raises(ModelUnsupported, match="tokenizer_config.json takes code"):
        check_code(folder, ["config.json", "tokenizer_config.json"])
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["tokenization.T", null]}}')
    check_code(folder, ["config.json", "tokenizer_config.json"])


def test_of_a_hub_model_the_hub_s_list_counts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def download(repository: str, name: str, revision: str | None) -> str:
        asked.append((repository, name, revision))
        return str(folder / name)

    def refuse(*_: Any, **__: Any) -> list[str]:
        raise ConnectionError("offline")

    session = Session("hf", "here", Model(id="owner/name", revision=COMMIT), "float32", "cpu")
    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.setattr(hub, "list_repo_files", lambda *_, **__: ["config.json", "pytorch_model.bin"])
    with pytest.raises(ModelUnsupported, match=r"pytorch_model\.bin is a pickle"):
        check_trust(session, "owner/name", NOTHING)
    assert asked == [("owner/name", "config.json", COMMIT)]
    monkeypatch.setattr(hub, "list_repo_files", refuse)
    check_trust(session, "owner/name", NOTHING)
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelUnsupported, match=r"pytorch_model\.bin is a pickle"):
        check_trust(session, "owner/name", NOTHING)
    monkeypatch.setattr(hub, "hf_hub_download", refuse)
    assert trust.list_files(session.model, "owner/name", {}) == (None, [])


def test_what_is_read_of_a_hub_model_is_fetched_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its first load nothing but `config.json` is in the cache: the rest would be loaded unread by the engine."""
    hub = pytest.importorskip("huggingface_hub")
    stated = {
        "config.json": {},
        "tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["evil/repo--t.T", None]}},
        "adapter_config.json": {"base_model_name_or_path": "owner/base"},
        "model.safetensors.index.json": {"weight_map": {"w": "../../w.safetensors"}},
        "sub/config.json": {},
        "picture.png": {},
    }
    lacking: set[str] = set()

    def download(repository: str, name: str, **_: Any) -> str:
        if name in lacking or repository != "owner/name":
            raise ConnectionError("gone")
        (folder / name).write_text(json.dumps(stated[name]))
        return str(folder / name)

    (folder / "config.json").unlink()
    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.setattr(hub, "list_repo_files", lambda *_, **__: list(stated))
    session = Session("hf", "here", Model(id="owner/name", trust_remote_code=True), "float32", "cpu")
    with pytest.raises(ModelUnsupported, match="leads out of the checkpoint"):
        check_trust(session, "owner/name", NOTHING)
    assert sorted(entry.name for entry in folder.iterdir()) == sorted(list(stated)[:4])
    del stated["model.safetensors.index.json"]
    with pytest.raises(ModelUnsupported, match=r"tokenizer_config\.json takes code from the repository 'evil/repo'"):
        check_trust(session, "owner/name", NOTHING)
    stated["tokenizer_config.json"] = {}
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ModelUnsupported, match=r"adapter_config\.json puts the checkpoint on 'owner/base'"):
        check_trust(session, "owner/name", NOTHING)
    (folder / "adapter_config.json").unlink()
    lacking.add("adapter_config.json")
    with pytest.raises(ModelUnavailable, match=r"could not fetch adapter_config\.json of owner/name: ConnectionError"):
        check_trust(session, "owner/name", NOTHING)


def test_the_worker_checks_before_the_engine_loads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pickle would leave a file behind; the engine is never asked."""

    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (folder / "ran",))

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    message = {
        "type": "load",
        "engine": "specrunner.engines.hf.adapter:HfEngine",
        "session": make_session(folder).to_json(),
        "model_path": str(folder),
        "workspace": str(folder / "work"),
    }
    answers: list[dict[str, Any]] = []
    inbox = [message, {"type": "close"}]

    class Pipe:
        def get(self) -> dict[str, Any]:
            return inbox.pop(0)

        def send(self, answer: dict[str, Any]) -> None:
            answers.append(answer)

    worker.serve(Pipe(), Pipe())  # type: ignore[arg-type]
    assert answers[0]["type"] == "failed"
    assert answers[0]["message"] == "pytorch_model.bin is a pickle, which can run any code when it is read"
    assert not (folder / "ran").exists()


# --- specs ---


def read(model: str, more: str = "") -> tuple[list[Case], list[tuple[str, str]]]:
    text = f"version: 1\nmodel: {model}\nengines: [hf]\nreference: {{engine: hf}}\ndtype: bfloat16\n{more}"
    text += "cases:\n  - {name: a, prompt: hi, tolerance: {logits: exact}}\n"
    cases, diagnostics = read_spec(parse_text(text, "x.yaml"), "x", ("hf", "vllm"), ("glass-0.8m",))
    return cases, [(diagnostic.code, diagnostic.message) for diagnostic in diagnostics]


@pytest.mark.parametrize("what", ["trust_remote_code", "allow_pickle"])
@pytest.mark.parametrize("revision", ["main", "v1.0", COMMIT[:39], COMMIT + "0", COMMIT.upper(), ""])
def test_code_of_the_hub_needs_a_pinned_revision(what: str, revision: str) -> None:
    stated = f", revision: '{revision}'" if revision else ""
    cases, found = read(f"{{id: owner/name{stated}, {what}: true}}")
    assert cases == []
    assert [code for code, _ in found] == ["unpinned-code"]
    assert found[0][1].startswith(f"`{what}` needs the full hash of a commit")


@pytest.mark.parametrize(
    "model",
    [
        "{id: owner/name}",
        "{id: owner/name, revision: main}",
        f"{{id: owner/name, revision: '{COMMIT}', trust_remote_code: true}}",
        "{path: ../checkpoint, trust_remote_code: true, allow_pickle: true}",
        "{recipe: glass-0.8m, trust_remote_code: true}",
    ],
)
def test_what_is_pinned_or_local_may_run_code(model: str) -> None:
    cases, found = read(model)
    assert found == [] and len(cases) == 1


def test_the_environment_can_give_the_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    model = "{id: owner/name, revision: $THE_REVISION, trust_remote_code: true}"
    monkeypatch.delenv("THE_REVISION", raising=False)
    cases, found = read(model)
    assert found == [] and cases[0].model.revision == "$THE_REVISION"
    skip = make_plan(cases, Planner()).cases[0].skip
    assert skip is not None and skip.kind == "capability-missing"
    assert (skip.message, skip.help) == (
        "the revision of owner/name is not given",
        "set THE_REVISION to the full hash of the commit to test",
    )
    monkeypatch.setenv("THE_REVISION", COMMIT)
    cases, found = read(model)
    assert found == [] and cases[0].model.revision == COMMIT
    monkeypatch.setenv("THE_REVISION", "main")
    assert read(model)[1] == [
        ("unpinned-code", "`trust_remote_code` needs the full hash of a commit: `THE_REVISION` is `main`")
    ]
    assert resolve_revision("$THE_REVISION/x", {"THE_REVISION": "y"}) == "$THE_REVISION/x"


@pytest.mark.parametrize("name", ["trust_remote_code", "allow_pickle", "revision"])
@pytest.mark.parametrize(
    "more",
    [
        "options: {vllm: {NAME: x}}\n",
        "options: {hf: {NAME: false}}\n",
        "reference: {engine: hf, options: {NAME: x}}\n",
        "reference: {engine: hf, peer: {options: {NAME: x}}}\n",
    ],
)
def test_options_cannot_allow_code(more: str, name: str) -> None:
    more = more.replace("NAME", name)
    text = f"version: 1\nmodel: {{id: owner/name}}\nengines: [hf]\ndtype: bfloat16\n{more}"
    text += "" if more.startswith("reference") else "reference: {engine: hf}\n"
    text += "cases:\n  - {name: a, prompt: hi, tolerance: {logits: exact}}\n"
    _, diagnostics = read_spec(parse_text(text, "x.yaml"), "x", ("hf", "vllm"), ())
    assert [(d.code, d.message, d.help) for d in diagnostics] == [
        ("conflicting-keys", f"`{name}` belongs to the model", f"write `model: {{…, {name}: …}}`")
    ]


PINNED = f"{{id: owner/name, revision: '{COMMIT}', trust_remote_code: true}}"

SAID_TWICE = [
    ("vllm", "{model: evil/repo}", "model", "id"),
    ("vllm", "{model_weights: /elsewhere}", "model_weights", "path"),
    ("vllm", "{hf_config_path: evil/repo}", "hf_config_path", "path"),
    ("vllm", "{code_revision: main}", "code_revision", "revision"),
    ("vllm", "{tokenizer_revision: main}", "tokenizer_revision", "revision"),
    ("vllm", "{speculative_config: {method: mtp, revision: main}}", "speculative_config.revision", "revision"),
    ("vllm", "{speculative_config: {code-revision: main}}", "speculative_config.code_revision", "revision"),
    ("sglang", "{model_path: evil/repo}", "model_path", "id"),
    ("sglang", "{speculative_draft_model_revision: main}", "speculative_draft_model_revision", "revision"),
    ("sglang", "{modelopt_checkpoint_restore_path: /x}", "modelopt_checkpoint_restore_path", "path"),
    ("hf", "{code_revision: main}", "code_revision", "revision"),
    ("hf", "{config: evil/repo}", "config", "path"),
    ("hf", "{subfolder: pickles}", "subfolder", "path"),
    ("hf", "{adapter_kwargs: {_adapter_model_path: evil/repo}}", "adapter_kwargs", "path"),
    ("oracle", "{code_revision: main}", "code_revision", "revision"),
]

CODE_OF_OTHERS = [
    ("hf", "{auto_map: {AutoModelForCausalLM: evil/repo--m.M}}", "auto_map", "auto_map"),
    ("vllm", "{hf_overrides: {auto_map: {AutoModel: evil/repo--m.M}}}", "hf_overrides.auto_map", "auto_map"),
    (
        "sglang",
        """{json_model_override_args: '{"auto_map": {"AutoModel": "evil/repo--m.M"}}'}""",
        "json_model_override_args.auto_map",
        "json_model_override_args",
    ),
]

UNPINNED = [
    ("vllm", "{tokenizer: evil/repo}", "tokenizer", "evil/repo"),
    ("vllm", "{tokenizer: evil/repo, tokenizer_revision: main}", "tokenizer", "evil/repo"),
    ("vllm", "{speculative_config: {model: evil/repo}}", "speculative_config.model", "evil/repo"),
    ("vllm", "{spec_model: evil/repo}", "spec_model", "evil/repo"),
    ("vllm", "{default_mm_loras: {image: evil/repo}}", "default_mm_loras", "{image: evil/repo}"),
    ("vllm", f"{{tokenizer: 's3://b/k', tokenizer_revision: '{COMMIT}'}}", "tokenizer", "'s3://b/k'"),
    ("sglang", "{tokenizer_path: evil/repo}", "tokenizer_path", "evil/repo"),
    ("sglang", "{speculative_draft_model_path: ./here}", "speculative_draft_model_path", "./here"),
    ("sglang", "{lora_paths: [a=evil/repo]}", "lora_paths", "[a=evil/repo]"),
]


def validate(folder: Path, engine: str, options: str, *, reference: bool = False) -> list[tuple[str, str, str, str]]:
    """Return code, message, help and marked text of what is wrong with a case on an engine."""
    roles = f"engines: [oracle]\nreference: {{engine: {engine}, dtype: float32, options: {options}}}\n"
    if not reference:
        dtype, other = ("float64", "hf") if engine == "oracle" else ("float32", "oracle")
        roles = (
            f"engines: [{engine}]\ndtype: {dtype}\nreference: {{engine: {other}}}\noptions: {{{engine}: {options}}}\n"
        )
    text = f"version: 1\nmodel: {PINNED}\n{roles}cases:\n  - {{name: a, prompt: hi, tolerance: {{logits: exact}}}}\n"
    (folder / "x.yaml").write_text(text, encoding="utf-8")
    found = check_capabilities(load_specs([str(folder / "x.yaml")])).diagnostics
    starts = (d.location.column - 1 for d in found)
    return [
        (d.code, d.message, d.help or "", d.line_text[at : at + d.width])
        for d, at in zip(found, starts, strict=True)
        if d.code != "impossible-dtype"
    ]


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize(("engine", "options", "name", "field"), SAID_TWICE)
def test_options_say_nothing_that_the_model_says(
    tmp_path: Path, engine: str, options: str, name: str, field: str, reference: bool
) -> None:
    [(code, message, advice, marked)] = validate(tmp_path, engine, options, reference=reference)
    assert (code, message) == ("conflicting-keys", f"`{name}` belongs to the model")
    assert advice == f"write `model: {{…, {field}: …}}`"
    assert marked.replace("-", "_") == name.rpartition(".")[2]


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize(
    ("engine", "name", "field"),
    [
        ("hf", "dtype", "dtype"),
        ("hf", "torch_dtype", "dtype"),
        ("vllm", "dtype", "dtype"),
        ("sglang", "dtype", "dtype"),
        ("sglang", "device", "device"),
    ],
)
def test_options_say_nothing_that_the_case_says(
    tmp_path: Path, engine: str, name: str, field: str, reference: bool
) -> None:
    """A report would say `bfloat16` of what ran in float32."""
    assert validate(tmp_path, engine, f"{{{name}: float32}}", reference=reference) == [
        (
            "conflicting-keys",
            f"`{name}` belongs to the case",
            f"write `{field}: …` in the case, or under `reference`",
            name,
        )
    ]


@pytest.mark.parametrize(("engine", "options", "name", "marked"), CODE_OF_OTHERS)
def test_options_name_no_code(tmp_path: Path, engine: str, options: str, name: str, marked: str) -> None:
    assert validate(tmp_path, engine, options) == [
        (
            "conflicting-keys",
            f"`{name}` belongs to the checkpoint",
            "put the code and its `auto_map` into the checkpoint",
            marked,
        )
    ]


@pytest.mark.parametrize(("engine", "options", "name", "marked"), UNPINNED)
def test_a_further_checkpoint_is_pinned_like_the_model(
    tmp_path: Path, engine: str, options: str, name: str, marked: str
) -> None:
    [(code, message, advice, found)] = validate(tmp_path, engine, options)
    assert (code, found) == ("unpinned-code", marked)
    assert message.startswith(f"`trust_remote_code` holds for `{name}`, too, and ")
    assert advice.startswith("state the absolute path of a directory")


@pytest.mark.parametrize(
    ("engine", "options"),
    [
        ("vllm", f"{{tokenizer: owner/other, tokenizer_revision: '{COMMIT}'}}"),
        ("vllm", f"{{speculative_config: {{model: owner/draft, revision: '{COMMIT}'}}}}"),
        ("vllm", f"{{spec_model: owner/draft, speculative_config: {{revision: '{COMMIT}'}}}}"),
        ("vllm", "{tokenizer: /models/x=y, max_num_seqs: 2, hf_overrides: {num_hidden_layers: 2}}"),
        ("vllm", "{tokenizer: null, default_mm_loras: {image: /models/lora}}"),
        (
            "sglang",
            f"{{speculative_draft_model_path: owner/draft, speculative_draft_model_revision: '{COMMIT}'}}",
        ),
        ("sglang", "{lora_paths: [a=/models/lora, {lora_name: b, lora_path: /models/b}], chat_template: '{% x %}'}"),
        ("hf", "{attn_implementation: eager}"),
    ],
)
def test_options_that_pin_what_they_name_may_stand(tmp_path: Path, engine: str, options: str) -> None:
    assert validate(tmp_path, engine, options) == []


def test_every_option_is_looked_at_also_in_lists_and_behind_one_that_may_stand() -> None:
    capabilities = find_engine("vllm").capabilities()
    model = Model(path="/x", trust_remote_code=True)
    [refusal] = find_refusals({"adapters": [{"size": 2}, {"revision": "main"}]}, model, capabilities)
    assert (refusal.message, refusal.path) == ("`adapters.revision` belongs to the model", ("adapters", 1, "revision"))
    pinned = {"tokenizer": "owner/name", "tokenizer_revision": COMMIT}
    long = "evil/" + "x" * 300
    [refusal] = find_refusals({**pinned, "speculative_config": {"model": long}}, model, capabilities)
    assert f"{long[:200]!r} is not fixed at a commit" in refusal.message
    assert refusal.help == ("state the absolute path of a directory, or 40 hex digits in `speculative_config.revision`")
    [refusal] = find_refusals({"default_mm_loras": {"image": "evil/lora"}}, model, capabilities)
    assert refusal.help == "state the absolute path of a directory"
    [refusal] = find_refusals({"attn_implementation": long}, model, find_engine("hf").capabilities())
    assert f"the repository {long[:200]!r}, which" in refusal.message


def test_further_checkpoints_may_do_what_the_model_may() -> None:
    stated = {"tokenizer": "/models/tokenizer", "speculative_config": {"model": "owner/draft", "revision": COMMIT}}
    model = Model(path="/x", trust_remote_code=True)
    assert find_checkpoints(stated, model, find_engine("vllm").capabilities()) == [
        (Model(path="/models/tokenizer", trust_remote_code=True), "/models/tokenizer"),
        (Model(id="owner/draft", revision=COMMIT, trust_remote_code=True), "owner/draft"),
    ]


HUB_CODE = [
    ("{attn_implementation: evil/kernel}", "`attn_implementation` runs code of the repository 'evil/kernel', which"),
    (
        "{attn_implementation: 'evil/kernel@main:f'}",
        "`attn_implementation` runs code of the repository 'evil/kernel@main",
    ),
    (
        "{attn_implementation: 'paged|evil/kernel'}",
        "`attn_implementation` runs code of the repository 'paged|evil/kern",
    ),
    (
        "{attn_implementation: {'': evil/kernel}}",
        "`attn_implementation.` runs code of the repository 'evil/kernel', wh",
    ),
    ("{experts_implementation: evil/kernel}", "`experts_implementation` runs code of the repository 'evil/kernel', wh"),
    ("{use_kernels: true}", "`use_kernels` runs code from a hub, at a revision that nobody states"),
    (
        "{kernel_config: {RMSNorm: 'evil/kernel:Norm'}}",
        "`kernel_config.RMSNorm` runs code of the repository 'evil/kernel",
    ),
]


@pytest.mark.parametrize(("options", "message"), HUB_CODE)
def test_options_take_no_kernels_from_a_hub(tmp_path: Path, options: str, message: str) -> None:
    [(code, found, advice, marked)] = validate(tmp_path, "hf", options)
    assert code == "unpinned-code" and found.startswith(message)
    assert "owner/name@" in advice
    assert marked in options


def test_a_kernel_at_a_commit_may_run_where_code_may() -> None:
    capabilities = find_engine("hf").capabilities()
    pinned = {
        "attn_implementation": f"owner/kernel@{COMMIT}:f",
        "use_kernels": False,
        "experts_implementation": "eager",
    }
    assert find_refusals(pinned, Model(path="/x", trust_remote_code=True), capabilities) == []
    [refusal] = find_refusals(pinned, Model(path="/x"), capabilities)
    assert refusal.message.endswith(f"'owner/kernel@{COMMIT}:f'")
    assert "trust_remote_code: true" in refusal.help


@pytest.mark.parametrize(
    ("engine", "name"), [("vllm", "HF_ENDPOINT"), ("vllm", "VLLM_USE_MODELSCOPE"), ("sglang", "SGLANG_USE_MODELSCOPE")]
)
def test_options_lead_to_no_other_hub(tmp_path: Path, engine: str, name: str) -> None:
    assert validate(tmp_path, engine, f"{{specrunner_environment: {{{name}: x}}}}") == [
        (
            "unpinned-code",
            f"`specrunner_environment.{name}` names another hub, where a commit may stand for other files",
            "set the variable where specrunner is started",
            name,
        )
    ]
    assert validate(tmp_path, engine, f"{{specrunner_environment: {{{name}: '0', OTHER: x}}}}") == []


@pytest.mark.parametrize("allowed", ["trust_remote_code", "allow_pickle"])
def test_an_adapter_that_may_run_code_stands_on_a_directory(folder: Path, allowed: str) -> None:
    file = folder / "adapter_config.json"
    session = make_session(folder, **{allowed: True})
    for base in ({}, {"base_model_name_or_path": "/models/base"}):
        file.write_text(json.dumps(base))
        check_trust(session, str(folder), NOTHING)
    for base in (
        {"base_model_name_or_path": "evil/base"},
        {"base_model_name_or_path": "a/b", "revision": COMMIT},
        {"base_model_name_or_path": "."},
    ):
        file.write_text(json.dumps(base))
        with pytest.raises(ModelUnsupported, match=rf"adapter_config\.json puts the checkpoint on .* `{allowed}`"):
            check_trust(session, str(folder), NOTHING)


def test_an_adapter_s_base_is_searched_like_the_model(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path_factory.mktemp("base")
    monkeypatch.chdir(base.parent)
    capabilities = find_engine("vllm").capabilities()
    for name in (str(base), base.name):
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": name}))
        further = make_session(base, "vllm", options={"tokenizer": str(folder)})
        for session, path in ((make_session(folder), folder), (further, base / "none")):
            (base / "pytorch_model.bin").unlink(missing_ok=True)
            check_trust(session, str(path), capabilities)
            (base / "pytorch_model.bin").write_bytes(b"x")
            with pytest.raises(ModelUnsupported, match=r"pytorch_model\.bin is a pickle"):
                check_trust(session, str(path), capabilities)
    (base / "pytorch_model.bin").unlink()
    (base / "config.json").write_text('{"auto_map": {"AutoConfig": "evil/repo--c.C"}}')
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    with pytest.raises(ModelUnsupported, match="takes code from the repository 'evil/repo'"):
        check_trust(make_session(folder, trust_remote_code=True), str(folder), NOTHING)


def test_an_adapter_on_itself_ends(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    check_trust(make_session(folder), str(folder), NOTHING)


def test_of_an_adapter_s_base_on_a_hub_the_hub_s_list_counts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')
    asked = []

    def list_files(model: Model, path: str, options: Any) -> tuple[Path | None, list[str]]:
        asked.append((model.id, path))
        return (folder, ["config.json"]) if model.id is None else (None, ["pytorch_model.bin"])

    monkeypatch.setattr(trust, "list_files", list_files)
    with pytest.raises(ModelUnsupported, match=r"pytorch_model\.bin is a pickle"):
        check_trust(make_session(folder), str(folder), NOTHING)
    assert asked == [(None, str(folder)), ("owner/base", "owner/base")]


def test_without_permission_a_further_checkpoint_needs_no_pin() -> None:
    capabilities = find_engine("vllm").capabilities()
    assert find_refusals({"tokenizer": "owner/other"}, Model(id="owner/name"), capabilities) == []
    found = find_refusals({"tokenizer": "owner/other"}, Model(path="/x", allow_pickle=True), capabilities)
    assert [refusal.message for refusal in found] == [
        "`allow_pickle` holds for `tokenizer`, too, and 'owner/other' is not fixed at a commit"
    ]


@pytest.mark.parametrize(
    ("engine", "options", "message"),
    [
        ("vllm", {"revision": "main"}, "`revision` belongs to the model"),
        ("vllm", {"speculative_config": {"model": "evil/repo"}}, "'evil/repo' is not fixed at a commit"),
        ("sglang", {"model_path": "evil/repo"}, "`model_path` belongs to the model"),
        ("sglang", {"tokenizer_path": "evil/repo"}, "'evil/repo' is not fixed at a commit"),
        ("hf", {"code_revision": "main"}, "`code_revision` belongs to the model"),
        ("sglang", {"dtype": "float32"}, "`dtype` belongs to the case"),
        ("hf", {"auto_map": {"AutoModel": "evil/repo--m.M"}}, "`auto_map` belongs to the checkpoint"),
    ],
)
def test_the_worker_holds_options_against_the_model_itself(
    folder: Path, engine: str, options: dict[str, Any], message: str
) -> None:
    session = make_session(folder, engine, trust_remote_code=True, options=options)
    with pytest.raises(ModelUnsupported, match=message):
        check_trust(session, str(folder), find_engine(engine).capabilities())


@pytest.mark.parametrize(
    ("engine", "name"),
    [("vllm", "tokenizer"), ("sglang", "tokenizer_path"), ("sglang", "speculative_draft_model_path")],
)
def test_a_further_checkpoint_is_searched_like_the_model(folder: Path, engine: str, name: str) -> None:
    other = folder / "other"
    other.mkdir()
    (other / "config.json").write_text('{"auto_map": {"AutoConfig": "evil/repo--c.C"}}')
    capabilities = find_engine(engine).capabilities()
    session = make_session(folder, engine, trust_remote_code=True, options={name: str(other)})
    with pytest.raises(ModelUnsupported, match="takes code from the repository 'evil/repo'"):
        check_trust(session, str(folder), capabilities)
    session = make_session(folder, engine, options={name: str(other)})
    check_trust(session, str(folder), capabilities)
    (other / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelUnsupported, match=r"pytorch_model\.bin is a pickle"):
        check_trust(session, str(folder), capabilities)
    session = make_session(folder, engine, options={name: str(other / "pytorch_model.bin")})
    with pytest.raises(ModelUnsupported, match=r"pytorch_model\.bin is a pickle"):
        check_trust(session, str(folder), capabilities)


def test_the_hub_is_asked_where_and_as_whom_the_engine_asks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    asked: list[dict[str, Any]] = []

    def download(repository: str, name: str, **named: Any) -> str:
        asked.append(named)
        return str(folder / name)

    def list_repository(repository: str, **named: Any) -> list[str]:
        asked.append(named)
        return ["pytorch_model.bin"]

    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.setattr(hub, "list_repo_files", list_repository)
    options = {"download_dir": "/cache", "hf_token": "secret", "tokenizer": "owner/other", "tokenizer_revision": COMMIT}
    with pytest.raises(ModelUnsupported, match="is a pickle"):
        check_trust(make_session(folder, "vllm", options=options), str(folder), find_engine("vllm").capabilities())
    assert asked == [
        {"revision": COMMIT, "token": "secret", "cache_dir": "/cache"},
        {"revision": COMMIT, "token": "secret"},
    ]


def test_the_shipped_specs_run_no_code_at_an_unpinned_revision() -> None:
    models = [case.model for case in load_specs(["specs"]).require_valid()]
    trusted = [model for model in models if model.id is not None and (model.trust_remote_code or model.allow_pickle)]
    assert {model.id for model in trusted} == {"inclusionAI/LLaDA2.0-mini", "inclusionAI/LLaDA2.0-flash"}
    for model in trusted:
        assert is_commit(model.revision) or find_variable(model.revision)


def test_a_sound_checkpoint_passes(folder: Path) -> None:
    import numpy

    save_file({"x": numpy.zeros(2, "float32")}, folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "model-00001-of-00001.safetensors"}}')
    check_trust(make_session(folder), str(folder), NOTHING)
