"""What of a checkpoint could run code, checked in the worker before any engine reads a file of it.

A pickle can do anything when it is read, so weights are safetensors unless the spec says `model.allow_pickle: true`.
Pickles that lie beside safetensors weights are read by no engine, unless its options ask for them. Code of the
checkpoint's own runs only where the spec says so, and never from another repository, whose revision nobody states.
The same holds for a tokenizer or a draft model that options name, and for the model that an adapter is put on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specrunner.engines.named_checkpoints import find_checkpoints, find_refusals, list_options
from specrunner.errors import ModelUnavailable, ModelUnsupported
from specrunner.spec.model import Model

if TYPE_CHECKING:
    from specrunner.engines.base import Capabilities
    from specrunner.requests import Session

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
"""Extensions of files that engines read by unpickling."""

SINGLE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_model"
"""Stem of the weights that Transformers puts on a model when they lie beside it."""

ADAPTER_CONFIG = "adapter_config.json"
"""The file by which Transformers, with peft, takes the model that it loads from elsewhere."""

LONGEST_JSON = 64 << 20
"""Bytes of the longest JSON file of a checkpoint that is read."""

_SAFE_FORMATS = ("auto", "hf", "safetensors", "fastsafetensors", "instanttensor", "mistral", "gguf", "dummy")
_SAFE_VALUES: Mapping[str, tuple[Any, ...]] = {
    "load_format": _SAFE_FORMATS,
    "speculative_draft_load_format": _SAFE_FORMATS,
    "use_safetensors": (True,),
    "variant": (),
    "ignore_patterns": (),
}
"""Options that choose among the weight files of a checkpoint, and values under which safetensors come first."""

_HELP = "convert it to safetensors, or set `model.allow_pickle: true` in the spec if you trust it"


def check_trust(session: Session, path: str, capabilities: Capabilities) -> None:
    """Refuse a session that would run code which the spec does not allow, of its model or of what its options name.

    Args:
        session: what is to be loaded.
        path: the checkpoint's directory, or its hub id.
        capabilities: of the session's engine.

    Raises:
        ModelUnsupported: options that undo what `model` says, weights that are a pickle, an index that leads to other
            files, or code of another repository.
        ModelUnavailable: the hub does not give a file that is read here.
    """
    model, options = session.model, session.options
    for refusal in find_refusals(options, model, capabilities):
        raise ModelUnsupported(refusal.message, help=refusal.help)
    for one, place in ((model, path), *find_checkpoints(options, model, capabilities)):
        base = _check_checkpoint(one, place, options)
        if base is not None:
            _check_checkpoint(base, base.id or str(base.path), options)


def _check_checkpoint(model: Model, path: str, options: Mapping[str, Any]) -> Model | None:
    """Check one, and return the model that it is put on, if it is an adapter."""
    folder, names = list_files(model, path, options)
    if not model.allow_pickle:
        pickle = find_pickle(names, options)
        if pickle is not None:
            raise ModelUnsupported(f"{pickle} is a pickle, which can run any code when it is read", help=_HELP)
    if folder is None:
        return None
    if INDEX in names:
        check_index(folder / INDEX, allow_pickle=model.allow_pickle)
    if model.trust_remote_code:
        check_code(folder, names)
    return find_base(folder / ADAPTER_CONFIG, model)


def list_files(model: Model, path: str, options: Mapping[str, Any]) -> tuple[Path | None, list[str]]:
    """Return a checkpoint's directory, as far as it is on this machine, and the names of the files in it.

    Of a hub id, the names are the hub's, or those in the cache where the hub cannot be asked; the files among them that
    are read here are fetched.

    Args:
        model: the checkpoint.
        path: its directory, a file of it, or its hub id.
        options: the engine's; they may name another cache, or a token.

    Raises:
        ModelUnavailable: the hub lists a file that is read here, and does not give it.
    """
    if model.id is None or path != model.id:
        return (Path(path).parent, [Path(path).name]) if Path(path).is_file() else (Path(path), _names_in(Path(path)))
    try:
        import huggingface_hub as hub
    except ImportError:
        return None, []  # what cannot ask the hub cannot load from it
    access, kept = read_hub_options(options)
    try:
        folder = Path(hub.hf_hub_download(path, "config.json", revision=model.revision, **access, **kept)).parent
    except Exception:  # absent, gated or unreachable: the engine says so best
        return None, []
    try:
        names = list(hub.list_repo_files(path, revision=model.revision, **access))
    except Exception:  # offline: engines find what is cached, and nothing else
        return folder, _names_in(folder)
    for name in names:
        if _is_read(name) and not (folder / name).is_file():
            try:
                hub.hf_hub_download(path, name, revision=model.revision, **access, **kept)
            except Exception as error:
                raise ModelUnavailable(f"could not fetch {name} of {path}: {type(error).__name__}") from error
    return folder, names


def read_hub_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return an engine's options for the hub as keywords of its client: as whom it asks, and where files are kept."""
    cache = options.get("download_dir") or options.get("cache_dir")
    token = options.get("hf_token") or options.get("token")
    return {"token": token} if token else {}, {"cache_dir": cache} if cache else {}


