"""What a case may ask of its engines, before any of them starts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from specrunner.catalogue import engines
from specrunner.engines import registry
from specrunner.engines.base import Capabilities, Engine
from specrunner.environments.locks import Lock
from specrunner.errors import ConfigurationError
from specrunner.plan import capabilities
from specrunner.plan.capabilities import architecture_of, check_capabilities
from specrunner.spec.diagnostics import Diagnostic
from specrunner.spec.loader import LoadedSpecs, load_specs
from specrunner.spec.model import Model


class Cpu(Engine):
    """Runs on a CPU only, decodes greedily, knows the logits of Llamas."""

    name: ClassVar[str] = "cpu-engine"

    @classmethod
    def capabilities(cls) -> Capabilities:
        return Capabilities(dtypes={"cpu": ("float32", "bfloat16")})

    @classmethod
    def tensor_templates(cls, architecture: str) -> tuple[str, ...] | None:
        return ("layers.{i}.output", "logits") if architecture == "LlamaForCausalLM" else None


class Both(Cpu):
    """Runs everywhere, but in float16 on CUDA alone, and decodes both ways."""

    @classmethod
    def capabilities(cls) -> Capabilities:
        return Capabilities(
            dtypes={"cpu": ("float32",), "cuda": ("float32", "float16")}, algorithms=("greedy", "low_confidence")
        )


class Knowing(Both):
    """Knows how Llamas decode, unless an option says that it attends otherwise."""

    @classmethod
    def decode_algorithms(cls, architecture: str, options: Mapping[str, Any]) -> tuple[str, ...] | None:
        return ("greedy",) if architecture == "LlamaForCausalLM" and not options.get("other") else None


class Fixed(Both):
    """Has a sampler of its own, which `hidden: true` keeps to itself."""

    @classmethod
    def decode_rules(cls, options: Mapping[str, Any]) -> Mapping[str, tuple[Any, ...]]:
        return {"accept": ("gt",), "fallback": ("best", "schedule"), "steps": (None,), "exclude_mask_id": (False,)}

    @classmethod
    def reveals_passes(cls, options: Mapping[str, Any]) -> bool:
        return not options.get("hidden")


ENGINES: dict[str, type[Engine]] = {"cpu": Cpu, "both": Both, "knowing": Knowing, "fixed": Fixed}
HEAD = "version: 1\nmodel: {recipe: glass-0.8m}\nreference: {engine: both, device: cuda}\n"


def check(folder: Path, fields: str, head: str = HEAD) -> tuple[Diagnostic, ...]:
    text = f"{head}cases:\n  - name: c\n    prompt: hi\n" + "".join(f"    {line}\n" for line in fields.splitlines())
    (folder / "x.yaml").write_text(text, encoding="utf-8")
    loaded = load_specs([str(folder / "x.yaml")], engines=tuple(ENGINES), recipes=("glass-0.8m", "tiny-llada2"))
    assert loaded.diagnostics == ()
    checked = check_capabilities(loaded, ENGINES.__getitem__)
    assert checked.cases == loaded.cases
    return checked.diagnostics


def shown(diagnostic: Diagnostic) -> tuple[str, str]:
    """Return a diagnostic's code and the text that its carets mark."""
    start = diagnostic.location.column - 1
    return diagnostic.code, diagnostic.line_text[start : start + diagnostic.width]


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ("engines: [cpu, both]\ntolerance: {logits: exact, layers.3.output: exact}", []),
        ("engines: [cpu]\ndtype: float16\ntolerance: {logits: exact}", [("impossible-dtype", "float16")]),
        ("engines: [both]\ndtype: float16\ntolerance: {logits: exact}", []),
        ("engines: [both]\ndtype: float16\ndevice: cpu\ntolerance: {logits: exact}", [("impossible-dtype", "float16")]),
        ("engines: [both]\ndtype: float16\ndevice: cuda\ntolerance: {logits: exact}", []),
        ("engines: [cpu]\ndevice: cuda\ntolerance: {logits: exact}", [("impossible-device", "cuda")]),
        ("engines: [cpu]\nreference: {dtype: float64}\ntolerance: {logits: exact}", [("impossible-dtype", "float64")]),
        (
            "engines: [cpu]\nmatrix: {dtype: [float32, float16]}\ntolerance: {logits: exact}",
            [("impossible-dtype", "float16")],
        ),
        ("engines: [cpu]\ntolerance: {logits: exact, embeddings: exact}", [("impossible-tensor", "embeddings")]),
        ('engines: [cpu]\ntensors: [logits, "*norm"]\ntolerance: {"**": exact}', [("impossible-tensor", '"*norm"')]),
        ('engines: [cpu]\ntolerance: {"**": exact}', []),
    ],
)
def test_capabilities(tmp_path: Path, fields: str, found: list[tuple[str, str]]) -> None:
    diagnostics = check(tmp_path, fields)
    assert list(dict.fromkeys(map(shown, diagnostics))) == found


