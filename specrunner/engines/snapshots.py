"""Fetching a model of the hub whole, before anything looks at its folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from specrunner.engines.checkpoint_files import WEIGHTS
from specrunner.engines.trust import find_pickle, read_hub_options
from specrunner.spec.model import Model

SAFE_WEIGHTS = ".safetensors"

TEXTS = (".json", ".jinja", ".model", ".txt", ".tiktoken", ".py")
"""Extensions of what stands beside weights: configuration, tokenizer, chat template, and code, whether or not it may
run: it is part of the model's digest."""

DOWNLOADS = 8
"""Files that are fetched at once."""


def fetch_files(model: Model, folder: Path, options: Mapping[str, Any]) -> None:
    """Fetch a model of the hub into its folder in the hub's cache; what is there already is not asked for.

    Where the hub cannot be asked, what is cached is all there is. `huggingface_hub.snapshot_download` is not used: it
    leaves a list of all files in the cache, by which an engine without a network takes files that we leave out for an
    interrupted download.

    Args:
        model: what the spec says of it.
        folder: the snapshot, with `config.json` in it; its name is the commit.
        options: the engine's.

    Raises:
        Exception: of `huggingface_hub`, when a download fails.
    """
    import huggingface_hub as hub

    assert model.id is not None
    if options.get("local_files_only"):
        return
    access, kept = read_hub_options(options)
    try:
        names = list(hub.list_repo_files(model.id, revision=folder.name, **access))
    except Exception:  # offline, like the engines
        return
    missing = [name for name in choose_files(names, model, options) if not (folder / name).is_file()]

    def fetch(name: str) -> None:
        hub.hf_hub_download(str(model.id), name, revision=folder.name, **access, **kept)

    with ThreadPoolExecutor(DOWNLOADS, thread_name_prefix="download") as threads:
        list(threads.map(fetch, missing))


def choose_files(names: Iterable[str], model: Model, options: Mapping[str, Any]) -> list[str]:
    """Return the files of a repository that some engine reads; none in folders below it.

    Those are the safetensors, or, of a model whose pickles may be read and would be, its pickles, too; of GGUF files,
    which are many models in one repository, those that options name; and everything small that comes with weights.

    Args:
        names: all files of the repository.
        model: what the spec says of it.
        options: the engine's. Under `load_format: dummy` no engine reads weights.
    """
    names = sorted(name for name in names if "/" not in name)
    stated = {value for value in options.values() if isinstance(value, str)}
    wanted = list(TEXTS)
    if options.get("load_format") != "dummy":
        wanted.append(SAFE_WEIGHTS)
        if model.allow_pickle and find_pickle(names, options) is not None:
            wanted += [extension for extension in WEIGHTS if extension not in (SAFE_WEIGHTS, ".gguf")]
    return [name for name in names if name.endswith(tuple(wanted)) or name in stated]
