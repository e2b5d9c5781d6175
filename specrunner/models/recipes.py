"""The checkpoints of recipes: built once into the user's cache, or shipped.

`python -m specrunner.models.recipes NAME` builds one and prints its directory. It runs under specrunner's own
interpreter, since the environments of the engines lack the packages that the weights come from.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from specrunner.catalogue.recipes import RECIPES, Recipe, find_recipe
from specrunner.errors import CapabilityMissing, SpecrunnerError
from specrunner.folders import cache_folder, hold_lock
from specrunner.requests import digest_of
from specrunner.spec.model import Model


def recipe_folder(recipe: Recipe) -> Path:
    """Return where a recipe's checkpoint is, or will be once it is built."""
    if recipe.shipped:
        return Path(__file__).parent / recipe.shipped
    digest = digest_of([recipe.name, recipe.builder, recipe.version])
    return cache_folder() / "models" / f"{recipe.name}-{digest}"


def find_built(recipe: Recipe) -> Path | None:
    """Return the checkpoint's directory if it is there, whole; else None."""
    folder = recipe_folder(recipe)
    return folder if (folder / "config.json").is_file() else None


def build_recipe(recipe: Recipe) -> Path:
    """Return the checkpoint's directory, building it first where it is missing.

    The directory appears at once and whole: it is filled under another name and then renamed. Of several processes one
    builds and the others wait.

    Raises:
        CapabilityMissing: a package is not installed; the message has the command that brings it.
    """
    folder = recipe_folder(recipe)
    if find_built(recipe):
        return folder
    missing = recipe.missing_packages()
    if missing:
        raise CapabilityMissing(
            f"the recipe {recipe.name} needs the package{'s' if len(missing) > 1 else ''} {', '.join(missing)}: "
            f"{recipe.install}"
        )
    module, _, function = recipe.builder.partition(":")
    build: Callable[[Path], None] = getattr(import_module(module), function)
    with hold_lock(folder.with_name(folder.name + ".lock")):
        if find_built(recipe):
            return folder
        for rest in folder.parent.glob(f".{folder.name}-*"):  # of a build that was killed: we have the lock
            shutil.rmtree(rest, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            unfinished = Path(scratch) / "checkpoint"
            unfinished.mkdir()
            build(unfinished)
            # What lies there without a config.json is the rest of a checkpoint that the user deleted in part.
            shutil.rmtree(folder, ignore_errors=True)
            unfinished.rename(folder)
    return folder


def ensure_model(model: Model) -> str:
    """Return what an engine loads: the directory of a path or a recipe (built when missing), or the hub id.

    Raises:
        ConfigurationError: there is no such recipe.
        CapabilityMissing: a recipe's packages are not installed.
    """
    if model.recipe is not None:
        return str(build_recipe(find_recipe(model.recipe)))
    return model.path or model.id or ""


def main(arguments: list[str]) -> int:
    """Build the recipe named on the command line; its directory is the last line of stdout."""
    if len(arguments) != 1:
        print(f"usage: python -m specrunner.models.recipes {{{','.join(RECIPES)}}}", file=sys.stderr)
        return 4
    try:
        print(build_recipe(find_recipe(arguments[0])))
    except SpecrunnerError as error:
        if error.help:
            print(f"help: {error.help}", file=sys.stderr)
        print(f"error: {error.message}", file=sys.stderr)
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