DIFFUSION = "decode: {max_new_tokens: 4, algorithm: low_confidence, block_length: 4, threshold: 0.5}\ntokens: exact"


TWINS = f"""\
model: {{recipe: glass-0.8m}}
reference: {{engine: both, device: cuda}}
engines: [fixed]
prompt: hi
tolerance: {{logits: exact}}
{DIFFUSION.splitlines()[0]}
"""


HIDING = "reference: {engine: fixed, device: cuda, options: {hidden: true}}, engines: [both]"


@pytest.mark.parametrize(
    ("shared", "other", "code"),
    [
        ("", "engines: [cpu]", "impossible-algorithm"),
        ("", "dtype: float64", "impossible-dtype"),
        ("dtype: float16", "device: cpu", "impossible-dtype"),
        ("", "environments: {fixed: none}", "unknown-environment"),
        ("", "reference: {dtype: float64}", "impossible-dtype"),
        ("", "reference: {peer: {dtype: float64}}, tolerance: {logits: {noise_floor: 2}}", "impossible-dtype"),
        ("", "model: {recipe: tiny-llada2}", "no-name-map"),
        ("", "tolerance: {embeddings: exact}", "impossible-tensor"),
        ("tokens: exact", "decode: {steps: 3}", "impossible-sampler"),
        ("", "batch: {with: [other]}", "impossible-batch"),
        ("tokens: exact, trajectory: exact", "options: {fixed: {hidden: true}}", "impossible-trajectory"),
        ("tokens: exact, options: {fixed: {hidden: true}}", "trajectory: exact", "impossible-trajectory"),
        (HIDING, "tokens: near_tie", "impossible-trajectory"),
        (HIDING, "at: {step: 1}", "impossible-trajectory"),
    ],
)
def test_a_sound_case_hides_no_mistake_of_one_that_is_nearly_the_same(
    tmp_path: Path, shared: str, other: str, code: str
) -> None:
    """Cases that ask for the same are looked at once; what makes two of them differ is told, whichever comes first."""
    sound, wrong = "{name: a}", f"{{name: b, {other}}}"
    defaults = yaml.safe_load(TWINS) | yaml.safe_load(f"{{{shared}}}")
    head = f"version: 1\ndefaults: {json.dumps(defaults)}\ncases:\n"
    for cases in ([sound], [wrong], [sound, wrong], [wrong, sound]):
        (tmp_path / "x.yaml").write_text(head + "".join(f"  - {case}\n" for case in cases), encoding="utf-8")
        loaded = load_specs([str(tmp_path / "x.yaml")], engines=tuple(ENGINES), recipes=("glass-0.8m", "tiny-llada2"))
        assert loaded.diagnostics == ()
        found = check_capabilities(loaded, ENGINES.__getitem__).diagnostics
        assert {one.code for one in found} == ({code} if wrong in cases else set())


