"""Name maps: which module of an engine's model computes which tensor, one YAML a (engine, architecture family).

A map at `names/<engine>/<family>.yaml`, or at `<engine>/<family>.yaml` of the project's own folder, looks like this;
`schema/name-map.schema.json` describes every field:

    architectures: [LlamaForCausalLM, MistralForCausalLM]
    tensors:
      embeddings: {module: model.embed_tokens}
      "layers.{i}.attention.query": {module: "model.layers.{i}.self_attn.qkv_proj", index: 0, part: query}
      "layers.{i}.output": {module: "model.layers.{i}", sum: [0, 1]}
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from specrunner.config import NAME_MAPS, find_name_maps
from specrunner.engines.name_map_mistakes import find_mistakes
from specrunner.errors import ConfigurationError, SpecError
from specrunner.spec.paths import display_path
from specrunner.spec.source import Source, read_source
from specrunner.spec.tensor_names import ROUTER_BIAS


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one tensor is read; the schema of name maps describes the fields (`#/$defs/entry`)."""

    module: str
    parameter: str | None = None
    method: str | None = None
    of: str = "output"
    index: int | None = None
    sum: tuple[int, ...] = ()
    part: str | None = None
    heads_first: bool = False
    gather: str | None = None
    shift: int = 0
    last: Entry | None = None
    optional: bool = False

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Entry:
        """Build an entry from its YAML mapping, which follows the schema: 1.0 is a whole number there, too."""
        values: dict[str, Any] = {
            name: int(value) if isinstance(value, float) else value for name, value in data.items()
        }
        values["sum"] = tuple(map(int, values.get("sum", ())))
        if values.get("last") is not None:
            values["last"] = cls.parse(values["last"])
        return cls(**values)


@dataclass(frozen=True, slots=True)
class HookPoint:
    """One tensor at one layer: read `entry` at the module called `module`."""

    name: str
    module: str
    entry: Entry


@dataclass(frozen=True, slots=True)
class NameMap:
    """The name map of an architecture family for one engine."""

    engine: str
    family: str
    architectures: tuple[str, ...]
    layers_key: str
    entries: Mapping[str, Entry]
    algorithms: tuple[str, ...] = ("greedy",)
    router: Mapping[str, Any] | None = None

    @property
    def templates(self) -> tuple[str, ...]:
        """The name templates that can be captured, those of a decode included."""
        names = tuple(name for name in self.entries if name != ROUTER_BIAS)
        return names + (("passes.{i}.logits",) if "low_confidence" in self.algorithms else ())

    def hook_points(self, layers: int) -> list[HookPoint]:
        """List every tensor of a model with `layers` layers; optional ones included."""
        points: list[HookPoint] = []
        for template, entry in self.entries.items():
            for layer in range(layers) if "{i}" in template else (0,):
                chosen = entry.last if entry.last is not None and layer == layers - 1 else entry
                module = chosen.module.replace("{i}", str(layer + chosen.shift))
                points.append(HookPoint(template.replace("{i}", str(layer)), module, chosen))
        return points


def parse_map(engine: str, family: str, source: Source) -> NameMap:
    """Parse one name map.

    Args:
        engine: whose map it is.
        family: the file's name without its extension.
        source: the file, as it was read.

    Raises:
        SpecError: the map cannot be read, or is wrong; its diagnostics say where.
    """
    mistakes = find_mistakes(source)
    if mistakes:
        raise SpecError(mistakes)
    data: Mapping[str, Any] = source.root
    return NameMap(
        engine,
        family,
        tuple(data["architectures"]),
        data.get("layers", "num_hidden_layers"),
        {template: Entry.parse(entry) for template, entry in data["tensors"].items()},
        tuple(data.get("algorithms", ("greedy",))),
        data.get("router"),
    )


def describe_router(name_map: NameMap, config: Any) -> dict[str, Any] | None:
    """Return how a model's router chooses, as a session fact; None for a dense model or one whose map does not say.

    Args:
        name_map: the architecture's map.
        config: the model's text configuration.

    Returns:
        `score`, `bias` (whether one is added for the choice), `experts_per_token`, `n_group`, `topk_group`.
    """
    if name_map.router is None:
        return None
    keys = dict(name_map.router)
    facts: dict[str, Any] = {"score": keys.pop("score"), "bias": keys.pop("bias", False), "n_group": 1, "topk_group": 1}
    for name, key in keys.items():
        facts[name] = int(getattr(config, key))
    return facts


def load_maps(engine: str) -> Mapping[str, NameMap]:
    """Read all of an engine's name maps, keyed by architecture class name; the project's own go before ours.

    Raises:
        SpecError: a map is wrong.
        ConfigurationError: an architecture stands in two maps of one folder, or the project's folder is none.
    """
    return _load_maps(engine, _find_own(os.environ.get(NAME_MAPS, ""), Path.cwd()))


@lru_cache
def _find_own(stated: str, cwd: Path) -> Path | None:
    return find_name_maps({NAME_MAPS: stated}, cwd)


@lru_cache
def _load_maps(engine: str, own: Path | None) -> Mapping[str, NameMap]:
    ours = read_maps(engine, Path(str(files("specrunner.engines"))) / "names" / engine)
    return ours if own is None else {**ours, **read_maps(engine, own / engine)}


def read_maps(engine: str, folder: Path) -> dict[str, NameMap]:
    """Read the name maps in a folder, keyed by architecture class name; none where there is no such folder.

    Raises:
        SpecError: a map is wrong.
        ConfigurationError: an architecture stands in two maps.
    """
    maps: dict[str, NameMap] = {}
    for file in sorted(folder.glob("*.yaml")):
        name_map = parse_map(engine, file.stem, read_source(display_path(file)))
        for architecture in name_map.architectures:
            if architecture in maps:
                both = f"{maps[architecture].family}.yaml and {file.name}"
                raise ConfigurationError(
                    f"{architecture} stands in two name maps of {engine}, {both}",
                    help="take it out of the one that does not fit",
                )
            maps[architecture] = name_map
    return maps


def pack_own_maps(engine: str) -> dict[str, bytes]:
    """Return the project's own maps of an engine by file name, for a machine that does not have them."""
    own = _find_own(os.environ.get(NAME_MAPS, ""), Path.cwd())
    return {} if own is None else {file.name: file.read_bytes() for file in sorted((own / engine).glob("*.yaml"))}


def unpack_own_maps(engine: str, maps: Mapping[str, bytes], folder: Path) -> dict[str, str]:
    """Write what `pack_own_maps` returned below a folder; return the variables by which a session finds it."""
    (folder / engine).mkdir(parents=True)
    for name, content in maps.items():
        (folder / engine / name).write_bytes(content)
    return {NAME_MAPS: str(folder)}


def decode_algorithms(engine: str, architecture: str) -> tuple[str, ...] | None:
    """Return the algorithms that an engine's map states for `architecture`, or None when it has no map."""
    name_map = load_maps(engine).get(architecture)
    return name_map.algorithms if name_map is not None else None


def tensor_templates(engine: str, architecture: str) -> tuple[str, ...] | None:
    """Return the name templates `engine` can capture for `architecture`, or None without a map."""
    name_map = load_maps(engine).get(architecture)
    return name_map.templates if name_map else None
