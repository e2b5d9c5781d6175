"""Recipes: built once, whole, the same everywhere, and clear about what is missing."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from specrunner.catalogue.recipes import RECIPES, Recipe, find_recipe
from specrunner.errors import CapabilityMissing, ConfigurationError
from specrunner.models import recipes
from specrunner.models.recipes import build_recipe, ensure_model, find_built, main, recipe_folder
from specrunner.spec.model import Model

RANDOM = {
    "tiny-qwen3-moe": "35c6bb8023064278",
    "tiny-mixtral": "2406f71a50705ff6",
    "tiny-ernie4_5-moe": "f4992ca49c48c5de",
    "tiny-gpt-oss": "58c731822b352da1",
}
"""The first digits of the SHA-256 of the weights."""

BUILDER = """
import json, os, time
from pathlib import Path

def build(folder):
    with open({log!r}, "a") as log:
        log.write("built\\n")
    (folder / "model.safetensors").write_text("weights")
    while len(list(Path({log!r}).parent.glob("asked-*"))) % 3:  # until all three have asked, where processes ask
        time.sleep(0.01)
    (folder / "config.json").write_text("{{}}")

def fail(folder):
    (folder / "config.json").write_text("{{}}")
    raise RuntimeError("halfway")
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPECRUNNER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def slow_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe whose builder waits for all who ask and keeps a log of its calls."""
    (tmp_path / "slow_builder.py").write_text(BUILDER.format(log=str(tmp_path / "log")))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "slow_builder", raising=False)  # another test's
    recipe = Recipe("slow", "NoneForCausalLM", "for this test", builder="slow_builder:build")
    monkeypatch.setattr("specrunner.catalogue.recipes.RECIPES", {"slow": recipe})
    return recipe


def test_table_is_torch_free() -> None:
    heavy = {"torch", "numpy", "tokenizers"}
    code = f"import sys; import specrunner.models.recipes; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_recipe_states_what_it_needs(recipe: Recipe) -> None:
    assert bool(recipe.builder) != bool(recipe.shipped)
    assert recipe.description and recipe.architecture
    if recipe.builder:
        assert recipe.install.startswith("pip install") or not recipe.packages
        module, _, function = recipe.builder.partition(":")
        assert find_spec(module) is not None and function.startswith("build_")


@pytest.mark.parametrize("name", ["glass-0.8m", *RANDOM])
def test_built_config_states_the_architecture(name: str) -> None:
    folder = build_recipe(RECIPES[name])
    assert find_built(RECIPES[name]) == folder
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == [RECIPES[name].architecture]
    assert config["vocab_size"] % 64 == 0 and config["head_dim"] in (32, 64)


@pytest.mark.parametrize(("name", "digest"), RANDOM.items())
def test_random_weights_are_the_same_everywhere(name: str, digest: str) -> None:
    data = (build_recipe(RECIPES[name]) / "model.safetensors").read_bytes()
    assert hashlib.sha256(data).hexdigest()[:16] == digest


def test_random_weights_have_the_values_of_bfloat16() -> None:
    import numpy as np
    from safetensors.numpy import load_file

    state = load_file(build_recipe(RECIPES["tiny-gpt-oss"]) / "model.safetensors")
    assert all(not (array.view(np.uint32) & 0xFFFF).any() for array in state.values())


def test_ernie_has_a_router_bias_and_gpt_oss_windows_that_do_not_alternate() -> None:
    from safetensors.numpy import load_file

    state = load_file(build_recipe(RECIPES["tiny-ernie4_5-moe"]) / "model.safetensors")
    biases = [array for name, array in state.items() if name.endswith("e_score_correction_bias")]
    assert len(biases) == 2 and all(abs(bias).min() > 0 for bias in biases)
    config = json.loads((build_recipe(RECIPES["tiny-gpt-oss"]) / "config.json").read_text())
    kinds = config["layer_types"]
    assert any(left == right for left, right in itertools.pairwise(kinds))
    assert [kind == "sliding_attention" for kind in kinds] != [index % 2 == 0 for index in range(len(kinds))]


def test_glass_computes_what_its_package_computes() -> None:
    import glassllm
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = build_recipe(RECIPES["glass-0.8m"])
    model, tokenizer = glassllm.load_pretrained("en")
    fast = AutoTokenizer.from_pretrained(folder)
    for text in ("Alice was beginning to get very tired", "“Oh!” she said,\n  and é fell;日本 ", " a"):
        ids = tokenizer.encode(text)
        assert fast(text)["input_ids"] == ids
    text = "He said that the White Rabbit had been there before them all, and so on."
    ids = tokenizer.encode(text)
    assert fast.decode(ids) == text
    with torch.no_grad():
        ours = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(ours - model.forward(ids).data[0]).max() < 5e-5


@pytest.mark.slow
def test_smollm2_is_built_from_the_package_and_speaks() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = build_recipe(RECIPES["smollm2-135m"])
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == " Paris"


def test_shipped_checkpoint_needs_no_building(cache: Path) -> None:
    folder = build_recipe(RECIPES["tiny-llada2"])
    assert (folder / "config.json").is_file() and folder.is_relative_to(Path(recipes.__file__).parent)
    assert not cache.exists()


def test_second_build_is_the_first(slow_recipe: Recipe, tmp_path: Path) -> None:
    assert find_built(slow_recipe) is None
    assert build_recipe(slow_recipe) == build_recipe(slow_recipe) == find_built(slow_recipe)
    assert (tmp_path / "log").read_text() == "built\n"


def test_new_version_gets_a_new_directory(slow_recipe: Recipe) -> None:
    changed = Recipe("slow", "NoneForCausalLM", "for this test", builder="slow_builder:build", version=2)
    assert recipe_folder(changed) != recipe_folder(slow_recipe)


def test_failed_build_leaves_nothing_behind(slow_recipe: Recipe, cache: Path) -> None:
    broken = Recipe("slow", "NoneForCausalLM", "for this test", builder="slow_builder:fail")
    with pytest.raises(RuntimeError, match="halfway"):
        build_recipe(broken)
    assert find_built(broken) is None
    assert [entry.suffix for entry in (cache / "models").iterdir()] == [".lock"]


def test_the_rest_of_a_killed_build_is_removed(slow_recipe: Recipe) -> None:
    folder = recipe_folder(slow_recipe)
    rest, others = (folder.with_name(f".{name}-x") for name in (folder.name, f"{slow_recipe.name}-other"))
    for place in (rest, others):
        (place / "checkpoint").mkdir(parents=True)
    build_recipe(slow_recipe)
    assert not rest.exists() and others.exists(), "another build may be at work there"


def test_damaged_directory_is_built_again(slow_recipe: Recipe) -> None:
    folder = build_recipe(slow_recipe)
    (folder / "config.json").unlink()
    assert find_built(slow_recipe) is None
    assert (build_recipe(slow_recipe) / "config.json").is_file()


def test_two_processes_build_once(slow_recipe: Recipe, tmp_path: Path) -> None:
    code = (
        "import os; from pathlib import Path\n"
        "from specrunner.models.recipes import Recipe, build_recipe\n"
        f"Path({str(tmp_path)!r}, f'asked-{{os.getpid()}}').touch()\n"
        "print(build_recipe(Recipe('slow', 'NoneForCausalLM', 'for this test', builder='slow_builder:build')))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    workers = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(3)
    ]
    outputs = {worker.communicate()[0].strip() for worker in workers}
    assert outputs == {str(find_built(slow_recipe))}
    assert (tmp_path / "log").read_text() == "built\n"


def test_missing_package_names_the_command() -> None:
    recipe = Recipe(
        "needy",
        "NoneForCausalLM",
        "for this test",
        builder="nowhere:build",
        packages=("json", "no_such_package"),
        unlisted="no-such-package",
    )
    assert recipe.missing_packages() == ["no_such_package"]
    with pytest.raises(CapabilityMissing, match="needs the package no_such_package: pip install ") as caught:
        build_recipe(recipe)
    assert str(caught.value.message).endswith("[hf]' && pip install --no-deps no-such-package")


def test_ensure_model_resolves_all_three_kinds() -> None:
    assert ensure_model(Model(id="some/model")) == "some/model"
    assert ensure_model(Model(path="/some/where")) == "/some/where"
    assert ensure_model(Model(recipe="tiny-llada2")) == str(recipe_folder(RECIPES["tiny-llada2"]))


def test_unknown_recipe() -> None:
    with pytest.raises(ConfigurationError) as caught:
        find_recipe("glass")
    assert caught.value.help is not None and "glass-0.8m" in caught.value.help


def test_command_prints_the_directory_or_the_error(slow_recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["slow"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(find_built(slow_recipe))
    assert main(["nothing"]) == 4
    assert capsys.readouterr().err.splitlines()[-1] == "error: no recipe 'nothing'"
    assert main([]) == 4
    assert capsys.readouterr().err.startswith("usage: ")