def test_an_algorithm_that_an_engine_lacks(tmp_path: Path) -> None:
    (diagnostic,) = check(tmp_path, f"engines: [cpu]\n{DIFFUSION}")
    assert shown(diagnostic) == ("impossible-algorithm", "low_confidence")
    assert diagnostic.message == "engine `cpu` cannot decode by `low_confidence`"
    assert diagnostic.help == "it can: `greedy`"


def test_an_algorithm_that_a_model_lacks(tmp_path: Path) -> None:
    (diagnostic,) = check(tmp_path, f"engines: [knowing]\n{DIFFUSION}")
    assert diagnostic.code == "impossible-algorithm"
    assert diagnostic.message == "glass-0.8m decodes by greedy, and the case by `low_confidence`"
    assert diagnostic.help == "e.g. `decode: {max_new_tokens: 16}`"
    assert check(tmp_path, f"engines: [knowing]\noptions: {{knowing: {{other: true}}}}\n{DIFFUSION}") == ()
    assert check(tmp_path, "engines: [knowing]\ndecode: {max_new_tokens: 4}\ntokens: exact") == ()


@pytest.mark.parametrize("engine", ["hf", "sglang"])
def test_built_in_engines_know_how_llada2_decodes(engine: str) -> None:
    known = registry.find_engine(engine).decode_algorithms
    assert known("LLaDA2MoeModelLM", {}) == ("low_confidence",)
    assert known("LlamaForCausalLM", {}) == ("greedy",)
    assert known("NobodyForCausalLM", {}) is None


def test_an_architecture_without_names(tmp_path: Path) -> None:
    head = HEAD.replace("glass-0.8m", "tiny-llada2")
    diagnostics = check(tmp_path, "engines: [cpu]\ntolerance: {logits: exact}", head)
    assert {shown(d) for d in diagnostics} == {("no-name-map", "c")}
    assert [d.message for d in diagnostics] == [
        "engine `cpu` has no map of tensor names for LLaDA2MoeModelLM",
        "engine `both` has no map of tensor names for LLaDA2MoeModelLM",
    ]
    assert check(tmp_path, "engines: [cpu]\ndecode: {max_new_tokens: 4}\ntokens: exact", head) == ()


def test_what_is_not_known_is_not_judged(tmp_path: Path) -> None:
    head = HEAD.replace("{recipe: glass-0.8m}", "{id: owner/unknown}")
    assert check(tmp_path, "engines: [cpu]\ntolerance: {embeddings: exact}", head) == ()


def test_the_architecture_of_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["SomeForCausalLM"]}), encoding="utf-8")
    assert architecture_of(Model(path=str(tmp_path))) == "SomeForCausalLM"
    assert architecture_of(Model(path=str(tmp_path / "missing"))) is None
    assert architecture_of(Model(id="owner/name")) is None
    assert architecture_of(Model(recipe="glass-0.8m")) == "LlamaForCausalLM"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"architectures": []}', '{"architectures": null}'])