def _is_read(name: str) -> bool:
    """Tell whether the checks below read a file of a checkpoint."""
    return name == INDEX or (name.endswith("config.json") and "/" not in name)


def _names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


def find_pickle(names: Iterable[str], options: Mapping[str, Any]) -> str | None:
    """Return the first file that an engine would unpickle, or None.

    Args:
        names: files of the checkpoint; those in folders below it are read by no engine.
        options: the engine's.
    """
    names = sorted(names)
    pickles = [name for name in names if name.lower().endswith(PICKLES) and "/" not in name]
    asked = any(_asks_for_others(option.word, option.value) for option in list_options(options))
    if asked or not (SINGLE_FILE in names or INDEX in names):
        return pickles[0] if pickles else None
    adapters = [name for name in pickles if name.startswith(ADAPTER)]
    return adapters[0] if adapters and f"{ADAPTER}.safetensors" not in names else None


def _asks_for_others(name: str, value: Any) -> bool:
    """Tell whether an option may have an engine pass safetensors by."""
    safe = _SAFE_VALUES.get(name)
    return safe is not None and value is not None and (value.lower() if isinstance(value, str) else value) not in safe


def check_index(file: Path, *, allow_pickle: bool = False) -> None:
    """Refuse an index of shards that names anything but safetensors files beside it.

    Raises:
        ModelUnsupported: it does, or it is no index.
    """
    stated = _read_json(file).get("weight_map")
    if not isinstance(stated, dict):
        raise ModelUnsupported(f"{file.name} has no weight_map")
    for shard in sorted({str(name) for name in stated.values()}):
        if Path(shard).name != shard or shard == "..":
            raise ModelUnsupported(f"{file.name} leads out of the checkpoint: {shard[:200]!r}")
        if not shard.endswith(".safetensors") and not allow_pickle:
            raise ModelUnsupported(f"{file.name} names {shard[:200]!r}, which is no safetensors file", help=_HELP)


def check_code(folder: Path, names: Iterable[str]) -> None:
    """Refuse code that comes from another repository than the checkpoint (`auto_map: {…: "owner/name--module.Class"}`).

    Raises:
        ModelUnsupported: a configuration names such code.
    """
    for name in sorted(name for name in names if name != INDEX and _is_read(name)):
        stated = _read_json(folder / name).get("auto_map") if (folder / name).is_file() else None
        for source in _texts(stated):
            repository, separator, _ = source.partition("--")
            if separator:
                raise ModelUnsupported(
                    f"{name} takes code from the repository {repository[:200]!r}, whose revision nobody states",
                    help="put that code into the checkpoint, and its name without `--` into `auto_map`",
                )


def read_base(file: Path) -> str:
    """Return the directory or the hub id of the model that an adapter's configuration names, or "" without one.

    Raises:
        ModelUnsupported: the file cannot be read.
    """
    return str(_read_json(file).get("base_model_name_or_path") or "") if file.is_file() else ""


def find_base(file: Path, model: Model) -> Model | None:
    """Return the model that an adapter is put on, which may do what the adapter may, or None.

    Transformers loads it from a hub at no revision that a file or a spec could state.

    Args:
        file: the adapter's configuration, where there is one.
        model: the adapter.

    Raises:
        ModelUnsupported: the base is on a hub, and code or pickles may run; or the file cannot be read.
    """
    name = read_base(file)
    if not name:
        return None
    allowed = [word for word in ("trust_remote_code", "allow_pickle") if getattr(model, word)]
    if Path(name).is_absolute() or (Path(name).is_dir() and not allowed):
        return Model(path=name, trust_remote_code=model.trust_remote_code, allow_pickle=model.allow_pickle)
    if allowed:
        raise ModelUnsupported(
            f"{file.name} puts the checkpoint on {name[:200]!r}, and `{allowed[0]}` lets it run at a revision that "
            "nobody states",
            help="state the absolute path of the base model",
        )
    return Model(id=name)


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in items for text in (_texts(item) if not isinstance(item, dict) else ())]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            content = stream.read(LONGEST_JSON + 1)
        stated = json.loads(content) if len(content) <= LONGEST_JSON else None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelUnsupported(f"{file.name} cannot be read: {type(error).__name__}") from error
    if not isinstance(stated, dict):
        raise ModelUnsupported(f"{file.name} is no JSON object of at most {LONGEST_JSON >> 20} MiB")
    return stated


def refuse_code() -> ModelUnsupported:
    """Return the error of a checkpoint with code of its own which an engine would run, and the spec does not allow."""
    return ModelUnsupported(
        "the checkpoint needs code of its own, and the spec does not allow it",
        help="set `model.trust_remote_code: true` in the spec if you trust that code",
    )
