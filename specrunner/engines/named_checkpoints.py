"""What options say of what an engine loads: nothing that the spec's `model` says, and no further checkpoint unpinned.

Options go to the engine as they are, which could undo what `model` states: its revision, that its code may not run. An
engine tells which of its own options could (`Capabilities.model_options`, `checkpoint_options`); words that all engines
share are the specs' own (`MODEL_WORDS`); `checkpoint_options` may claim one. The plan and the worker both ask, since a
caller of the Python API has no plan.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specrunner.engines.base import Capabilities
from specrunner.spec.model import Model
from specrunner.spec.revisions import MODEL_WORDS, is_commit

Step = str | int

_CODE = "auto_map"
"""The key of a configuration that names the code of its classes, which may be another repository's."""


_HUBS = ("HF_ENDPOINT", "VLLM_USE_MODELSCOPE", "SGLANG_USE_MODELSCOPE")
"""Variables, in an option that sets those of the engine, which lead to another hub than the caller's."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An option that must not stand.

    Attributes:
        code: of a diagnostic.
        message: what is wrong.
        help: what to write instead.
        path: keys and indices that lead to it, from the options.
        at_key: whether its key is at fault rather than its value.
    """

    code: str
    message: str
    help: str
    path: tuple[Step, ...]
    at_key: bool = True


@dataclass(frozen=True, slots=True)
class Option:
    """One key somewhere in the options.

    Attributes:
        name: dotted, with underscores as the engines read them, e.g. `speculative_config.model`.
        path: keys and indices as they were written.
        value: what it is set to.
    """

    name: str
    path: tuple[Step, ...]
    value: Any

    @property
    def word(self) -> str:
        """The key itself."""
        return self.name.rpartition(".")[2]


def list_options(options: Mapping[str, Any]) -> Iterator[Option]:
    """Yield every key of the options and of what is in them, mappings written as JSON text included."""
    yield from _list_options(options, (), (), text=False)


def _list_options(value: Any, names: tuple[str, ...], path: tuple[Step, ...], *, text: bool) -> Iterator[Option]:
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        try:
            value, text = json.loads(value), True
        except (ValueError, RecursionError):
            return
    if isinstance(value, Mapping):
        for key, item in value.items():
            below = (*names, str(key).replace("-", "_"))
            where = path if text else (*path, key)
            yield Option(".".join(below), where, item)
            yield from _list_options(item, below, where, text=text)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            if isinstance(item, str | Mapping | list | tuple):
                yield from _list_options(item, names, path if text else (*path, index), text=text)


def find_refusals(options: Mapping[str, Any], model: Model, capabilities: Capabilities) -> list[Refusal]:
    """Return the options that would have the engine load something else than the case says and `model` allows."""
    stated = list(list_options(options))
    set_names = {option.name for option in stated if option.value is not None}
    pins = {pin for name, pin in capabilities.checkpoint_options.items() if name in set_names}
    found = []
    for option in stated:
        field = capabilities.model_options.get(option.name)
        if field is None and option.name not in pins:
            is_pin = option.name in capabilities.checkpoint_options.values()
            field = "revision" if is_pin else MODEL_WORDS.get(option.word)
        if option.word == _CODE:
            advice = "put the code and its `auto_map` into the checkpoint"
            found.append(Refusal("conflicting-keys", f"`{option.name}` belongs to the checkpoint", advice, option.path))
        elif field is not None:
            advice = f"write `model: {{…, {field}: …}}`"
            found.append(Refusal("conflicting-keys", f"`{option.name}` belongs to the model", advice, option.path))
        elif option.name in capabilities.case_options:
            advice = f"write `{capabilities.case_options[option.name]}: …` in the case, or under `reference`"
            found.append(Refusal("conflicting-keys", f"`{option.name}` belongs to the case", advice, option.path))
        elif option.word in _HUBS and option.value not in (None, False, 0, "0"):
            message = f"`{option.name}` names another hub, where a commit may stand for other files"
            advice = "set the variable where specrunner is started"
            found.append(Refusal("unpinned-code", message, advice, option.path))
    found += _find_kernels(stated, model, capabilities)
    allowed = "trust_remote_code" if model.trust_remote_code else "allow_pickle" if model.allow_pickle else None
    for option, name, revision in _list_named(stated, capabilities):
        if allowed is None or _is_local(name) or ("://" not in name and is_commit(revision)):
            continue
        pin = capabilities.checkpoint_options[option.name]
        advice = "state the absolute path of a directory" + (f", or 40 hex digits in `{pin}`" if pin else "")
        message = f"`{allowed}` holds for `{option.name}`, too, and {name[:200]!r} is not fixed at a commit"
        found.append(Refusal("unpinned-code", message, advice, option.path, at_key=False))
    return found


def _find_kernels(stated: list[Option], model: Model, capabilities: Capabilities) -> Iterator[Refusal]:
    """Yield the options that would run code from a hub, unless the model may run code and the commit is stated."""
    for option in stated:
        if option.name.partition(".")[0] not in capabilities.code_options or isinstance(option.value, Mapping | list):
            continue
        if option.value is True:
            message = f"`{option.name}` runs code from a hub, at a revision that nobody states"
            yield Refusal("unpinned-code", message, "leave it out, or name `owner/name@COMMIT`", option.path)
        elif isinstance(option.value, str) and "/" in option.value:
            pinned = is_commit(option.value.partition("@")[2].partition(":")[0])
            if pinned and model.trust_remote_code:
                continue
            advice = "write `owner/name@` and the 40 hex digits of a commit, and `model: {…, trust_remote_code: true}`"
            message = f"`{option.name}` runs code of the repository {option.value[:200]!r}"
            message += "" if pinned else ", which is not fixed at a commit"
            yield Refusal("unpinned-code", message, advice, option.path, at_key=False)


def find_checkpoints(options: Mapping[str, Any], model: Model, capabilities: Capabilities) -> list[tuple[Model, str]]:
    """Return the checkpoints that options name, each with its directory or hub id; `model` says what they may do."""
    found = []
    for _, name, revision in _list_named(list(list_options(options)), capabilities):
        local = _is_local(name)
        further = Model(
            id=None if local else name,
            path=name if local else None,
            revision=None if local else revision,
            trust_remote_code=model.trust_remote_code,
            allow_pickle=model.allow_pickle,
        )
        found.append((further, name))
    return found


_Named = tuple[Option, str, str | None]
"""An option, a checkpoint that it names, and the revision that is stated for it."""


def _list_named(stated: list[Option], capabilities: Capabilities) -> Iterator[_Named]:
    values = {option.name: option.value for option in stated}
    for option in stated:
        pin = capabilities.checkpoint_options.get(option.name)
        if pin is not None:
            revision = values.get(pin)
            for name in _list_texts(option.value):
                yield option, name, None if revision is None else str(revision)


def _list_texts(value: Any) -> Iterator[str]:
    """Yield the checkpoints in an option's value: a text, `NAME=PATH`, or several of them."""
    if isinstance(value, str):
        yield value if _is_local(value) else value.partition("=")[2] or value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _list_texts(item) if key not in ("lora_name", "pinned") else ()
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _list_texts(item)


def _is_local(name: str) -> bool:
    """Tell whether a name is a path: a relative one would start at the engine's own working directory."""
    return Path(name).is_absolute()