def test_a_broken_config_is_no_architecture(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    architecture_of.cache_clear()
    assert architecture_of(Model(path=str(tmp_path))) is None


def test_cases_without_marks_are_pointed_at_as_a_whole(tmp_path: Path) -> None:
    import dataclasses

    text = f"{HEAD}cases:\n  - {{name: c, prompt: hi, engines: [cpu], device: cuda, tolerance: {{logits: exact}}}}\n"
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
    loaded = load_specs([str(tmp_path / "x.yaml")], engines=tuple(ENGINES))
    bare = tuple(dataclasses.replace(case, marks={}) for case in loaded.cases)
    (diagnostic,) = check_capabilities(LoadedSpecs(bare, (), loaded.files), ENGINES.__getitem__).diagnostics
    assert diagnostic.location.line == 5


# --- the registry ---


def test_our_engines_are_known_without_being_imported() -> None:
    assert set(engines.BUILT_IN) <= set(engines.engine_names())


@pytest.mark.parametrize("name", sorted(engines.BUILT_IN))
def test_our_engines_load_and_state_what_they_can(name: str) -> None:
    engine = registry.find_engine(name)
    assert engine.capabilities().dtypes


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("no_such_module:Thing", "engine `broken` (no_such_module:Thing) cannot be loaded: ModuleNotFoundError"),
        ("json:Thing", "engine `broken` (json:Thing) cannot be loaded: AttributeError"),
        ("json:loads", "engine `broken` (json:loads) is not a subclass"),
        (
            "specrunner.engines.base:Engine",
            "engine `broken` (specrunner.engines.base:Engine) lacks `capabilities`, `capture`, `load`",
        ),
    ],
)
def test_a_broken_plugin_is_named(target: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "engine_targets", lambda: {"broken": target})
    registry.find_engine.cache_clear()
    with pytest.raises(ConfigurationError) as raised:
        registry.find_engine("broken")
    assert raised.value.message.startswith(message)
    with pytest.raises(ConfigurationError, match="unknown engine `other`"):
        registry.find_engine("other")
    registry.find_engine.cache_clear()


BENCHMARK = """\
version: 1
model: {{recipe: {recipe}}}
engines: [both]
cases:
  - name: c
    benchmark: {{task: {task}, threshold: 0.5}}
{decode}"""


@pytest.mark.parametrize(
    ("decode", "more", "found"),
    [
        ("", "", []),
        (", fallback: best", "", []),
        (", steps: 4", "", []),
        (", steps: 2", "", [("impossible-sampler", "2")]),
        (", accept: ge", "", [("impossible-sampler", "ge")]),
        (", exclude_mask_id: true", "", [("impossible-sampler", "true")]),
        ("", "trajectory: sampler", []),
        ("", "trajectory: sampler\noptions: {fixed: {hidden: true}}", [("impossible-trajectory", "sampler")]),
        ("", "options: {fixed: {hidden: true}}", []),
        ("", "batch: {with: [you]}", [("impossible-batch", "{with: [you]}")]),
    ],
)
def test_a_sampler_that_cannot_follow_the_rule(
    tmp_path: Path, decode: str, more: str, found: list[tuple[str, str]]
) -> None:
    how = "{max_new_tokens: 4, algorithm: low_confidence, block_length: 4, threshold: 0.5" + decode + "}"
    fields = f"engines: [fixed]\ndecode: {how}\ntokens: exact\n{more}"
    assert [shown(one) for one in check(tmp_path, fields)] == found


def test_a_fixed_sampler_says_what_it_does(tmp_path: Path) -> None:
    how = "{max_new_tokens: 4, algorithm: low_confidence, block_length: 4, threshold: 0.5, fallback: near_best}"
    (diagnostic,) = check(tmp_path, f"engines: [fixed]\ndecode: {how}\ntokens: exact")
    assert diagnostic.message == "engine `fixed` cannot decode with `fallback: near_best`"
    assert diagnostic.help == (
        "its sampler does `fallback: best`, `fallback: schedule`: state that, and all engines follow the same rule"
    )


def test_a_baseline_that_every_run_of_the_case_overwrites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kept = tmp_path / ".specrunner" / "benchmarks" / "x"
    kept.mkdir(parents=True)
    (tmp_path / "linked.json").symlink_to(kept / "c[engine=cpu].json")

    def held_against(file: str) -> list[tuple[str, str]]:
        text = (
            "version: 1\nmodel: {recipe: glass-0.8m}\nengines: [cpu]\ncases:\n  - name: c\n"
            f"    benchmark: {{task: mmlu, compare: {{mode: paired}}, baseline: {{file: '{file}'}}}}\n"
        )
        (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
        loaded = load_specs(["x.yaml"], engines=tuple(ENGINES), recipes=("glass-0.8m",))
        assert loaded.diagnostics == ()
        return [shown(one) for one in check_capabilities(loaded, ENGINES.__getitem__).diagnostics]

    own = ".specrunner/benchmarks/x/c[engine=cpu].json"
    assert held_against(own) == [("self-comparison", f"'{own}'")]
    assert held_against("linked.json") == [("self-comparison", "'linked.json'")]
    assert held_against(".specrunner/benchmarks/x/c[engine=hf].json") == [], "another case's"
    assert held_against("c[engine=cpu].json") == [], "a copy"


DENOISING = "    decode: {algorithm: low_confidence, block_length: 32, threshold: 0.9}\n"


@pytest.mark.parametrize(
    ("recipe", "task", "decode", "found"),
    [
        ("tiny-llada2", "mmlu", "", [("impossible-likelihood", "mmlu")]),
        ("tiny-llada2", "[gsm8k_cot, arc_easy]", DENOISING, [("impossible-likelihood", "[gsm8k_cot, arc_easy]")]),
        ("tiny-llada2", "mmlu, likelihood: {samples: 8}", "", []),
        ("tiny-llada2", "[mmlu, gsm8k_cot], likelihood: {samples: 8}", DENOISING, []),
        (
            "tiny-llada2",
            "[mmlu, gsm8k_cot], likelihood: {samples: 8}",
            "",
            [("impossible-algorithm", "[mmlu, gsm8k_cot]")],
        ),
        ("glass-0.8m", "mmlu, likelihood: {samples: 8}", "", [("impossible-likelihood", "{samples: 8}")]),
        ("tiny-llada2", "gsm8k_cot", "", [("impossible-algorithm", "gsm8k_cot")]),
        ("tiny-llada2", "gsm8k_cot", DENOISING, []),
        ("glass-0.8m", "mmlu", "", []),
        ("glass-0.8m", "gsm8k_cot", "", []),
    ],
)
def test_a_diffusion_model_has_no_log_likelihood_of_a_continuation(
    tmp_path: Path, recipe: str, task: str, decode: str, found: list[tuple[str, str]]
) -> None:
    (tmp_path / "x.yaml").write_text(BENCHMARK.format(recipe=recipe, task=task, decode=decode), encoding="utf-8")
    loaded = load_specs([str(tmp_path / "x.yaml")], engines=tuple(ENGINES), recipes=("glass-0.8m", "tiny-llada2"))
    assert loaded.diagnostics == ()
    checked = check_capabilities(loaded, ENGINES.__getitem__)
    assert [shown(diagnostic) for diagnostic in checked.diagnostics] == found


SHOWN = "decode: {max_new_tokens: 4, algorithm: low_confidence, block_length: 4, threshold: 0.5}\n"
HIDDEN = "reference: {engine: fixed, device: cuda, options: {hidden: true}}\nengines: [both]\n"
OPEN = "options: {fixed: {hidden: true}}\nreference: {engine: both, device: cuda}\nengines: [fixed]\n"
PEER = "reference: {engine: both, device: cuda, peer: {engine: fixed, options: {hidden: true}}}\nengines: [both]\n"
ALONE = OPEN.replace("{engine: both, device: cuda}", "null")


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        (HIDDEN + "tokens: exact", []),
        (HIDDEN + "tokens: near_tie", ["tokens"]),
        (OPEN + "tokens: near_tie", []),
        (PEER + "tokens: near_tie\ntolerance: {logits: {noise_floor: 2}}", []),
        (HIDDEN + "tolerance: {logits: exact}\nat: {step: 1}", ["at"]),
        (OPEN + "tolerance: {logits: exact}\nat: {step: 1}", []),
        (ALONE + "tolerance: {logits: {sqnr: 9}}\ngolden: true\nat: {step: 1}", ["at"]),
        (HIDDEN + "trajectory: exact", ["trajectory"]),
        (OPEN + "trajectory: exact", ["trajectory"]),
    ],
)
def test_whose_steps_must_be_shown(tmp_path: Path, fields: str, found: list[str]) -> None:
    """A candidate that is led to a state or through ties need not show its own steps; a reference does."""
    head = HEAD.replace("glass-0.8m", "tiny-llada2") if "logits" not in fields else HEAD
    diagnostics = [one for one in check(tmp_path, SHOWN + fields, head) if one.code == "impossible-trajectory"]
    named = [one.line_text.strip().partition(":")[0] for one in diagnostics]
    assert named == found
    assert all("does not show the steps of its decode" in one.message for one in diagnostics)


@pytest.mark.parametrize(
    ("fields", "message", "help"),
    [
        ("engines: [cpu]\ndtype: float16", "engine `cpu` does not compute in float16", "dtypes: `float32`, `bfloat16`"),
        (
            "engines: [both]\ndevice: cpu\ndtype: float16",
            "engine `both` does not compute in float16 on cpu",
            "dtypes: `float32`",
        ),
        ("engines: [cpu]\ndevice: cuda", "engine `cpu` does not run on cuda", "devices: `cpu`"),
    ],
)
def test_what_an_engine_computes_in_instead(tmp_path: Path, fields: str, message: str, help: str) -> None:
    (diagnostic,) = check(tmp_path, f"{fields}\ntolerance: {{logits: exact}}")
    assert (diagnostic.message, diagnostic.help) == (message, help)


def test_enough_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "ENOUGH", 2)
    text = f"{HEAD}cases:\n" + "".join(
        f"  - {{name: c{number}, prompt: hi, engines: [cpu], device: cuda, tolerance: {{logits: exact}}}}\n"
        for number in range(4)
    )
    (tmp_path / "many.yaml").write_text(text, encoding="utf-8")
    loaded = load_specs([str(tmp_path / "many.yaml")], engines=tuple(ENGINES))
    found = check_capabilities(loaded, ENGINES.__getitem__).diagnostics
    assert [(one.code, one.location.line) for one in found] == [
        ("impossible-device", HEAD.count("\n") + 2),
        ("impossible-device", HEAD.count("\n") + 3),
        ("too-many", HEAD.count("\n") + 4),
    ]


def test_diagnostics_come_in_the_order_of_the_files(tmp_path: Path) -> None:
    text = f"{HEAD}cases:\n  - {{name: c, prompt: hi, engines: [cpu], device: cuda, tolerance: {{logits: exact}}}}\n"
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "b.yaml").write_text(text.replace("version: 1", "version: 2"), encoding="utf-8")
    loaded = load_specs([str(tmp_path / name) for name in ("a.yaml", "b.yaml")], engines=tuple(ENGINES))
    found = check_capabilities(loaded, ENGINES.__getitem__).diagnostics
    assert [Path(one.location.path).name for one in found] == ["a.yaml", "b.yaml"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own", None),
        ("shared", "the environment `shared` is not for `both`"),
        ("its", "the environment `its` is not for `both`"),
        ("none", "unknown environment `none`"),
    ],
)
def test_an_environment_is_for_its_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str | None
) -> None:
    owners = {"a": "abacus", "own": "both", "own-2": "both", "its": "cpu", "z": "zebra"}
    locks = {lock: Lock(lock, engine, "cpu", {}) for lock, engine in owners.items()}
    found = {"own": [locks["own"], locks["own-2"]], "shared": [locks["own"], locks["its"]], "its": [locks["its"]]}
    monkeypatch.setattr(capabilities, "list_locks", lambda: locks)
    monkeypatch.setattr(capabilities, "find_locks", lambda name, _: found.get(name, []))
    diagnostics = check(tmp_path, f"engines: [both, cpu]\nenvironments: {{both: {name}}}\ntolerance: {{logits: exact}}")
    assert list(dict.fromkeys(one.message for one in diagnostics)) == ([message] if message else [])
    assert all(one.help == "environments: `own`, `own-2`" for one in diagnostics)
    assert {shown(one) for one in diagnostics} == ({("unknown-environment", name)} if message else set())
